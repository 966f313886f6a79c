// Package control lets other processes of this node ask an instance about its
// rules, savings, caches and log, switch the rules and flush the caches: HTTP with
// JSON over a unix socket.
//
// The table of an instance belongs to that instance: the kernel lets nobody
// else change it. So `trackless rules attach` and `detach` have to ask the
// instance. The socket is named by -control of `trackless serve`; where its
// directory cannot be written, as in a container with a read-only root, the
// instance listens on an abstract name, which every process of the node's
// network namespace can reach. Either way both ends check who the other is
// (SO_PEERCRED, unix(7)): root, or the same user. On an abstract name it must also be
// one whom a file would not stop: of our user namespace, and of our mount namespace
// or with CAP_NET_ADMIN.
//
//	GET  /v1/status   Status
//	POST /v1/attach   waits until attached; Status
//	POST /v1/detach   waits until the drain is over; Status
//	GET  /v1/ready?name=NAME  Health: the name is answered and the rules are in force
//	GET  /v1/live     Health: the instance answers
//	GET  /v1/figures  Figures
//	GET  /v1/corefile Corefile
//	GET  /v1/cache?name=NAME&type=TYPE  CacheContent
//	POST /v1/cache/flush?name=NAME, ?zone=ZONE or ?all=true  CacheRemoved
//	GET  /v1/log      {"text": "the end of the log"}
//
// An error is {"error": "sentence"} with a status of 4xx or 5xx.
package control
