package summary

import (
	"encoding/json"
	"maps"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/conntrack"
)

func flow(p conntrack.Protocol, src, dst string, change ...func(*conntrack.Entry)) *conntrack.Entry {
	s, d := netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)
	e := &conntrack.Entry{Original: conntrack.Tuple{Src: s.Addr(), Dst: d.Addr(), SrcPort: s.Port(), DstPort: d.Port(), Proto: p}}
	e.Reply = e.Original.Mirror()
	fields := conntrack.FieldStatus | conntrack.FieldTimeout
	if p == conntrack.TCP {
		fields |= conntrack.FieldTCP
	}
	e.SetFields(fields)
	for _, c := range change {
		c(e)
	}
	return e
}

func TestSummary(t *testing.T) {
	const both = conntrack.StatusSeenReply | conntrack.StatusAssured
	established := func(left time.Duration) func(*conntrack.Entry) {
		return func(e *conntrack.Entry) {
			e.TCP.State, e.Status, e.Timeout = conntrack.TCPEstablished, both, left
		}
	}
	service := func(backend string) func(*conntrack.Entry) {
		return func(e *conntrack.Entry) {
			e.Reply.Src = netip.MustParseAddr(backend)
			e.Status |= conntrack.StatusDstNAT
		}
	}
	replied := func(e *conntrack.Entry) { e.Status |= conntrack.StatusSeenReply }

	c := New(5 * 24 * time.Hour)
	for _, e := range []*conntrack.Entry{
		flow(conntrack.UDP, "10.0.0.1:1000", "10.96.0.10:53", service("10.244.0.53"), replied),
		flow(conntrack.UDP, "10.0.0.1:1001", "10.96.0.10:53", service("10.244.0.54")),
		flow(conntrack.UDP, "10.0.0.1:1002", "10.96.0.10:53", service("10.244.0.54")),
		flow(conntrack.TCP, "10.0.0.2:1002", "10.96.0.10:53", service("10.244.0.53"), func(e *conntrack.Entry) {
			e.TCP.State, e.Status = conntrack.TCPTimeWait, both|conntrack.StatusDstNAT
		}),
		flow(conntrack.UDP, "10.96.0.10:53", "10.0.0.9:4000"),
		flow(conntrack.TCP, "10.0.0.1:2000", "192.0.2.1:443", established(5*24*time.Hour-time.Minute)),
		flow(conntrack.TCP, "10.0.0.1:2001", "192.0.2.1:443", established(4*24*time.Hour)),
		flow(conntrack.TCP, "10.0.0.1:2002", "192.0.2.1:443", established(5*24*time.Hour-2*time.Hour)),
		flow(conntrack.TCP, "[fd00::1]:2003", "[fd00::2]:443", established(9*24*time.Hour)), // the timeout was lowered
	} {
		if err := c.Add(e); err != nil {
			t.Fatal(err)
		}
	}
	s := c.Summary(2)

	addr := netip.MustParseAddr
	for _, check := range []struct {
		name      string
		got, want any
	}{
		{"entries", []uint64{s.Entries, s.IPv4, s.IPv6, s.Unreplied, s.Assured, s.UDPUnreplied}, []uint64{9, 8, 1, 3, 5, 3}},
		{"states", s.States, []StateCount{{"tcp", "ESTABLISHED", 4}, {"udp", "UNREPLIED", 3}, {"tcp", "TIME_WAIT", 1}, {"udp", "REPLIED", 1}}},
		{"ports", s.DestinationPorts, []PortCount{{"tcp", 443, 4}, {"udp", 53, 3}}},
		{"nat", s.NAT, NATCounts{None: 5, DNAT: 4}},
		{"idle", s.Established, Established{4, 2, 1}},
		{"sources", s.Sources, []Counted{{addr("10.0.0.1"), 6}, {addr("10.0.0.2"), 1}}},
		{"services", s.Services, []CountedEndpoint{{"udp", netip.MustParseAddrPort("10.96.0.10:53"), 3}, {"tcp", netip.MustParseAddrPort("10.96.0.10:53"), 1}}},
		{"dns", []uint64{s.DNS.Entries, s.DNS.UDP, s.DNS.TCP, s.DNS.Unreplied, s.DNS.Reversed}, []uint64{5, 4, 1, 3, 1}},
		{"dns servers", s.DNS.Servers, []Server{
			{addr("10.96.0.10"), addr("10.244.0.53"), 2, 0}, {addr("10.96.0.10"), addr("10.244.0.54"), 2, 2},
		}},
		{"reversed", s.DNS.ReversedSources, []Counted{{addr("10.96.0.10"), 1}}},
		{"exact", s.Uncertainty, uint64(0)},
	} {
		if !reflect.DeepEqual(check.got, check.want) {
			t.Errorf("%s: %+v, want %+v", check.name, check.got, check.want)
		}
	}
	if s.State("tcp", "TIME_WAIT") != 1 || s.Protocol("tcp") != 5 || s.Protocol("sctp") != 0 {
		t.Errorf("TIME_WAIT %d, tcp %d", s.State("tcp", "TIME_WAIT"), s.Protocol("tcp"))
	}
}

// An empty table has empty lists in JSON, not null: scripts index them.
func TestEmptySummaryJSON(t *testing.T) {
	b, err := json.Marshal(New(0).Summary(10))
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	for _, list := range []string{"states", "destination_ports", "top_sources", "top_destinations", "top_services"} {
		if _, ok := m[list].([]any); !ok {
			t.Errorf("%s is %v, want an empty list", list, m[list])
		}
	}
}

// A flood of forged sources must neither grow the memory nor hide the heavy ones.
func TestTopIsBounded(t *testing.T) {
	top := newTop[int]()
	top.max = 100
	for i := range 100_000 {
		top.add(1_000_000 + i)
		if i%10 == 0 {
			top.add(1)
		}
		if i%20 == 0 {
			top.add(2)
		}
		if len(top.counts) > 100 {
			t.Fatalf("%d keys held", len(top.counts))
		}
	}
	got := top.largest(2, func(a, b int) int { return a - b })
	if len(got) != 2 || got[0].key != 1 || got[1].key != 2 {
		t.Fatalf("largest %v, want 1 and 2", got)
	}
	for i, exact := range []uint64{10_000, 5_000} {
		if got[i].count > exact || got[i].count+top.lost < exact {
			t.Errorf("key %d counted %d, uncertainty %d, in truth %d", got[i].key, got[i].count, top.lost, exact)
		}
	}
}

func BenchmarkAdd(b *testing.B) {
	e := flow(conntrack.UDP, "10.0.0.1:1000", "10.96.0.10:53")
	c := New(0)
	raw := e.Original.Src.As4()
	b.ReportAllocs()
	for b.Loop() {
		raw[3]++
		e.Original.Src = netip.AddrFrom4(raw)
		_ = c.Add(e)
	}
}

// Entries say by the time that they have left whether a packet came since.
func TestRecent(t *testing.T) {
	entry := func(change func(*conntrack.Entry), left time.Duration) *conntrack.Entry {
		e := &conntrack.Entry{
			Original: conntrack.Tuple{Src: netip.MustParseAddr("10.244.0.11"), SrcPort: 4000, Dst: netip.MustParseAddr("10.96.0.10"), DstPort: 53, Proto: conntrack.UDP},
			Reply:    conntrack.Tuple{Src: netip.MustParseAddr("10.244.1.53"), SrcPort: 53, Dst: netip.MustParseAddr("10.244.0.11"), DstPort: 4000, Proto: conntrack.UDP},
			Timeout:  left,
		}
		e.SetFields(conntrack.FieldStatus | conntrack.FieldTimeout | conntrack.FieldTCP)
		if change != nil {
			change(e)
		}
		return e
	}
	assured := func(e *conntrack.Entry) { e.Status = conntrack.StatusSeenReply | conntrack.StatusAssured }
	tcp := func(state conntrack.TCPState) func(*conntrack.Entry) {
		return func(e *conntrack.Entry) {
			e.Original.Proto, e.Reply.Proto, e.TCP.State = conntrack.TCP, conntrack.TCP, state
		}
	}
	reversed := func(e *conntrack.Entry) { e.Original, e.Reply = e.Reply, e.Original }
	query := DNSFlow{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("10.244.1.53")}
	answer := DNSFlow{Server: netip.MustParseAddr("10.244.1.53")}
	for _, test := range []struct {
		name          string
		before, after []*conntrack.Entry
		want          []DNSFlow
	}{
		{"nothing", nil, nil, nil},
		{"old ones grow older", []*conntrack.Entry{entry(nil, 29*time.Second), entry(assured, 100*time.Second)},
			[]*conntrack.Entry{entry(nil, 27*time.Second), entry(assured, 98*time.Second)}, nil},
		{"a second's rounding is no packet", []*conntrack.Entry{entry(nil, 29*time.Second)}, []*conntrack.Entry{entry(nil, 27*time.Second)}, nil},
		{"a new one of the same kind", []*conntrack.Entry{entry(nil, 29*time.Second)}, []*conntrack.Entry{entry(nil, 27*time.Second), entry(nil, 29*time.Second)}, []DNSFlow{query}},
		{"the first of its kind", []*conntrack.Entry{entry(assured, 110*time.Second)}, []*conntrack.Entry{entry(assured, 108*time.Second), entry(nil, 29*time.Second)}, []DNSFlow{query}},
		{"an answer first", nil, []*conntrack.Entry{entry(reversed, 29*time.Second)}, []DNSFlow{answer}},
		{"an old connection goes on", nil, []*conntrack.Entry{entry(tcp(conntrack.TCPEstablished), 86400*time.Second)}, nil},
		{"a new connection", nil, []*conntrack.Entry{entry(tcp(conntrack.TCPSynSent), 119*time.Second)}, []DNSFlow{query}},
		{"not DNS", nil, []*conntrack.Entry{entry(func(e *conntrack.Entry) { e.Original.DstPort, e.Reply.SrcPort = 80, 80 }, 29*time.Second)}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			times := func(entries []*conntrack.Entry) TimesLeft {
				l := TimesLeft{}
				for _, e := range entries {
					if err := l.Add(e); err != nil {
						t.Fatal(err)
					}
				}
				return l
			}
			got := Recent(times(test.before), times(test.after), 2900*time.Millisecond)
			want := map[DNSFlow]bool{}
			for _, f := range test.want {
				want[f] = true
			}
			if !maps.Equal(got, want) {
				t.Errorf("recent %v, want %v", got, want)
			}
		})
	}
}
