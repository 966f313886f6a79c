package main

import (
	"time"

	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/lab/clients"
)

// The load lasts longer than the shorter timeout: entries expire during it, and after it.
const (
	loadTime  = 65 * time.Second
	watchTime = 90 * time.Second
)

// load is a set of clients. Its streams are the same for every node, with the same source
// ports.
type load struct {
	name, what string
	streams    []streams

	// hits has the kernel answer cached queries of the pods.
	hits bool
}

// streams are clients of one kind, spread over pods, node and address families.
type streams struct {
	kind    clients.StreamKind
	clients int
	rate    float64 // queries a second of each
}

var (
	freshPorts  = []streams{{clients.FreshPort, 24, 2000.0 / 24}}
	reusedPorts = []streams{{clients.SinglePort, 400, 1}}
	mix         = []streams{
		{clients.FreshPort, 12, 50},
		{clients.SinglePort, 120, 1},
		{clients.ShortTCP, 12, 5},
		{clients.LongTCP, 12, 4},    // the server closes them after some number of queries
		{clients.LongTCP, 48, 0.05}, // the server closes them as idle, and the client makes them anew
	}
)

var loads = []load{
	{name: "fresh-ports", what: "2,000 queries a second, each from a port of its own", streams: freshPorts},
	{name: "reused-ports", what: "400 clients with a port each, at one query a second", streams: reusedPorts},
	{name: "mix-with-tcp", what: "fresh and reused ports, TCP connections of one question, of many, and idle ones", streams: mix},
	{name: "fresh-ports-hits", what: "as fresh-ports, cached queries answered in the kernel", streams: freshPorts, hits: true},
	{name: "mix-with-tcp-hits", what: "as mix-with-tcp, cached queries answered in the kernel", streams: mix, hits: true},
}

// on returns the streams for a node.
func (l load) on(node *lab.Node) []clients.Stream {
	origins := []*lab.Namespace{node.Pods[0].Namespace, node.Pods[1].Namespace, node.Namespace}
	targets := node.ClusterDNS()
	var all []clients.Stream
	for _, s := range l.streams {
		for i := range s.clients {
			all = append(all, clients.Stream{
				Kind: s.kind, Rate: s.rate,
				From:   origins[i%len(origins)],
				Target: targets[i/len(origins)%len(targets)],
			})
		}
	}
	return all
}
