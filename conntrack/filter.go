package conntrack

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// A PortRange is a range of ports, both ends included.
type PortRange struct{ First, Last uint16 }

// Contains reports whether port lies in the range.
func (r PortRange) Contains(port uint16) bool { return r.First <= port && port <= r.Last }

// A Filter selects entries: those for which everything that is set holds. The
// zero Filter selects all. Within a list, one member has to match.
//
// The kernel filters where it can, so that an unwanted entry is not even
// copied; on kernels that cannot, and for the rest, Dump decides. The answer is
// the same. The kernel decides family and mark (any that is still in
// use), protocol with single ports and IPv4 addresses (CTA_FILTER, since Linux
// 5.8), status bits (CTA_STATUS_MASK, since Linux 5.15) and zone (since Linux
// 6.8).
type Filter struct {
	Family Family

	Protocols []Protocol

	// Src and Dst match the addresses of the original tuple; ReplySrc and
	// ReplyDst those of the reply tuple, which under NAT are the real server
	// and the address it answers to.
	Src, Dst, ReplySrc, ReplyDst []netip.Prefix

	// Ends match the address of either end: the source or the destination of the original
	// tuple, or the source of the reply tuple, which is the real server.
	Ends []netip.Addr

	// SrcPorts and DstPorts match the ports of the original tuple. Entries of
	// protocols without ports do not match.
	SrcPorts, DstPorts []PortRange

	// States are names of states as Entry.State returns them, in any case.
	States []string

	// Status bits must be set, NotStatus bits clear.
	Status, NotStatus Status

	// Zone is the zone of either direction, if not nil. Where the rules give one
	// direction a zone, the other one is in the default zone, 0.
	Zone *uint16

	// Mark, if not nil, must equal the entry's mark under MarkMask (0 means
	// all bits).
	Mark     *uint32
	MarkMask uint32

	// NAT, if not nil, lists the kinds that match.
	NAT []NATKind

	// DNS selects the flows for which Entry.IsDNS holds.
	DNS bool
}

// Validate returns an error that names the contradiction if no entry can ever
// match f.
func (f *Filter) Validate() error {
	if f.Status&f.NotStatus != 0 {
		return fmt.Errorf("this filter cannot match: status %s is asked to be both set and clear", f.Status&f.NotStatus)
	}
	for _, list := range []struct {
		name     string
		prefixes []netip.Prefix
	}{{"source", f.Src}, {"destination", f.Dst}, {"reply source", f.ReplySrc}, {"reply destination", f.ReplyDst}} {
		if f.Family != FamilyAny && len(list.prefixes) > 0 && !slices.ContainsFunc(list.prefixes, func(p netip.Prefix) bool {
			return prefixFamily(p) == f.Family
		}) {
			return fmt.Errorf("this filter cannot match: family is %s but no %s address is", f.Family, list.name)
		}
	}
	if len(f.Src) > 0 && len(f.Dst) > 0 && !slices.ContainsFunc(f.Src, func(s netip.Prefix) bool {
		return slices.ContainsFunc(f.Dst, func(d netip.Prefix) bool { return prefixFamily(s) == prefixFamily(d) })
	}) {
		return errors.New("this filter cannot match: source and destination are of different families")
	}
	for _, r := range slices.Concat(f.SrcPorts, f.DstPorts) {
		if r.First > r.Last {
			return fmt.Errorf("this filter cannot match: port range %d-%d is empty", r.First, r.Last)
		}
	}
	if f.MarkMask != 0 && f.Mark != nil && *f.Mark&^f.MarkMask != 0 {
		return fmt.Errorf("this filter cannot match: mark %#x has bits outside its mask %#x", *f.Mark, f.MarkMask)
	}
	return errors.Join(f.validateProtocols(), f.validateStates())
}

func (f *Filter) validateProtocols() error {
	if len(f.Protocols) == 0 {
		return nil
	}
	if (len(f.SrcPorts) > 0 || len(f.DstPorts) > 0) && !slices.ContainsFunc(f.Protocols, Protocol.HasPorts) {
		return fmt.Errorf("this filter cannot match: %s has no ports", joinProtocols(f.Protocols))
	}
	if f.DNS && !slices.Contains(f.Protocols, UDP) && !slices.Contains(f.Protocols, TCP) {
		return fmt.Errorf("this filter cannot match: DNS is not carried by %s", joinProtocols(f.Protocols))
	}
	if len(f.Protocols) == 1 && (f.Family == FamilyIPv4 && f.Protocols[0] == ICMPv6 || f.Family == FamilyIPv6 && f.Protocols[0] == ICMP) {
		return fmt.Errorf("this filter cannot match: %s is not tracked over %s", f.Protocols[0], f.Family)
	}
	return nil
}

func (f *Filter) validateStates() error {
	for _, state := range f.States {
		of := stateProtocols(state)
		if of == nil {
			return fmt.Errorf("no protocol has a state %q; those of TCP are %s, of SCTP %s, of all others %s, %s and %s",
				state, strings.Join(tcpStateNames[1:], " "), strings.Join(sctpStateNames[1:], " "),
				StateUnreplied, StateReplied, StateStream)
		}
		if len(f.Protocols) > 0 && !slices.ContainsFunc(f.Protocols, of) {
			return fmt.Errorf("this filter cannot match: %s has no state %s", joinProtocols(f.Protocols), strings.ToUpper(state))
		}
	}
	return nil
}

// stateProtocols returns a predicate for the protocols that have a state of
// the given name, nil if none has.
func stateProtocols(state string) func(Protocol) bool {
	is := func(known string) bool { return strings.EqualFold(known, state) }
	tcp := slices.ContainsFunc(tcpStateNames[:], is)
	sctp := slices.ContainsFunc(sctpStateNames[:], is)
	dccp := slices.ContainsFunc(dccpStateNames[:], is)
	other := is(StateUnreplied) || is(StateReplied) || is(StateStream)
	if !tcp && !sctp && !dccp && !other {
		return nil
	}
	return func(p Protocol) bool {
		switch p {
		case TCP:
			return tcp
		case SCTP:
			return sctp
		case DCCP:
			return dccp
		}
		return other
	}
}

func joinProtocols(ps []Protocol) string {
	names := make([]string, len(ps))
	for i, p := range ps {
		names[i] = p.String()
	}
	return strings.Join(names, " or ")
}

// Match reports whether f selects e. To match many entries against one filter
// use Matcher.
func (f *Filter) Match(e *Entry) bool { return f.matcher()(e) }

// Matcher returns a function that reports whether f selects an entry.
func (f *Filter) Matcher() func(*Entry) bool { return f.matcher() }

// matcher collects the tests that f needs, so that an unset field costs nothing.
func (f *Filter) matcher() func(*Entry) bool {
	var tests []func(*Entry) bool
	add := func(needed bool, test func(*Entry) bool) {
		if needed {
			tests = append(tests, test)
		}
	}
	add(f.Family != FamilyAny, func(e *Entry) bool { return e.Family() == f.Family })
	add(len(f.Protocols) > 0, func(e *Entry) bool { return slices.Contains(f.Protocols, e.Original.Proto) })
	add(len(f.Src) > 0, func(e *Entry) bool { return containsAddr(f.Src, e.Original.Src) })
	add(len(f.Dst) > 0, func(e *Entry) bool { return containsAddr(f.Dst, e.Original.Dst) })
	add(len(f.ReplySrc) > 0, func(e *Entry) bool { return containsAddr(f.ReplySrc, e.Reply.Src) })
	add(len(f.ReplyDst) > 0, func(e *Entry) bool { return containsAddr(f.ReplyDst, e.Reply.Dst) })
	if len(f.Ends) > 0 {
		ends := make(map[netip.Addr]bool, len(f.Ends))
		for _, a := range f.Ends {
			ends[a] = true
		}
		add(true, func(e *Entry) bool { return ends[e.Original.Src] || ends[e.Original.Dst] || ends[e.Reply.Src] })
	}
	add(len(f.SrcPorts) > 0, func(e *Entry) bool {
		return e.Original.Proto.HasPorts() && containsPort(f.SrcPorts, e.Original.SrcPort)
	})
	add(len(f.DstPorts) > 0, func(e *Entry) bool {
		return e.Original.Proto.HasPorts() && containsPort(f.DstPorts, e.Original.DstPort)
	})
	add(f.Status != 0, func(e *Entry) bool { return e.Status&f.Status == f.Status })
	add(f.NotStatus != 0, func(e *Entry) bool { return e.Status&f.NotStatus == 0 })
	add(f.Zone != nil, func(e *Entry) bool { return e.OriginalZone() == *f.Zone || e.ReplyZone() == *f.Zone })
	add(f.Mark != nil, func(e *Entry) bool { return e.Mark&f.markMask() == *f.Mark })
	add(len(f.NAT) > 0, func(e *Entry) bool { return slices.Contains(f.NAT, e.NAT()) })
	add(f.DNS, (*Entry).IsDNS)
	add(len(f.States) > 0, func(e *Entry) bool {
		state := e.State()
		return slices.ContainsFunc(f.States, func(s string) bool { return strings.EqualFold(s, state) })
	})
	return func(e *Entry) bool {
		for _, test := range tests {
			if !test(e) {
				return false
			}
		}
		return true
	}
}

func (f *Filter) markMask() uint32 {
	if f.MarkMask == 0 {
		return ^uint32(0)
	}
	return f.MarkMask
}

func containsAddr(prefixes []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}

func containsPort(ranges []PortRange, port uint16) bool {
	return slices.ContainsFunc(ranges, func(r PortRange) bool { return r.Contains(port) })
}

func prefixFamily(p netip.Prefix) Family {
	if p.Addr().Is4() {
		return FamilyIPv4
	}
	return FamilyIPv6
}
