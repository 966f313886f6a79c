package load

import (
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/lab/kubeproxy"
)

// testNode is enough of a node for a load to be planned.
func testNode(ipv6 bool) *lab.Node {
	targets := []netip.Addr{lab.ClusterDNS4}
	if ipv6 {
		targets = append(targets, lab.ClusterDNS6)
	}
	return &lab.Node{Pods: make([]*lab.Pod, 2), Services: []kubeproxy.Service{{ClusterIPs: targets}}}
}

func planFor(t *testing.T, load Load, ipv6 bool) []plannedQuery {
	t.Helper()
	load, err := load.WithDefaults(testNode(ipv6))
	if err != nil {
		t.Fatal(err)
	}
	return load.plan(2)
}

func TestPlanFollowsFromTheSeed(t *testing.T) {
	first := planFor(t, Load{Queries: 5000, Seed: 7}, true)
	if !slices.Equal(first, planFor(t, Load{Queries: 5000, Seed: 7}, true)) {
		t.Error("the same seed made another load")
	}
	if slices.Equal(first, planFor(t, Load{Queries: 5000, Seed: 8}, true)) {
		t.Error("another seed made the same load")
	}
	// What a run asks must not change with its length: runs stay comparable.
	if !slices.Equal(first[:1000], planFor(t, Load{Queries: 1000, Seed: 7}, true)) {
		t.Error("a shorter load is not the beginning of a longer one")
	}
}

func TestPlanHasTheSharesOfItsMix(t *testing.T) {
	const queries = 20000
	tests := []struct {
		name string
		mix  Mix
		ipv6 bool
		want map[string]float64
	}{
		{"default", DefaultMix, true, map[string]float64{
			"tcp": 0.05, "ipv6": 0.3, "node": 0.1, "unique": 0.1, "absent": 0.15, "aaaa": 0.5,
		}},
		{"without IPv6", DefaultMix, false, map[string]float64{
			"tcp": 0.05, "ipv6": 0, "node": 0.1, "unique": 0.1, "absent": 0.15, "aaaa": 0.5,
		}},
		{"all of one kind", Mix{TCP: 1, IPv6: 1, FromNode: 1, Unique: 1}, true, map[string]float64{
			"tcp": 1, "ipv6": 1, "node": 1, "unique": 1, "absent": 0, "aaaa": 0.5,
		}},
		{"nothing special", Mix{}, true, map[string]float64{
			"tcp": 0, "ipv6": 0, "node": 0, "unique": 0, "absent": 0, "aaaa": 0.5,
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			counts := map[string]int{"tcp": 0, "ipv6": 0, "node": 0, "unique": 0, "absent": 0, "aaaa": 0}
			add := func(what string, is bool) {
				if is {
					counts[what]++
				}
			}
			for _, q := range planFor(t, Load{Queries: queries, Mix: &test.mix}, test.ipv6) {
				add("tcp", q.protocol == lab.TCP)
				add("ipv6", q.ipv6)
				add("node", q.origin == FromNode)
				add("unique", q.class == unique)
				add("absent", q.class == absent)
				add("aaaa", q.qtype == dns.TypeAAAA)
			}
			for what, want := range test.want {
				// Five standard deviations of a binomial distribution.
				slack := 5 * math.Sqrt(want*(1-want)/queries)
				if got := float64(counts[what]) / queries; math.Abs(got-want) > slack {
					t.Errorf("share of %s is %.3f, want %.3f", what, got, want)
				}
			}
		})
	}
}

func TestPlanTakesEveryPortOnceBeforeAnyTwice(t *testing.T) {
	// Three times as many queries as one client address has ports.
	const queries = 3 * 28232
	seen := make(map[portStream]map[uint16]int)
	for _, q := range planFor(t, Load{Queries: queries, Mix: &Mix{FromNode: 0.5}}, false) {
		stream := portStream{q.origin, q.protocol, q.ipv6}
		if seen[stream] == nil {
			seen[stream] = make(map[uint16]int)
		}
		seen[stream][q.port]++
		low, high := uint16(32768), uint16(60999)
		if q.origin == FromNode {
			low, high = 10240, 32767
		}
		if q.port < low || q.port > high {
			t.Fatalf("port %d from %d, want %d to %d", q.port, q.origin, low, high)
		}
	}
	if len(seen) != 3 {
		t.Fatalf("%d clients, want two pods and the node", len(seen))
	}
	for stream, ports := range seen {
		least, most := math.MaxInt, 0
		for _, times := range ports {
			least, most = min(least, times), max(most, times)
		}
		if size := len(NewPortWalk(rand.New(rand.NewPCG(1, 1)), stream.origin).ports); len(ports) < size {
			least = 0
		}
		if most-least > 1 {
			t.Errorf("of the ports of %v one was used %d times, another %d times", stream, most, least)
		}
	}
}

func TestPlanAsksUniqueNamesOnce(t *testing.T) {
	asked := make(map[string]int)
	repeated := make(map[string]bool)
	for _, q := range planFor(t, Load{Queries: 20000}, true) {
		if q.class == unique {
			asked[q.name().Text]++
		} else {
			repeated[q.name().Text] = true
		}
	}
	for name, times := range asked {
		if times > 1 || repeated[name] {
			t.Errorf("%s is asked more than once", name)
		}
	}
	if limit := commonNames + absentNames; len(repeated) > limit || len(repeated) < limit/2 {
		t.Errorf("%d repeated names, want most of %d", len(repeated), limit)
	}
}

func TestWarmPlanCoversAllThatIsRepeated(t *testing.T) {
	type question struct {
		name  string
		qtype uint16
	}
	warm := make(map[question]bool)
	for _, q := range warmPlan(Load{Targets: []netip.Addr{lab.ClusterDNS4}}) {
		warm[question{q.name().Text, q.qtype}] = true
	}
	for _, q := range planFor(t, Load{Queries: 20000}, true) {
		if is := warm[question{q.name().Text, q.qtype}]; is != (q.class != unique) {
			t.Fatalf("%s type %d: warm is %t, class is %d", q.name().Text, q.qtype, is, q.class)
		}
	}
}

func TestLoadOutOfBounds(t *testing.T) {
	tests := []struct {
		name string
		load Load
	}{
		{"too many queries", Load{Queries: MaxQueries + 1}},
		{"negative queries", Load{Queries: -1}},
		{"negative rate", Load{Rate: -1}},
		{"negative outstanding", Load{Outstanding: -1}},
		{"share above one", Load{Mix: &Mix{TCP: 1.1}}},
		{"shares of names above one", Load{Mix: &Mix{Unique: 0.6, Absent: 0.6}}},
		{"negative share", Load{Mix: &Mix{IPv6: -0.1}}},
		{"no target", Load{Targets: []netip.Addr{{}}}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if _, err := test.load.WithDefaults(testNode(true)); err == nil {
				t.Error("it was accepted")
			}
		})
	}
	if _, err := (Load{}).WithDefaults(testNode(true)); err != nil {
		t.Errorf("the zero Load was refused: %v", err)
	}
}

func TestPercentile(t *testing.T) {
	tests := []struct {
		name   string
		sorted []time.Duration
		share  float64
		want   time.Duration
	}{
		{"of nothing", nil, 0.5, 0},
		{"of one", []time.Duration{7}, 0.99, 7},
		{"median of two", []time.Duration{1, 9}, 0.5, 1},
		{"median of three", []time.Duration{1, 5, 9}, 0.5, 5},
		{"99th of 100", hundred(), 0.99, 99},
		{"median of 100", hundred(), 0.5, 50},
		{"least", hundred(), 0, 1},
		{"most", hundred(), 1, 100},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := percentile(test.sorted, test.share); got != test.want {
				t.Errorf("got %d, want %d", got, test.want)
			}
		})
	}
}

func hundred() []time.Duration {
	values := make([]time.Duration, 100)
	for i := range values {
		values[i] = time.Duration(i + 1)
	}
	return values
}

func TestLoadResultFigures(t *testing.T) {
	result := Result{
		plan: []plannedQuery{{class: common}, {class: common}, {class: absent}, {class: unique}, {class: unique}},
		attempts: []attempt{
			{latency: 3 * time.Millisecond, by: lab.Trackless},
			{latency: 1 * time.Millisecond, by: lab.Trackless},
			{latency: 2 * time.Millisecond, by: lab.KubeDNS},
			{loss: "timeout"},
			{loss: "SERVFAIL"},
		},
	}
	want := Figures{
		Queries: 5, Answered: 3, Lost: 2,
		LostTo:     map[string]int{"timeout": 1, "SERVFAIL": 1},
		AnsweredBy: map[lab.Responder]int{lab.Trackless: 2, lab.KubeDNS: 1},
		P50:        2 * time.Millisecond, P99: 3 * time.Millisecond,
	}
	if diff := cmp.Diff(want, result.Figures()); diff != "" {
		t.Errorf("all (-want +got):\n%s", diff)
	}
	if hits := result.Hits(); hits.Queries != 3 || hits.Lost != 0 {
		t.Errorf("%d hits, %d lost, want 3 and 0", hits.Queries, hits.Lost)
	}
	if misses := result.Misses(); misses.Queries != 2 || misses.Lost != 2 {
		t.Errorf("%d misses, %d lost, want 2 and 2", misses.Queries, misses.Lost)
	}
}
