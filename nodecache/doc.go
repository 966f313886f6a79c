// Package nodecache reads the configuration of node-cache, the program of NodeLocal
// DNSCache. From its command line, the template of its Corefile and the ConfigMap of
// kube-dns, it makes a Corefile for Trackless. It runs nothing and changes nothing.
//
// The models are node-cache 1.26.8, which Kubernetes 1.37.2 deploys, and the flags that
// kubernetes-sigs/node-local-dns has added since (cmd/node-cache, pkg/dns/config). If
// node-cache does not do what its documentation says, as with -syncinterval, this package
// follows the documentation.
package nodecache
