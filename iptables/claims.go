package iptables

import (
	"net/netip"
	"slices"

	"github.com/trackless-dns/trackless/iptables/owner"
)

// Claims tell who on a node uses a listen address. Whoever uses it also uses what
// belongs to it: the link that carries it, its local route, its accept rules, its
// pair of the failover table. Code that removes such a thing asks the claims first:
// an instance that stops, an instance that removes what a dead one left, and
// `trackless rules`. The zero value is a node on which nobody uses anything.
type Claims struct {
	instances []Instance
	servers   []netip.Addr
}

// NewClaims returns the claims of instances and of servers. Instances that are
// certainly dead use nothing. Servers are addresses at which other programs listen,
// such as Kubernetes' node-cache.
func NewClaims(instances []Instance, servers []netip.Addr) Claims {
	return Claims{
		instances: slices.DeleteFunc(slices.Clone(instances), func(i Instance) bool { return i.Owner.Life == owner.Dead }),
		servers:   servers,
	}
}

// Of names the user of the address itself, for a sentence that goes on with "is in
// use". Empty: nobody uses it.
func (c Claims) Of(a netip.Addr) string {
	if who := c.Instance(a); who != "" || !slices.Contains(c.servers, a) {
		return who
	}
	return "a DNS server that listens there and is no instance of Trackless"
}

// Instance is Of for rules, which only an instance uses. An instance whose rules name
// no address uses all addresses: it may be of a later version.
func (c Claims) Instance(a netip.Addr) string {
	for _, i := range c.instances {
		if len(i.Listen) == 0 || slices.ContainsFunc(i.Listen, func(e Endpoint) bool { return e.Addr == a }) {
			return i.Name()
		}
	}
	return ""
}

// Any names an instance that uses anything. Empty: there is none.
func (c Claims) Any() string {
	for _, i := range c.instances {
		return i.Name()
	}
	return ""
}

// Serving returns the endpoints at which an instance listens, too.
func (c Claims) Serving(endpoints []Endpoint) []Endpoint {
	return slices.DeleteFunc(slices.Clone(endpoints), func(e Endpoint) bool {
		return !slices.ContainsFunc(c.instances, func(i Instance) bool { return slices.Contains(i.Listen, e) })
	})
}

// Live reports whether an instance has queries to the address untracked now.
func (c Claims) Live(a netip.Addr) bool {
	return slices.ContainsFunc(c.instances, func(i Instance) bool {
		return slices.ContainsFunc(i.Live, func(e Endpoint) bool { return e.Addr == a })
	})
}
