package main

import (
	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/lab/clients"
)

// kind is one part of the load.
type kind struct {
	kind    clients.StreamKind
	clients int
	share   float64 // of the rate over UDP, all clients together
	misses  bool    // asks for names that no cache knows, which makes a steady rate upstream
}

// The load is three fifths of queries from fresh ports, a fifth from a pool of many ports, and
// a fifth from few ports that ask much. TCP has a new connection for 8 in 100 of them, and 50
// long connections. Of the queries from fresh ports some are misses.
var kinds = []kind{
	{kind: clients.FreshPort, clients: 36, share: 0.56},
	{kind: clients.FreshPort, clients: 6, share: 0.04, misses: true},
	{kind: clients.SinglePort, clients: 240, share: 0.2},
	{kind: clients.SinglePort, clients: 12, share: 0.2},
	{kind: clients.ShortTCP, clients: 24, share: 0.08},
	{kind: clients.LongTCP, clients: 50, share: 0.01},
}

// unknown is a number of names of which none is asked for twice.
const unknown = 5_000_000

// streams spreads the clients over pods, node and address families.
func streams(node *lab.Node, rate float64, names int) []clients.Stream {
	origins := []*lab.Namespace{node.Pods[0].Namespace, node.Pods[1].Namespace, node.Namespace}
	targets := node.ClusterDNS()
	var all []clients.Stream
	for _, k := range kinds {
		names := names
		if k.misses {
			names = unknown
		}
		for i := range k.clients {
			all = append(all, clients.Stream{
				Kind: k.kind, Rate: rate * k.share / float64(k.clients), Names: names,
				From:   origins[i%len(origins)],
				Target: targets[i/len(origins)%len(targets)],
			})
		}
	}
	return all
}

// asked is the number of queries a second.
func asked(rate float64) (perSecond float64) {
	for _, k := range kinds {
		perSecond += rate * k.share
	}
	return perSecond
}
