// Package nodecache is what NodeLocal DNSCache's program node-cache was
// configured by: its command line, the template of its Corefile and the
// ConfigMap of kube-dns go in, a Corefile for Trackless comes out. Nothing here
// runs; package main does what the result says.
//
// Followed are node-cache 1.26.8, which Kubernetes 1.37.2 deploys, and the
// flags that kubernetes-sigs/node-local-dns has added since (cmd/node-cache,
// pkg/dns/config). Where node-cache itself cannot do what a flag says, as with
// -syncinterval, the documented meaning holds.
package nodecache
