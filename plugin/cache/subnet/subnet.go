// Package subnet reads the client subnet option of EDNS (RFC 7871).
package subnet

import (
	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// Bit returns the bit of the key for the client subnet option of a query, or for a
// query without one.
func Bit(o *dns.EDNS0_SUBNET) wire.Bits {
	switch {
	case o == nil:
		return 0
	case o.SourceNetmask == 0:
		return wire.NoSubnet
	}
	return wire.Subnet
}

// Of returns the client subnet option of m, or nil.
func Of(m *dns.Msg) *dns.EDNS0_SUBNET {
	opt := m.IsEdns0()
	if opt == nil {
		return nil
	}
	for _, o := range opt.Option {
		if ecs, ok := o.(*dns.EDNS0_SUBNET); ok {
			return ecs
		}
	}
	return nil
}

// ForAll reports whether the response says that it is the same for the clients
// of all networks. A response without the option does not: caches, CoreDNS's too, leave
// the option out of a response that was made for one network.
func ForAll(m *dns.Msg) bool {
	ecs := Of(m)
	return ecs != nil && ecs.SourceScope == 0
}

// ForOne reports whether the response is for clients of one network only
// (RFC 7871 section 7.3.1: a scope of 0 is for all).
func ForOne(m *dns.Msg) bool {
	ecs := Of(m)
	return ecs != nil && ecs.SourceScope != 0
}
