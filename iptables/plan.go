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

// String returns the name that nft and iptables use.
func (p Proto) String() string {
	switch p {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	}
	return fmt.Sprintf("proto-%d", uint8(p))
}

// Family is an IP version, named as in packet counters and metrics.
type Family uint8

// The families of one plan. One process and one table serve both.
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

// String returns "ipv4" or "ipv6".
func (f Family) String() string {
	if f == IPv4 {
		return "ipv4"
	}
	return "ipv6"
}

// Hook is a netfilter hook in which the rules stand: in prerouting and output at
// priority raw (-300), before conntrack (-200).
type Hook uint8

// Prerouting sees packets that arrive, from pods and over lo. Output sees packets
// that this node sends: its own queries and our responses. Input comes after the
// filter rules of all programs: a backend may count there what arrived.
const (
	Prerouting Hook = iota
	Output
	Input
)

// String returns the name that nft uses.
func (h Hook) String() string {
	switch h {
	case Output:
		return "output"
	case Input:
		return "input"
	}
	return "prerouting"
}

// Endpoint is one untracked transport address: DNS on port 53, or another local
// service such as the health port.
type Endpoint struct {
	Addr  netip.Addr
	Port  uint16
	Proto Proto
}

// String returns for example "udp 10.96.0.10:53" or "tcp [fd00::a]:53".
func (e Endpoint) String() string {
	return e.Proto.String() + " " + e.AddrPort().String()
}

// AddrPort returns the address and port without the protocol.
func (e Endpoint) AddrPort() netip.AddrPort { return netip.AddrPortFrom(e.Addr, e.Port) }

// Compare orders endpoints by family, address, port and protocol.
func (e Endpoint) Compare(o Endpoint) int {
	return cmp.Or(e.Addr.Compare(o.Addr), cmp.Compare(e.Port, o.Port), cmp.Compare(e.Proto, o.Proto))
}

// Plan says what is to be untracked. It is a pure value: two plans that ask for
// the same are equal. The zero Plan asks for nothing.
type Plan struct {
	// Link is the interface that carries the listen addresses. It is created as a
	// dummy; if the kernel has no dummy, the addresses go on lo. Empty: another
	// program manages the addresses, and they must be there.
	Link string

	// Listen are the endpoints on which DNS is served. Their addresses go on
	// the link, and they are attached once every one of them answers.
	Listen []Endpoint

	// Untrack are other local services on the listen addresses. They are untracked
	// with them, and not checked.
	Untrack []Endpoint

	// Lease is how long queries stay untracked after an answer of ours; 0
	// means until the process detaches or dies.
	Lease time.Duration

	// DryRun counts the packets that would be untracked, and untracks none.
	DryRun bool

	// Sources are the client prefixes that are served also over an uplink.
	// AnySource serves every client.
	Sources   []netip.Prefix
	AnySource bool

	// Uplinks are the devices that count as uplinks; empty means those with a
	// default route.
	Uplinks []string
}

// LinkConflictError says that two plans of one process name different links.
type LinkConflictError struct {
	Link, Other string
}

func (e *LinkConflictError) Error() string {
	return fmt.Sprintf("interface %s conflicts with interface %s: one process has one link", e.Other, e.Link)
}

// Merge joins the endpoints of two plans of one process into a normalized plan. The
// other settings are those of the second plan. Plans with different links give a
// [LinkConflictError].
func (p Plan) Merge(o Plan) (Plan, error) {
	if len(p.Listen) > 0 && len(o.Listen) > 0 && p.Link != o.Link {
		return Plan{}, &LinkConflictError{Link: p.LinkName(), Other: o.LinkName()}
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
// Untrack has no endpoint that Listen has.
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

// Validate returns an error for the first endpoint that cannot be in a rule.
func (p Plan) Validate() error {
	if len(p.Listen) == 0 {
		return fmt.Errorf("no listen address: name one, or add a bind directive")
	}
	for _, e := range p.Endpoints() {
		switch {
		case !e.Addr.IsValid():
			return fmt.Errorf("%s: not an IP address", e)
		case e.Addr.IsUnspecified():
			return fmt.Errorf("%s: the wildcard address cannot be a listen address; name the addresses that clients ask", e.Addr)
		case e.Addr.Is4In6():
			return fmt.Errorf("%s: write the IPv4 address %s", e.Addr, e.Addr.Unmap())
		case e.Addr.Zone() != "":
			return fmt.Errorf("%s: an IPv6 address with a zone cannot be put on %s; use a unique local address", e.Addr, p.LinkName())
		case e.Addr.Is6() && e.Addr.IsLinkLocalUnicast():
			return fmt.Errorf("%s: pods cannot reach an IPv6 link-local address of another link; use a unique local address, such as fd00:169:254:20::10", e.Addr)
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

// Endpoints returns all untracked endpoints: Listen, then Untrack.
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

// String prints the plan for logs and operators, one line per fact.
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

// LinkName returns the link for messages: "none" if the plan has no link.
func (p Plan) LinkName() string {
	if p.Link == "" {
		return "none"
	}
	return p.Link
}
