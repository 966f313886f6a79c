// Package control is the control socket of an instance: HTTP with JSON over a unix
// socket. Other processes of this node ask the instance about its rules, savings,
// caches and log, switch the rules, and flush the caches.
//
// An instance owns its table: the kernel lets no other process change it. So
// `trackless rules attach` and `detach` have to ask the instance.
//
// The flag -control of `trackless serve` names the socket. If its directory cannot be
// written, as in a container with a read-only root, the instance listens on an
// abstract name. Every process in the network namespace of the node can reach that.
// In both cases both ends check the credentials of the other end (SO_PEERCRED,
// unix(7)): it must be root or the same user. On an abstract name it must also be in
// our user namespace, and either be in our mount namespace or have CAP_NET_ADMIN:
// then it could also open a file.
//
//	GET  /v1/status   Status
//	POST /v1/attach   waits until attached; Status
//	POST /v1/detach   waits until the drain ends; Status
//	GET  /v1/ready?name=NAME  Health: the name is answered and the rules are in place
//	GET  /v1/live     Health: the instance answers
//	GET  /v1/figures  Figures
//	GET  /v1/corefile Corefile
//	GET  /v1/cache?name=NAME&type=TYPE  CacheContent
//	POST /v1/cache/flush?name=NAME, ?zone=ZONE or ?all=true  CacheRemoved
//	GET  /v1/queries?millis=N  counts the queries of that time; QueryCounts
//	GET  /v1/log      {"text": "the end of the log"}
//
// An error is {"error": "sentence"} with status 4xx or 5xx.
package control
