package ledger

import (
	"net/netip"
	"testing"
	"time"
)

// clock is a Config.Now that tests set.
type clock struct{ now time.Time }

func newClock() *clock { return &clock{time.Unix(1_700_000_000, 0)} }

func (c *clock) Now() time.Time          { return c.now }
func (c *clock) advance(d time.Duration) { c.now = c.now.Add(d) }

var testKeys = hashKeys{
	0x9e3779b97f4a7c15, 0xbf58476d1ce4e5b9, 0x94d049bb133111eb,
	0xd6e8feb86659fd93, 0xa0761d6478bd642f, 0xe7037ed1a0b428db,
	0x8ebc6af09c88c6e3,
}

const (
	ms = time.Millisecond
	s  = time.Second
)

func TestFlowIdentity(t *testing.T) {
	const a, b = "10.244.0.11:40000", "10.96.0.10:53"
	flow := func(proto uint8, client, server string) Flow {
		f := Flow{Proto: proto}
		f.Client, _ = netip.ParseAddrPort(client)
		f.Server, _ = netip.ParseAddrPort(server)
		return f
	}
	for _, tt := range []struct {
		name  string
		flows []Flow
		want  Counts
	}{
		{"the same twice", []Flow{flow(17, a, b), flow(17, a, b)}, Counts{UDP4: 1}},
		{"two source ports", []Flow{flow(17, a, b), flow(17, "10.244.0.11:40001", b)}, Counts{UDP4: 2}},
		{"two clients", []Flow{flow(17, a, b), flow(17, "10.244.0.12:40000", b)}, Counts{UDP4: 2}},
		{"two listen addresses", []Flow{flow(17, a, b), flow(17, a, "169.254.20.10:53")}, Counts{UDP4: 2}},
		{"two server ports", []Flow{flow(17, a, b), flow(17, a, "10.96.0.10:5353")}, Counts{UDP4: 2}},
		{"both protocols", []Flow{flow(17, a, b), flow(6, a, b)}, Counts{UDP4: 1, TCP4: 1}},
		{"IPv6", []Flow{flow(17, "[fd00::1]:1", "[fd00::2]:53"), flow(6, "[fd00::1]:1", "[fd00::2]:53")}, Counts{UDP6: 1, TCP6: 1}},
		{"as an IPv6 socket shows IPv4", []Flow{flow(17, a, b), flow(17, "[::ffff:10.244.0.11]:40000", "[::ffff:10.96.0.10]:53")}, Counts{UDP4: 1}},
		{"a zone is not of the tuple", []Flow{flow(17, "[fe80::1%eth0]:1", "[fe80::2]:53"), flow(17, "[fe80::1]:1", "[fe80::2]:53")}, Counts{UDP6: 1}},
		{"the node's own queries", []Flow{flow(17, "10.96.0.10:40000", b), flow(17, "127.0.0.1:40000", "127.0.0.1:53")}, Counts{UDP4: 2}},
		{"another protocol", []Flow{flow(132, a, b)}, Counts{}},
		{"no client", []Flow{flow(17, "", b)}, Counts{}},
		{"no server", []Flow{flow(17, a, "")}, Counts{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := New(Config{})
			for _, f := range tt.flows {
				l.Query(f)
				l.Response(f)
			}
			if got := l.Entries().Counts; got != tt.want {
				t.Errorf("entries %+v, want %+v", got, tt.want)
			}
			if got := l.Flows(); got != tt.want {
				t.Errorf("flows %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestSetTimeouts(t *testing.T) {
	clock := newClock()
	l := New(Config{Now: clock.Now})
	l.Query(benchFlow(1))
	l.SetTimeouts(Timeouts{UDP: 5 * s})
	l.Query(benchFlow(2))

	clock.advance(5 * s)
	if got := l.Entries().Total(); got != 1 {
		t.Errorf("%d entries after the new timeout, want that of before the change", got)
	}
	l.Query(benchFlow(1))
	clock.advance(5 * s)
	if got := l.Entries().Total(); got != 0 {
		t.Errorf("%d entries, want none: its last packet was under the new timeout", got)
	}
}

// An idle ledger must not take old expiries for new ones when 32 bits of milliseconds have
// wrapped.
func TestClockWraps(t *testing.T) {
	for _, pause := range []time.Duration{20 * 24 * time.Hour, 30 * 24 * time.Hour, 49 * 24 * time.Hour, 50*24*time.Hour - 10*s} {
		clock := newClock()
		l := New(Config{Now: clock.Now})
		for i := range uint32(1000) {
			l.Answered(benchFlow(i))
		}
		clock.advance(pause)
		if got := l.Entries().Total(); got != 0 {
			t.Errorf("%d entries after %v", got, pause)
		}
		for i := range uint32(1000) {
			l.Answered(benchFlow(i))
		}
		if got := l.Entries().Total(); got != 1000 {
			t.Errorf("%d entries after %v and 1000 more, want 1000", got, pause)
		}
		if got := l.Flows().Total(); got != 2000 {
			t.Errorf("%d flows after %v, want 2000", got, pause)
		}
	}
}

// A stream in use for longer than half the range of a slot's clock stays a stream.
func TestLongStream(t *testing.T) {
	clock := newClock()
	l := New(Config{Now: clock.Now, Timeouts: Timeouts{UDPStream: 5 * 24 * time.Hour}})
	l.Answered(benchFlow(1))
	clock.advance(20 * s)
	for range 12 {
		l.Answered(benchFlow(1))
		clock.advance(4 * 24 * time.Hour)
		if got := l.Entries().Total(); got != 1 {
			t.Fatalf("%d entries, want the stream", got)
		}
	}
	if got := l.Flows().Total(); got != 1 {
		t.Errorf("%d flows, want 1", got)
	}
}
