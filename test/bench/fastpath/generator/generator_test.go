package generator

import (
	"math"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/internal/testns"
)

func TestMain(m *testing.M) { testns.Main(m) }

func TestPercentile(t *testing.T) {
	for _, c := range []struct {
		name   string
		sorted []time.Duration
		p      float64
		want   float64
	}{
		{"none", nil, 0.5, math.NaN()},
		{"one", []time.Duration{7}, 0.99, 7},
		{"the middle of three", []time.Duration{1, 2, 9}, 0.5, 2},
		{"the lower middle of four", []time.Duration{1, 2, 8, 9}, 0.5, 2},
		{"99 of 100", append(make([]time.Duration, 98), 5, 6), 0.99, 5},
		{"above 99 of 100", append(make([]time.Duration, 98), 5, 6), 0.995, 6},
		{"lowest", []time.Duration{1, 2}, 0, 1},
		{"highest", []time.Duration{1, 2}, 1, 2},
	} {
		got := Percentile(c.sorted, c.p)
		if got != c.want && !(math.IsNaN(got) && math.IsNaN(c.want)) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestScheduleStaysFixed(t *testing.T) {
	s := schedule{interval: 10, queries: 5}
	for _, c := range []struct {
		name string
		now  time.Duration
		want int
	}{
		{"at the beginning the first is due", 0, 1},
		{"before the second", 9, 1},
		{"at the second", 10, 2},
		{"after a stall all that were due", 35, 4},
		{"no more than there are", 1000, 5},
	} {
		if got := s.dueBy(c.now); got != c.want {
			t.Errorf("%s: %d are due, want %d", c.name, got, c.want)
		}
	}
}

func TestLatencyCountsFromTheSchedule(t *testing.T) {
	f := newFlight(schedule{interval: 10, queries: 4})
	// The generator stalled: it sends the first three at once when 25 have passed.
	f.sent = 3
	for _, c := range []struct {
		id   uint16
		now  time.Duration
		want bool
	}{
		{2, 26, true},
		{0, 26, true},
		{0, 27, false}, // twice
		{3, 27, false}, // not sent
	} {
		if got := f.answered(c.id, c.now); got != c.want {
			t.Errorf("the answer to %d was waited for: %t, want %t", c.id, got, c.want)
		}
	}
	f.lose(100)
	want := []time.Duration{6, 26, 90, 70}
	if len(f.latencies) != len(want) {
		t.Fatalf("latencies %v, want %v", f.latencies, want)
	}
	for i := range want {
		if f.latencies[i] != want[i] {
			t.Errorf("latencies %v, want %v", f.latencies, want)
		}
	}
}

func TestNumbersOutliveTheirIDs(t *testing.T) {
	f := newFlight(schedule{interval: 1, queries: 200_000})
	f.sent = 1<<17 + 3
	for _, n := range []int{1<<17 + 2, 1<<17 - 1, 1<<17 + 3 - 1<<16} {
		if got := f.number(uint16(n)); got != n {
			t.Errorf("the id of query %d is taken for that of %d", n, got)
		}
	}
}

func TestRight(t *testing.T) {
	query := new(dns.Msg).SetQuestion("name.example.", dns.TypeA)
	answer, err := dns.NewRR("name.example. 60 IN A 192.0.2.1")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name       string
		change     func(m *dns.Msg)
		right, any bool
	}{
		{"an answer", func(m *dns.Msg) { m.Answer = []dns.RR{answer} }, true, true},
		{"no record", func(*dns.Msg) {}, false, true},
		{"a failure", func(m *dns.Msg) { m.Answer, m.Rcode = []dns.RR{answer}, dns.RcodeServerFailure }, false, true},
		{"a query", func(m *dns.Msg) { m.Answer, m.Response = []dns.RR{answer}, false }, false, false},
		{"another question", func(m *dns.Msg) { m.Answer, m.Question[0].Name = []dns.RR{answer}, "mane.example." }, false, false},
		{"no question", func(m *dns.Msg) { m.Question = nil }, false, false},
	} {
		m := new(dns.Msg).SetReply(query)
		c.change(m)
		response, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		asked, err := query.Pack()
		if err != nil {
			t.Fatal(err)
		}
		if got := (Options{}).right(asked, response); got != c.right {
			t.Errorf("%s: right %t, want %t", c.name, got, c.right)
		}
		if got := (Options{Any: true}).right(asked, response); got != c.any {
			t.Errorf("%s, where any response will do: right %t, want %t", c.name, got, c.any)
		}
	}
}

func TestImpossibleOptions(t *testing.T) {
	good := Options{Server: netip.MustParseAddrPort("127.0.0.1:1"), Names: 1, Last: time.Millisecond, Burst: 1, Sockets: 2}
	for _, c := range []struct {
		name   string
		change func(*Options)
	}{
		{"no names", func(o *Options) { o.Names = 0 }},
		{"no time", func(o *Options) { o.Last = 0 }},
		{"neither kind", func(o *Options) { o.Burst = 0 }},
		{"both kinds", func(o *Options) { o.Rate = 1 }},
		{"more than a word of bits", func(o *Options) { o.Burst = 65 }},
		{"odd sockets", func(o *Options) { o.Sockets = 3 }},
	} {
		o := good
		c.change(&o)
		if _, err := Run(o); err == nil {
			t.Errorf("%s: accepted", c.name)
		}
	}
}
