package iptables

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Proto is a transport protocol by its IANA number, as it stands in the IPv4
// protocol field and the IPv6 next header field.
type Proto uint8

// The transports of DNS.
const (
	TCP Proto = 6
	UDP Proto = 17
)

// String gives the name nft and iptables use.
func (p Proto) String() string {
	switch p {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	}
	return fmt.Sprintf("proto-%d", uint8(p))
}

// Family is an IP version as packet counters and metrics name it.
type Family uint8

// The families of one plan; both live in one process and one table.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// FamilyOf returns the family of an address. IPv4-mapped IPv6 addresses are
// IPv6 here, since that is what the packet carries; plans never hold them.
func FamilyOf(a netip.Addr) Family {
	if a.Is4() {
		return IPv4
	}
	return IPv6
}

// String gives "ipv4" or "ipv6".
func (f Family) String() string {
	if f == IPv4 {
		return "ipv4"
	}
	return "ipv6"
}

// Hook is a netfilter hook in which the rules stand: in prerouting and output at
// priority raw (-300), before conntrack (-200).
type Hook uint8

// Prerouting sees what arrives, from pods and over lo; Output sees what this
// node sends: its own queries and our responses. In Input, behind everybody's
// filter rules, a backend may see what has arrived.
const (
	Prerouting Hook = iota
	Output
	Input
)

// String gives the name nft uses.
func (h Hook) String() string {
	switch h {
	case Output:
		return "output"
	case Input:
		return "input"
	}
	return "prerouting"
}

// Endpoint is one transport address that is untracked: DNS on port 53, or a
// further local service such as the health port.
type Endpoint struct {
	Addr  netip.Addr
	Port  uint16
	Proto Proto
}

// String gives for example "udp 10.96.0.10:53" or "tcp [fd00::a]:53".
func (e Endpoint) String() string {
	return e.Proto.String() + " " + e.AddrPort().String()
}

// AddrPort returns the address and port without the protocol.
func (e Endpoint) AddrPort() netip.AddrPort { return netip.AddrPortFrom(e.Addr, e.Port) }

// Compare orders endpoints by family, address, port and protocol.
func (e Endpoint) Compare(o Endpoint) int {
	return cmp.Or(e.Addr.Compare(o.Addr), cmp.Compare(e.Port, o.Port), cmp.Compare(e.Proto, o.Proto))
}

// Plan says what has to be untracked, as a pure value: two plans that ask for
// the same are equal. The zero Plan asks for nothing.
type Plan struct {
	// Link is the interface that carries the listen addresses. It is created
	// as a dummy, or, where the kernel has no dummy, the addresses go on lo.
	// Empty: the addresses are managed by someone else and must be there.
	Link string

	// Listen are the endpoints on which DNS is served. Their addresses go on
	// the link, and they are attached once every one of them answers.
	Listen []Endpoint

	// Untrack are further local services on the listen addresses that are
	// untracked with them and that nobody checks.
	Untrack []Endpoint

	// Lease is how long queries stay untracked after an answer of ours; 0
	// means until the process detaches or dies.
	Lease time.Duration

	// DryRun counts what would be untracked and untracks nothing.
	DryRun bool

	// Sources are the prefixes that are served although an uplink brings
	// them. AnySource serves everybody.
	Sources   []netip.Prefix
	AnySource bool

	// Uplinks are the devices that count as uplinks; empty means those with a
	// default route.
	Uplinks []string
}

// Merge joins the endpoints of two plans of one process into a normalized plan,
// whose other settings are those of the second. Plans that name different links
// cannot be joined.
func (p Plan) Merge(o Plan) (Plan, error) {
	if len(p.Listen) > 0 && len(o.Listen) > 0 && p.Link != o.Link {
		return Plan{}, fmt.Errorf("interface %s conflicts with interface %s: one process has one link", o.LinkName(), p.LinkName())
	}
	link := p.Link
	if len(p.Listen) == 0 {
		link = o.Link
	}
	merged := o
	merged.Link = link
	merged.Listen = slices.Concat(p.Listen, o.Listen)
	merged.Untrack = slices.Concat(p.Untrack, o.Untrack)
	return merged.Normalize(), nil
}

// Normalize returns the plan with its endpoints sorted and without duplicates.
// An endpoint that is served is not listed as untracked again.
func (p Plan) Normalize() Plan {
	p.Listen = sortedUnique(p.Listen)
	p.Untrack = slices.DeleteFunc(sortedUnique(p.Untrack), func(e Endpoint) bool {
		_, served := slices.BinarySearchFunc(p.Listen, e, Endpoint.Compare)
		return served
	})
	return p
}

func sortedUnique(in []Endpoint) []Endpoint {
	out := slices.Clone(in)
	slices.SortFunc(out, Endpoint.Compare)
	return slices.Compact(out)
}

// Validate reports the first endpoint that no rule can be made for.
func (p Plan) Validate() error {
	if len(p.Listen) == 0 {
		return fmt.Errorf("no listen address: name one, or add a bind directive")
	}
	for _, e := range p.Endpoints() {
		switch {
		case !e.Addr.IsValid():
			return fmt.Errorf("%s: not an IP address", e)
		case e.Addr.IsUnspecified():
			return fmt.Errorf("%s: the wildcard address is no listen address of its own; name the addresses that clients ask", e.Addr)
		case e.Addr.Is4In6():
			return fmt.Errorf("%s: write the IPv4 address %s", e.Addr, e.Addr.Unmap())
		case e.Addr.Zone() != "":
			return fmt.Errorf("%s: an IPv6 address with a zone cannot be put on %s; use a unique local address", e.Addr, p.LinkName())
		case e.Addr.Is6() && e.Addr.IsLinkLocalUnicast():
			return fmt.Errorf("%s: an IPv6 link-local address is reached from its own link alone, and no pod is on that of the listen addresses; use a unique local address, such as fd00:169:254:20::10", e.Addr)
		case e.Addr.IsMulticast():
			return fmt.Errorf("%s: a multicast address cannot be a listen address", e.Addr)
		case e.Port == 0:
			return fmt.Errorf("%s: port 0 cannot be untracked", e)
		case e.Proto != UDP && e.Proto != TCP:
			return fmt.Errorf("%s: only udp and tcp can be untracked", e)
		}
	}
	return nil
}

// Endpoints returns everything that is untracked, served or not.
func (p Plan) Endpoints() []Endpoint { return slices.Concat(p.Listen, p.Untrack) }

// Addresses returns the distinct listen addresses in order.
func (p Plan) Addresses() []netip.Addr {
	addrs := make([]netip.Addr, 0, len(p.Listen))
	for _, e := range p.Listen {
		addrs = append(addrs, e.Addr)
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return slices.Compact(addrs)
}

// Hooks returns the hooks in which both directions are untracked.
func (p Plan) Hooks() []Hook { return []Hook{Prerouting, Output} }

// Equal reports whether two normalized plans ask for the same.
func (p Plan) Equal(o Plan) bool {
	return p.Link == o.Link && p.Lease == o.Lease && p.DryRun == o.DryRun && p.AnySource == o.AnySource &&
		slices.Equal(p.Listen, o.Listen) && slices.Equal(p.Untrack, o.Untrack) &&
		slices.Equal(p.Sources, o.Sources) && slices.Equal(p.Uplinks, o.Uplinks)
}

// String prints the plan for logs and for people, one line per fact.
func (p Plan) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "link     %s\n", p.LinkName())
	for _, a := range p.Addresses() {
		fmt.Fprintf(&b, "address  %s\n", a)
	}
	for _, h := range p.Hooks() {
		fmt.Fprintf(&b, "hook     %s, priority raw (-300)\n", h)
	}
	for _, e := range p.Listen {
		fmt.Fprintf(&b, "notrack  %s, queries and responses\n", e)
	}
	for _, e := range p.Untrack {
		fmt.Fprintf(&b, "notrack  %s, not served by us\n", e)
	}
	if p.Lease > 0 {
		fmt.Fprintf(&b, "lease    %s\n", p.Lease)
	}
	if p.DryRun {
		b.WriteString("dry-run  queries are counted, nothing is untracked\n")
	}
	for _, s := range p.Sources {
		fmt.Fprintf(&b, "source   %s\n", s)
	}
	for _, u := range p.Uplinks {
		fmt.Fprintf(&b, "uplink   %s\n", u)
	}
	return b.String()
}

// LinkName returns the link for people: "none" where the plan has none.
func (p Plan) LinkName() string {
	if p.Link == "" {
		return "none"
	}
	return p.Link
}
