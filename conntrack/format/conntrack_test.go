package format_test

import (
	"net/netip"
	"time"

	"github.com/trackless-dns/trackless/conntrack"
)

// zoo returns an entry of every kind that can be put into the table.
func zoo() []*conntrack.Entry {
	addr := netip.MustParseAddr
	port := uint16(20000)
	flow := func(p conntrack.Protocol, src, dst string, change ...func(*conntrack.Entry)) *conntrack.Entry {
		port++
		e := &conntrack.Entry{Timeout: 500 * time.Second}
		e.Original = conntrack.Tuple{Src: addr(src), Dst: addr(dst), Proto: p}
		if p.HasPorts() {
			e.Original.SrcPort, e.Original.DstPort = port, 8080
		}
		if p.IsICMP() {
			e.Original.ICMPID, e.Original.ICMPType = port, 8
			if p == conntrack.ICMPv6 {
				e.Original.ICMPType = 128
			}
		}
		e.Reply = e.Original.Mirror()
		for _, c := range change {
			c(e)
		}
		return e
	}
	v4 := func(p conntrack.Protocol, change ...func(*conntrack.Entry)) *conntrack.Entry {
		return flow(p, "10.1.2.3", "10.96.0.10", change...)
	}
	v6 := func(p conntrack.Protocol, change ...func(*conntrack.Entry)) *conntrack.Entry {
		return flow(p, "fd00::1:2", "2001:db8::53", change...)
	}
	status := func(s conntrack.Status) func(*conntrack.Entry) {
		return func(e *conntrack.Entry) { e.Status = s }
	}
	const both = conntrack.StatusSeenReply | conntrack.StatusAssured

	var list []*conntrack.Entry
	for s := conntrack.TCPNone; s <= conntrack.TCPSynSent2; s++ {
		list = append(list, v4(conntrack.TCP, status(both), func(e *conntrack.Entry) { e.TCP.State = s }),
			v6(conntrack.TCP, func(e *conntrack.Entry) { e.TCP.State = s }))
	}
	for s := conntrack.SCTPNone; s <= conntrack.SCTPHeartbeatSent; s++ {
		list = append(list, v4(conntrack.SCTP, status(both), func(e *conntrack.Entry) {
			e.SCTP = conntrack.SCTPInfo{State: s, OriginalVTag: 1, ReplyVTag: 2}
		}))
	}
	for _, p := range []conntrack.Protocol{conntrack.UDP, conntrack.UDPLite, conntrack.GRE, 50} {
		list = append(list, v4(p), v6(p, status(conntrack.StatusSeenReply)), v4(p, func(e *conntrack.Entry) {
			e.Original.SrcPort, e.Original.DstPort = 0, 0
			e.Original.Src = addr("10.9.9.9")
			if p.HasPorts() {
				e.Original.SrcPort, e.Original.DstPort = 61000, 53
			}
			e.Reply = e.Original.Mirror()
			e.Status = both
		}))
	}
	return append(list,
		v4(conntrack.ICMP), v6(conntrack.ICMPv6),
		v4(conntrack.ICMP, func(e *conntrack.Entry) { e.Original.ICMPType = 13; e.Reply = e.Original.Mirror() }),
		v4(conntrack.UDP, func(e *conntrack.Entry) { e.Mark = 99 }),
		v4(conntrack.UDP, func(e *conntrack.Entry) { e.Mark = 1<<32 - 1; e.Zone = 9 }),
		v4(conntrack.UDP, func(e *conntrack.Entry) { e.Original.Zone = 4 }),
		v4(conntrack.UDP, func(e *conntrack.Entry) { e.Reply.Zone = 5 }),
		v4(conntrack.UDP, func(e *conntrack.Entry) { e.Labels = [16]byte{1, 2, 3} }),
		v4(conntrack.TCP, status(both), func(e *conntrack.Entry) {
			e.Original.DstPort, e.Reply.SrcPort = 21, 21
			e.Helper, e.TCP.State = "ftp", conntrack.TCPEstablished
		}),
		v4(conntrack.UDP, func(e *conntrack.Entry) { // DNAT
			e.Reply.Src, e.Reply.SrcPort = addr("10.244.0.53"), 5353
		}),
		v4(conntrack.UDP, func(e *conntrack.Entry) { // SNAT
			e.Reply.Dst, e.Reply.DstPort = addr("192.0.2.1"), 171
		}),
		v6(conntrack.TCP, status(both), func(e *conntrack.Entry) { // both
			e.Reply.Src, e.Reply.SrcPort = addr("fd00::53"), 5353
			e.Reply.Dst, e.Reply.DstPort = addr("fd00::ffff"), 1024
			e.TCP.State = conntrack.TCPTimeWait
		}),
		flow(conntrack.UDP, "::1.2.3.4", "::ffff:0:1.2.3.4"),
		flow(conntrack.UDP, "::", "1::"),
		flow(conntrack.UDP, "::1", "1:0:0:2::3"),
		flow(conntrack.UDP, "::ffff:10.0.0.1", "::ffff:10.0.0.2"),
		flow(conntrack.UDP, "::5", "2001:db8:0:1:1:1:1:1"),
	)
}
