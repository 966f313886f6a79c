package iptables

import (
	"net/netip"
	"slices"

	"github.com/trackless-dns/trackless/iptables/owner"
)

// Claims tell who on a node asks for a listen address, and with it for all that
// belongs to the address: the link that carries it, its local route, its accept
// rules, its pair of the failover table. Whoever takes something away, or says that
// it may be taken away, asks them: an instance that leaves, one that stays and
// finds what another left, `trackless rules`. The zero value is a node on which
// nobody asks for anything.
type Claims struct {
	instances []Instance
	servers   []netip.Addr
}

// NewClaims returns the claims of instances, of which those that are certainly dead
// ask for nothing, and of servers: addresses at which others listen, such as
// Kubernetes' node-cache.
func NewClaims(instances []Instance, servers []netip.Addr) Claims {
	return Claims{
		instances: slices.DeleteFunc(slices.Clone(instances), func(i Instance) bool { return i.Owner.Life == owner.Dead }),
		servers:   servers,
	}
}

// Of says who asks for the address itself, in words that "is in use" may follow;
// nobody if it is empty.
func (c Claims) Of(a netip.Addr) string {
	if who := c.Instance(a); who != "" || !slices.Contains(c.servers, a) {
		return who
	}
	return "a DNS server that listens there and is no instance of Trackless"
}

// Instance is Of for what only an instance has a use for: rules. Rules that name no
// address, as those of a version to come may, ask for all of them.
func (c Claims) Instance(a netip.Addr) string {
	for _, i := range c.instances {
		if len(i.Listen) == 0 || slices.ContainsFunc(i.Listen, func(e Endpoint) bool { return e.Addr == a }) {
			return i.Name()
		}
	}
	return ""
}

// Any says who asks for anything; no instance does if it is empty.
func (c Claims) Any() string {
	for _, i := range c.instances {
		return i.Name()
	}
	return ""
}

// Serving returns those of the endpoints at which an instance listens as well.
func (c Claims) Serving(endpoints []Endpoint) []Endpoint {
	return slices.DeleteFunc(slices.Clone(endpoints), func(e Endpoint) bool {
		return !slices.ContainsFunc(c.instances, func(i Instance) bool { return slices.Contains(i.Listen, e) })
	})
}
