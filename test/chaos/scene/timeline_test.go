package scene

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/lab/clients"
)

var (
	epoch  = time.Unix(1_000_000, 0)
	target = netip.MustParseAddr("10.96.0.10")
)

func at(ms int) time.Time { return epoch.Add(time.Duration(ms) * time.Millisecond) }

// answered is a query that was answered at once over a flow of its own.
func answered(ms int, by lab.Responder) clients.Sent {
	return clients.Sent{At: at(ms), Flow: at(ms), Latency: time.Millisecond, By: by, Port: uint16(1000 + ms)}
}

func lost(ms int) clients.Sent {
	return clients.Sent{At: at(ms), Flow: at(ms), Loss: "timeout", Port: uint16(1000 + ms)}
}

// takeoverPhases are a kill at 1000 ms with a bar of 100 ms.
func takeoverPhases(bar time.Duration) []Phase {
	return []Phase{
		{Name: "before", From: at(0), To: at(1000), Want: lab.Trackless},
		{Name: "killed", From: at(1000), To: at(1100), Bar: bar},
		{Name: "dead", From: at(1100), To: at(2000), Want: lab.KubeDNS},
	}
}

func TestJudge(t *testing.T) {
	us, them := lab.Trackless, lab.KubeDNS
	const bar = 100 * time.Millisecond
	for _, tt := range []struct {
		name    string
		kind    clients.StreamKind
		bar     time.Duration
		only    func(clients.Stream) bool
		rate    float64
		queries []clients.Sent
		fails   []FailureKind
		recover time.Duration
	}{
		{
			name: "a clean takeover", bar: bar,
			queries: []clients.Sent{answered(500, us), answered(1050, us), answered(1060, them), answered(1500, them)},
		},
		{
			name: "losses within the bar", bar: bar,
			queries: []clients.Sent{answered(500, us), lost(1010), lost(1090), answered(1500, them)},
			recover: 90 * time.Millisecond,
		},
		{
			name:    "one loss where none may be",
			queries: []clients.Sent{answered(500, us), lost(1010), answered(1500, them)},
			fails:   []FailureKind{FailLost}, recover: 10 * time.Millisecond,
		},
		{
			name: "a query under way when the fault struck belongs to the fault", bar: bar,
			queries: []clients.Sent{answered(500, us), lost(950), answered(1500, them)},
		},
		{
			name: "an earlier one does not", bar: bar,
			queries: []clients.Sent{answered(500, us), lost(850), answered(1500, them)},
			fails:   []FailureKind{FailLost},
		},
		{
			name: "losses go on after the bar", bar: bar,
			queries: []clients.Sent{answered(500, us), lost(1010), lost(1400), answered(1500, them)},
			fails:   []FailureKind{FailLost}, recover: 400 * time.Millisecond,
		},
		{
			name: "a transition that outlasts its bar", bar: 50 * time.Millisecond,
			queries: []clients.Sent{answered(500, us), lost(1080), answered(1500, them)},
			fails:   []FailureKind{FailLost}, recover: 80 * time.Millisecond,
		},
		{
			name: "a late answer is no recovery", bar: 50 * time.Millisecond,
			queries: []clients.Sent{
				answered(500, us),
				{At: at(1080), Flow: at(1080), Latency: 2 * time.Second, By: us},
				answered(1500, them),
			},
			fails: []FailureKind{FailLost}, recover: 80 * time.Millisecond,
		},
		{
			name: "a late answer in a steady phase, on a connection from before", kind: clients.LongTCP, bar: bar,
			queries: []clients.Sent{
				answered(500, us),
				{At: at(1200), Flow: at(500), Latency: 1500 * time.Millisecond, By: us},
				answered(1500, them),
			},
			fails: []FailureKind{FailLost}, recover: 200 * time.Millisecond,
		},
		{
			name: "a late answer to a query that was under way when the fault struck", bar: bar,
			queries: []clients.Sent{
				answered(500, us),
				{At: at(950), Flow: at(950), Latency: 2 * time.Second, By: us},
				answered(1500, them),
			},
		},
		{
			name: "a query that the kernel saw after the fault only", bar: bar,
			queries: []clients.Sent{
				answered(500, us),
				{At: at(995), Flow: at(995), Latency: 10 * time.Millisecond, By: them},
				answered(1500, them),
			},
		},
		{
			name: "one that was answered before it", bar: bar,
			queries: []clients.Sent{
				answered(500, us),
				{At: at(980), Flow: at(980), Latency: 10 * time.Millisecond, By: them},
				answered(1500, them),
			},
			fails: []FailureKind{FailResponder},
		},
		{
			name: "nobody took over", bar: bar,
			queries: []clients.Sent{answered(500, us), answered(1050, us), answered(1500, us)},
			fails:   []FailureKind{FailResponder, FailResponder},
		},
		{
			name: "a phase in which the client was never answered", bar: bar,
			queries: []clients.Sent{answered(500, us), answered(1050, them)},
			fails:   []FailureKind{FailResponder},
		},
		{
			name: "a connection stays with whom it was made to", kind: clients.LongTCP, bar: bar,
			queries: []clients.Sent{answered(500, us), {At: at(1500), Flow: at(500), Latency: 1, By: us}},
		},
		{
			name: "a new connection does not", kind: clients.LongTCP, bar: bar,
			queries: []clients.Sent{answered(500, us), answered(1500, us)},
			fails:   []FailureKind{FailResponder},
		},
		{
			name: "one that asks seldom need not have asked", bar: bar, rate: 1,
			queries: []clients.Sent{answered(500, us)},
		},
		{
			name: "others may be answered by anybody", bar: bar,
			only:    func(s clients.Stream) bool { return s.Target != target },
			queries: []clients.Sent{answered(500, us), answered(1500, us)},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			stream := clients.Stream{Kind: tt.kind, From: new(lab.Namespace), Target: target, Rate: tt.rate}
			phases := takeoverPhases(tt.bar)
			phases[2].Only = tt.only
			timeline := Timeline{Streams: []clients.Stream{stream}, Queries: [][]clients.Sent{tt.queries}, Phases: phases}
			var result Result
			timeline.Judge(&result)
			var kinds []FailureKind
			for _, failure := range result.Failures {
				kinds = append(kinds, failure.Kind)
			}
			if !slices.Equal(kinds, tt.fails) {
				t.Errorf("failures %v, want %v", result.Failures, tt.fails)
			}
			if got := time.Duration(result.RecoverMS) * time.Millisecond; got != tt.recover {
				t.Errorf("recovered in %s, want %s", got, tt.recover)
			}
			if result.Queries != len(tt.queries) || result.Clients[0].Queries != len(tt.queries) {
				t.Errorf("%d queries, of which %d of the client; want %d", result.Queries, result.Clients[0].Queries, len(tt.queries))
			}
		})
	}
}

func TestTrackedFlows(t *testing.T) {
	us, them := lab.Trackless, lab.KubeDNS
	node := new(lab.Namespace)
	timeline := Timeline{
		Streams: []clients.Stream{{Kind: clients.FreshPort, From: node, Target: target}},
		Queries: [][]clients.Sent{{
			answered(500, us), // nobody's business but ours
			answered(900, us), // the last one before the takeover
			answered(1050, us),
			answered(1060, them),
			answered(1500, them),
			answered(2050, us), // a transition without a takeover
		}},
		Phases: append(takeoverPhases(time.Second),
			Phase{Name: "after", From: at(1900), To: at(2000), Want: them},
			Phase{Name: "disturbed", From: at(2000), To: at(2100)},
			Phase{Name: "end", From: at(2100), To: at(2200), Want: them},
		),
	}
	tracked := timeline.trackedFlows(func(*lab.Namespace) *lab.Pod { return nil })
	for ms, want := range map[int]bool{500: false, 900: true, 1050: true, 1060: true, 1500: true, 2050: false} {
		key := keyOf(timeline.Streams[0], uint16(1000+ms), func(*lab.Namespace) *lab.Pod { return nil })
		if tracked[key] != want {
			t.Errorf("the query at %d ms may have an entry: %v, want %v", ms, tracked[key], want)
		}
	}
}
