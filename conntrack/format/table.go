package format

import (
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/trackless-dns/trackless/conntrack"
)

// table writes aligned columns. It does not know the widest value before the end, so a
// column starts with a usual width and is as wide as the widest value so far.
type table struct {
	columns []column
	cell    []byte
	event   bool
}

type column struct {
	title string
	width int
	value func([]byte, *conntrack.Entry) []byte
}

func tableColumns() []column {
	return []column{
		{"PROTO", 6, appendProtocol},
		{"STATE", 11, func(b []byte, e *conntrack.Entry) []byte { return append(b, e.State()...) }},
		{"TIMEOUT", 8, appendTimeout},
		{"SOURCE", 21, func(b []byte, e *conntrack.Entry) []byte { return appendEndpoint(b, &e.Original, false) }},
		{"DESTINATION", 21, func(b []byte, e *conntrack.Entry) []byte { return appendEndpoint(b, &e.Original, true) }},
		{"NAT", 4, appendNAT},
		{"TO", 0, appendTranslation},
	}
}

func wideColumns() []column {
	columns := tableColumns()
	columns[len(columns)-1].width = 21
	return append(columns,
		column{"STATUS", 8, func(b []byte, e *conntrack.Entry) []byte {
			return append(b, strings.Join(flags(e), ",")...)
		}},
		column{"MARK", 6, func(b []byte, e *conntrack.Entry) []byte {
			if e.Mark == 0 {
				return append(b, '-')
			}
			return strconv.AppendUint(append(b, "0x"...), uint64(e.Mark), 16)
		}},
		column{"ZONE", 4, appendZone},
		column{"HELPER", 6, func(b []byte, e *conntrack.Entry) []byte { return append(b, orDash(e.Helper)...) }},
		column{"PACKETS", 11, func(b []byte, e *conntrack.Entry) []byte {
			return appendCounts(b, e, e.OriginalCounters.Packets, e.ReplyCounters.Packets)
		}},
		column{"BYTES", 13, func(b []byte, e *conntrack.Entry) []byte {
			return appendCounts(b, e, e.OriginalCounters.Bytes, e.ReplyCounters.Bytes)
		}},
		column{"ID", 0, func(b []byte, e *conntrack.Entry) []byte { return strconv.AppendUint(b, uint64(e.ID), 10) }},
	)
}

func (t *table) begin(b []byte) []byte { return b }

func (t *table) end(b []byte, empty bool) []byte {
	if empty {
		b = append(b, "no entries\n"...)
	}
	return b
}

func (t *table) entry(b []byte, e *conntrack.Entry, event conntrack.EventType, first bool) []byte {
	if first {
		t.event = event != 0
		if t.event {
			b = appendPadRight(b, "EVENT", 8)
		}
		for i, c := range t.columns {
			b = appendPadRight(b, c.title, c.width)
			b = t.separate(b, i)
		}
	}
	if t.event {
		b = appendPadRight(b, event.String(), 8)
	}
	for i := range t.columns {
		c := &t.columns[i]
		t.cell = c.value(t.cell[:0], e)
		b = append(b, t.cell...)
		if c.width > 0 {
			c.width = max(c.width, len(t.cell))
			b = append(b, blanks[:min(c.width-len(t.cell), len(blanks))]...)
		}
		b = t.separate(b, i)
	}
	return b
}

func (t *table) separate(b []byte, i int) []byte {
	if i == len(t.columns)-1 {
		return append(b, '\n')
	}
	return append(b, "  "...)
}

func appendProtocol(b []byte, e *conntrack.Entry) []byte {
	return append(b, e.Original.Proto.String()...)
}

func appendTimeout(b []byte, e *conntrack.Entry) []byte {
	if !e.Has(conntrack.FieldTimeout) {
		return append(b, '-')
	}
	return appendDuration(b, e.Timeout)
}

// appendDuration writes whole seconds in at most two units: 4d23h, 1h5m, 29s.
func appendDuration(b []byte, d time.Duration) []byte {
	units := []struct {
		size time.Duration
		name byte
	}{{24 * time.Hour, 'd'}, {time.Hour, 'h'}, {time.Minute, 'm'}, {time.Second, 's'}}
	for i, u := range units {
		if d < u.size && u.name != 's' {
			continue
		}
		b = append(strconv.AppendInt(b, int64(d/u.size), 10), u.name)
		if i+1 < len(units) {
			if rest := d % u.size / units[i+1].size; rest > 0 {
				b = append(strconv.AppendInt(b, int64(rest), 10), units[i+1].name)
			}
		}
		break
	}
	return b
}

func appendEndpoint(b []byte, t *conntrack.Tuple, destination bool) []byte {
	addr, port := t.Src, t.SrcPort
	if destination {
		addr, port = t.Dst, t.DstPort
	}
	switch {
	case t.Proto.HasPorts():
		return netip.AddrPortFrom(addr, port).AppendTo(b)
	case t.Proto.IsICMP() && destination:
		b = append(addr.AppendTo(b), " type "...)
		return strconv.AppendUint(b, uint64(t.ICMPType), 10)
	case t.Proto.IsICMP():
		b = append(addr.AppendTo(b), " id "...)
		return strconv.AppendUint(b, uint64(t.ICMPID), 10)
	}
	return addr.AppendTo(b)
}

func appendNAT(b []byte, e *conntrack.Entry) []byte {
	if e.NAT() == conntrack.NATNone {
		return append(b, '-')
	}
	return append(b, e.NAT().String()...)
}

// appendTranslation appends the addresses that NAT has changed: the server that answers, and
// after "as" the client's address as the server sees it.
func appendTranslation(b []byte, e *conntrack.Entry) []byte {
	empty := true
	if e.NAT()&conntrack.NATDestination != 0 {
		b = appendEndpoint(b, &e.Reply, false)
		empty = false
	}
	if e.NAT()&conntrack.NATSource != 0 {
		if !empty {
			b = append(b, ' ')
		}
		b = append(b, "as "...)
		b = appendEndpoint(b, &e.Reply, true)
		empty = false
	}
	if empty {
		b = append(b, '-')
	}
	return b
}

func appendZone(b []byte, e *conntrack.Entry) []byte {
	switch {
	case e.Has(conntrack.FieldOriginalZone):
		return strconv.AppendUint(append(b, "orig "...), uint64(e.Original.Zone), 10)
	case e.Has(conntrack.FieldReplyZone):
		return strconv.AppendUint(append(b, "reply "...), uint64(e.Reply.Zone), 10)
	case e.Zone != 0:
		return strconv.AppendUint(b, uint64(e.Zone), 10)
	}
	return append(b, '-')
}

func appendCounts(b []byte, e *conntrack.Entry, original, reply uint64) []byte {
	if !e.Has(conntrack.FieldOriginalCount) {
		return append(b, '-')
	}
	b = strconv.AppendUint(b, original, 10)
	b = append(b, '/')
	return strconv.AppendUint(b, reply, 10)
}

// flags returns the status bits that are special about an entry. It leaves out the bits
// that every entry has.
func flags(e *conntrack.Entry) []string {
	if e.Status&conntrack.StatusSeenReply == 0 {
		return append([]string{"UNREPLIED"}, statusNames(e.Status&notable)...)
	}
	if e.Status&notable == 0 {
		return []string{"-"}
	}
	return statusNames(e.Status & notable)
}

const notable = conntrack.StatusExpected | conntrack.StatusAssured | conntrack.StatusDying |
	conntrack.StatusFixedTimeout | conntrack.StatusOffload | conntrack.StatusHWOffload

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
