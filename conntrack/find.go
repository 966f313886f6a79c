package conntrack

import (
	"errors"
	"fmt"
	"net/netip"
)

// Find returns the entry to which a packet with the tuple t belongs, in whatever
// zone it is; t.Zone is ignored. The default zone and those given are asked
// first, which takes one request each and finds either direction. The others are
// found by a dump, by their original tuple: the kernel walks its whole table and
// compares all but IPv6 addresses (since Linux 5.8). Without an entry the error
// satisfies errors.Is(err, ErrNotFound).
func (c *Conn) Find(t *Tuple, zones ...uint16) (Entry, error) {
	e, err := c.FindIn(t, append([]uint16{0}, zones...)...)
	if !errors.Is(err, ErrNotFound) {
		return e, err
	}
	prefix := func(a netip.Addr) []netip.Prefix { return []netip.Prefix{netip.PrefixFrom(a, a.BitLen())} }
	port := func(p uint16) []PortRange { return []PortRange{{First: p, Last: p}} }
	found := false
	if dumpErr := c.Dump(Filter{
		Family: t.Family(), Protocols: []Protocol{t.Proto},
		Src: prefix(t.Src), Dst: prefix(t.Dst), SrcPorts: port(t.SrcPort), DstPorts: port(t.DstPort),
	}, func(match *Entry) error {
		e, found = *match, true
		return nil
	}); dumpErr != nil && !found {
		return Entry{}, dumpErr
	}
	if !found {
		return Entry{}, opError(fmt.Sprintf("find %s %s -> %s in any zone", t.Proto, t.Source(), t.Destination()), ErrNotFound)
	}
	return e, nil
}

// FindIn is Find in these zones only, without a dump.
func (c *Conn) FindIn(t *Tuple, zones ...uint16) (Entry, error) {
	err := ErrNotFound
	for _, zone := range zones {
		in := *t
		in.Zone = zone
		var e Entry
		if e, err = c.Get(&in); !errors.Is(err, ErrNotFound) {
			return e, err
		}
	}
	return Entry{}, err
}

// OriginalZone returns the zone of the original direction: that of both, or its
// own where the rules assign zones by direction.
func (e *Entry) OriginalZone() uint16 {
	if e.Has(FieldOriginalZone) {
		return e.Original.Zone
	}
	return e.directionalZone()
}

// ReplyZone returns the zone of the reply direction.
func (e *Entry) ReplyZone() uint16 {
	if e.Has(FieldReplyZone) {
		return e.Reply.Zone
	}
	return e.directionalZone()
}

// directionalZone is that of a direction without one of its own: the zone of
// both, and the default zone where the other direction has one of its own.
func (e *Entry) directionalZone() uint16 {
	if e.Has(FieldOriginalZone) || e.Has(FieldReplyZone) {
		return 0
	}
	return e.Zone
}
