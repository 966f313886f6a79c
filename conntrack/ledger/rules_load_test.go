//go:build load

package ledger

import (
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// event is one packet or end of the test's flow, at a time since its start.
type event struct {
	at   time.Duration
	what func(*Ledger, Flow)
}

func query(at time.Duration) event {
	return event{at, func(l *Ledger, f Flow) { l.Query(f) }}
}

func response(at time.Duration) event { return event{at, (*Ledger).Response} }

func fin(at time.Duration) event { return event{at, (*Ledger).Close} }

func rst(at time.Duration) event { return event{at, (*Ledger).Reset} }

// mute is a TCP connection without a query that ends.
func mute(at time.Duration) event {
	return event{at, func(l *Ledger, f Flow) { l.end(f, packetQuery|packetFIN) }}
}

func answered(at time.Duration) event {
	return event{at, func(l *Ledger, f Flow) { l.Answered(f) }}
}

func TestExpiry(t *testing.T) {
	for _, tt := range []struct {
		name     string
		proto    uint8
		timeouts Timeouts
		events   []event
		expires  time.Duration // when the entry is first not listed any more
		flows    uint64
		followed bool // ends of TCP connections are reported
	}{
		{
			name: "UDP, no response", proto: unix.IPPROTO_UDP,
			events:  []event{query(0)},
			expires: 30 * s, flows: 1,
		},
		{
			name: "UDP, a response restarts the short timeout", proto: unix.IPPROTO_UDP,
			events:  []event{query(0), response(20 * ms)},
			expires: 30*s + 20*ms, flows: 1,
		},
		{
			name: "UDP, the first response does not make a stream however late", proto: unix.IPPROTO_UDP,
			events:  []event{query(0), response(5 * s)},
			expires: 35 * s, flows: 1,
		},
		{
			name: "UDP, A and AAAA from one socket", proto: unix.IPPROTO_UDP,
			events:  []event{query(0), query(0), response(1 * ms), response(30 * ms)},
			expires: 30*s + 30*ms, flows: 1,
		},
		{
			name: "UDP, AAAA answered after two seconds is a stream", proto: unix.IPPROTO_UDP,
			events:  []event{query(0), query(0), response(1 * ms), response(2001 * ms)},
			expires: 122*s + 1*ms, flows: 1,
		},
		{
			name: "UDP, retransmits before a response keep the short timeout", proto: unix.IPPROTO_UDP,
			events:  []event{query(0), query(5 * s), query(10 * s)},
			expires: 40 * s, flows: 1,
		},
		{
			name: "UDP, retransmit after the response was lost", proto: unix.IPPROTO_UDP,
			events:  []event{query(0), response(1 * ms), query(5 * s)},
			expires: 125 * s, flows: 1,
		},
		{
			name: "UDP, port reused within two seconds", proto: unix.IPPROTO_UDP,
			events:  []event{query(0), response(0), query(2 * s), response(2 * s)},
			expires: 32 * s, flows: 1,
		},
		{
			name: "UDP, port reused after two seconds", proto: unix.IPPROTO_UDP,
			events:  []event{query(0), response(0), query(2001 * ms)},
			expires: 122*s + 1*ms, flows: 1,
		},
		{
			name: "UDP, port reused in the last millisecond", proto: unix.IPPROTO_UDP,
			events:  []event{query(0), response(0), query(29_999 * ms)},
			expires: 149_999 * ms, flows: 1,
		},
		{
			name: "UDP, port reused as the entry expires is a new entry", proto: unix.IPPROTO_UDP,
			events:  []event{query(0), response(0), query(30 * s), response(30 * s)},
			expires: 60 * s, flows: 2,
		},
		{
			name: "UDP, a stream stays one as long as it is used", proto: unix.IPPROTO_UDP,
			events:  []event{query(0), response(0), query(20 * s), response(20 * s), query(139 * s), response(139 * s)},
			expires: 259 * s, flows: 1,
		},
		{
			name: "UDP, a response after expiry makes an entry of its own", proto: unix.IPPROTO_UDP,
			events:  []event{query(0), response(31 * s)},
			expires: 61 * s, flows: 2,
		},
		{
			name: "UDP, a query is the reply to such an entry", proto: unix.IPPROTO_UDP,
			events:  []event{response(0), query(3 * s), query(4 * s)},
			expires: 124 * s, flows: 1,
		},
		{
			name: "UDP, answered at once", proto: unix.IPPROTO_UDP,
			events:  []event{answered(0), answered(2001 * ms)},
			expires: 122*s + 1*ms, flows: 1,
		},
		{
			name: "UDP, other timeouts", proto: unix.IPPROTO_UDP,
			timeouts: Timeouts{UDP: 10 * s, UDPStream: 180 * s},
			events:   []event{query(0), response(0), query(9 * s)},
			expires:  189 * s, flows: 1,
		},
		{
			name: "UDP, closing means nothing", proto: unix.IPPROTO_UDP,
			events:  []event{query(0), fin(1 * s), rst(2 * s)},
			expires: 30 * s, flows: 1,
		},
		{
			name: "TCP, one question: closed after the answer", proto: unix.IPPROTO_TCP,
			events:  []event{query(0), response(100 * ms)},
			expires: 120*s + 100*ms, flows: 1,
		},
		{
			name: "TCP, pipelined A and AAAA", proto: unix.IPPROTO_TCP,
			events:  []event{query(0), query(1 * ms), response(5 * ms), response(900 * ms)},
			expires: 120*s + 900*ms, flows: 1,
		},
		{
			name: "TCP, kept for later queries: closed by the listener when idle", proto: unix.IPPROTO_TCP,
			events:  []event{query(0), response(0), query(3 * s), response(3 * s)},
			expires: 3*s + 10*s + 120*s, flows: 1,
		},
		{
			name: "TCP, a slow answer does not make a connection kept", proto: unix.IPPROTO_TCP,
			events:  []event{query(0), response(5 * s)},
			expires: 125 * s, flows: 1,
		},
		{
			name: "TCP, port reused after the connection must have ended", proto: unix.IPPROTO_TCP,
			events:  []event{query(0), response(0), query(10_001 * ms), response(10_001 * ms)},
			expires: 130*s + 1*ms, flows: 2,
		},
		{
			name: "TCP, the same for one that was kept", proto: unix.IPPROTO_TCP,
			events:  []event{query(0), query(9 * s), query(19 * s), query(29_001 * ms)},
			expires: 149*s + 1*ms, flows: 2,
		},
		{
			name: "TCP, closed", proto: unix.IPPROTO_TCP,
			events:  []event{query(0), response(0), query(9 * s), response(9 * s), fin(10 * s)},
			expires: 130 * s, flows: 1,
		},
		{
			name: "TCP, a response that finds its connection closed", proto: unix.IPPROTO_TCP,
			events:  []event{query(0), fin(1 * s), response(2 * s)},
			expires: 121 * s, flows: 1,
		},
		{
			name: "TCP, reset", proto: unix.IPPROTO_TCP,
			events:  []event{query(0), response(0), rst(1 * s)},
			expires: 11 * s, flows: 1,
		},
		{
			name: "TCP, port reused after the close", proto: unix.IPPROTO_TCP,
			events:  []event{query(0), response(0), fin(1 * s), query(2 * s), response(2 * s)},
			expires: 122 * s, flows: 2,
		},
		{
			name: "TCP, other timeouts", proto: unix.IPPROTO_TCP,
			timeouts: Timeouts{TCPTimeWait: 30 * s, TCPClose: 3 * s},
			events:   []event{query(0), response(0)},
			expires:  30 * s, flows: 1,
		},
		{
			name: "TCP followed, closed after the answer", proto: unix.IPPROTO_TCP, followed: true,
			events:  []event{query(0), response(0), fin(1 * ms)},
			expires: 120*s + 1*ms, flows: 1,
		},
		{
			name: "TCP followed, open until it is said to be closed", proto: unix.IPPROTO_TCP, followed: true,
			events:  []event{query(0), response(0), fin(125 * s)},
			expires: 245 * s, flows: 1,
		},
		{
			name: "TCP followed, the report was lost", proto: unix.IPPROTO_TCP, followed: true,
			events:  []event{query(0), response(0)},
			expires: 130 * s, flows: 1,
		},
		{
			name: "TCP followed, silence is no end", proto: unix.IPPROTO_TCP, followed: true,
			events:  []event{query(0), response(0), query(30 * s), response(30 * s), fin(31 * s)},
			expires: 151 * s, flows: 1,
		},
		{
			name: "TCP followed, no query", proto: unix.IPPROTO_TCP, followed: true,
			events:  []event{mute(1 * s)},
			expires: 121 * s, flows: 1,
		},
		{
			name: "TCP followed, no query from a port that comes back", proto: unix.IPPROTO_TCP, followed: true,
			events:  []event{query(0), response(0), fin(0), mute(10 * s)},
			expires: 130 * s, flows: 2,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, addrs := range [][2]string{
				{"10.244.0.11:40000", "10.96.0.10:53"},
				{"[fd00:244::b]:40000", "[fd00:10:96::a]:53"},
			} {
				clock := newClock()
				start := clock.now
				l := New(Config{Timeouts: tt.timeouts, Now: clock.Now})
				l.followed(tt.followed)
				f := Flow{tt.proto, netip.MustParseAddrPort(addrs[0]), netip.MustParseAddrPort(addrs[1])}
				for _, e := range tt.events {
					clock.now = start.Add(e.at)
					e.what(l, f)
				}
				clock.now = start.Add(tt.expires - ms)
				if got := l.Entries().Total(); got != 1 {
					t.Errorf("%s: %d entries 1 ms before %v, want 1", addrs[0], got, tt.expires)
				}
				clock.now = start.Add(tt.expires)
				if got := l.Entries().Total(); got != 0 {
					t.Errorf("%s: %d entries at %v, want 0", addrs[0], got, tt.expires)
				}
				if got := l.Flows().Total(); got != tt.flows {
					t.Errorf("%s: %d flows, want %d", addrs[0], got, tt.flows)
				}
			}
		})
	}
}
