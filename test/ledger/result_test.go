package main

import (
	"strings"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/lab/clients"
)

// agreeing is a result in which both are the same all the time.
func agreeing() *Result {
	r := &Result{ConntrackL: ConntrackL{Before: 10, Lines: 9, After: 8}}
	for second := 1; second <= int(watchTime/time.Second); second++ {
		r.Seconds = append(r.Seconds, Second{
			Second: second, Kernel: 1000, Ledger: 1000, counted: time.Duration(second) * time.Second,
		})
	}
	return r
}

func TestJudge(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*Result)
		want   string // of the failures, "" for none
	}{
		{"all the same", func(*Result) {}, ""},
		{"off by little, once", func(r *Result) { r.Seconds[20].Ledger = 1019 }, ""},
		{"off by much before the 10th second", func(r *Result) { r.Seconds[8].Ledger = 0 }, ""},
		{"off by much in the 10th second", func(r *Result) { r.Seconds[9].Ledger = 979 }, "second 10: 979 of 1000 entries, -2.1 %"},
		{"off by much in the last", func(r *Result) { r.Seconds[89].Ledger = 1021 }, "second 90"},
		{"off by what came while it was counted", func(r *Result) { r.Seconds[20].Ledger, r.Seconds[20].Moved = 1060, 50 }, ""},
		{"off by more than that", func(r *Result) { r.Seconds[20].Ledger, r.Seconds[20].Moved = 1080, 50 }, "second 21"},
		{"one node has cause for fewer", func(r *Result) { r.Seconds[20].Ledger, r.Seconds[20].Apart = 960, -30 }, ""},
		{"and not for so few", func(r *Result) { r.Seconds[20].Ledger, r.Seconds[20].Apart = 940, -30 }, "second 21"},
		{"off by little all the time", func(r *Result) {
			for i := range r.Seconds {
				r.Seconds[i].Ledger = 1011
			}
		}, "1.1 % on average"},
		{"entries where there is none", func(r *Result) { r.Seconds[50].Kernel, r.Seconds[50].Ledger = 0, 5 }, "second 51"},
		{"conntrack -L lists more", func(r *Result) { r.ConntrackL.Lines = 11 }, "conntrack -L"},
		{"conntrack -L lists fewer", func(r *Result) { r.ConntrackL.Lines = 7 }, "conntrack -L"},
		{"tracked on the second node", func(r *Result) { r.LeftOnUntracked = 1 }, "the node that must not track them"},
		{"disturbed", func(r *Result) { r.Disturbances = []string{"busy"} }, "busy"},
		{"disturbed and apart", func(r *Result) {
			r.Disturbances, r.Seconds[20].Ledger = []string{"busy"}, 0
		}, "busy; second 21"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := agreeing()
			tt.change(r)
			r.judge()
			got := strings.Join(append(r.Disturbances, r.Failures...), "; ")
			if r.Agree != (tt.want == "") || !strings.Contains(got, tt.want) {
				t.Errorf("agree %v, %q; want %q", r.Agree, got, tt.want)
			}
		})
	}
}

func TestCompareSent(t *testing.T) {
	began := time.Now()
	fresh := load{streams: []streams{{kind: clients.FreshPort, clients: 1}}}
	stream := func(perSecond int, late time.Duration, loss string) [][]clients.Sent {
		var sent []clients.Sent
		for i := range perSecond * int(loadTime/time.Second) {
			at := began.Add(late + time.Duration(i)*time.Second/time.Duration(perSecond))
			sent = append(sent, clients.Sent{At: at, Flow: at, Port: uint16(i), Loss: loss})
		}
		return [][]clients.Sent{sent}
	}
	for _, tt := range []struct {
		name   string
		second [][]clients.Sent
		moved  float64 // all the time
		skip   int
		want   string
	}{
		{"the same", stream(100, 0, ""), 0, 0, ""},
		{"a little late", stream(100, 30*time.Millisecond, ""), 0, 8, ""},
		{"late", stream(100, 300*time.Millisecond, ""), 0, 0, "by second 10"},
		{"fewer", stream(96, 0, ""), 0, 0, "differ by 4.0 %"},
		{"lost", stream(100, 0, "timeout"), 0, 0, "50.0 % of the queries were lost"},
		{"counted slowly", stream(100, 0, ""), 50, 0, "81 seconds were not counted, or the nodes differed"},
		{"not counted", stream(100, 0, ""), 0, 9, "9 seconds were not counted"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := agreeing()
			for i := range r.Seconds {
				r.Seconds[i].Moved = tt.moved
			}
			r.Skipped = tt.skip
			r.compareSent(fresh, began, [2][][]clients.Sent{stream(100, 0, ""), tt.second})
			got := strings.Join(r.Disturbances, "; ")
			if (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
}

// A node that was late in one second has fewer entries then, and more when those
// of that second end on the other.
func TestApart(t *testing.T) {
	began := time.Now()
	seconds := func(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
	ask := func(at, latency, flow float64) clients.Sent {
		return clients.Sent{At: began.Add(seconds(at)), Latency: seconds(latency), Flow: began.Add(seconds(flow))}
	}
	for _, tt := range []struct {
		name          string
		kind          clients.StreamKind
		first, second []clients.Sent
		want          map[int]int // by second, 0 in all others
	}{
		{"the same", clients.FreshPort, []clients.Sent{ask(20, 0, 20)}, []clients.Sent{ask(20, 0, 20)}, nil},
		{"asked late", clients.FreshPort, []clients.Sent{ask(19.5, 0, 19.5)}, []clients.Sent{ask(20.5, 0, 20.5)}, map[int]int{20: -1, 50: 1}},
		{"answered late", clients.FreshPort, []clients.Sent{ask(19.5, 0, 19.5)}, []clients.Sent{ask(19.5, 2, 19.5)}, map[int]int{50: 1, 51: 1}},
		{"a port used again", clients.SinglePort,
			[]clients.Sent{ask(5.5, 0, 5.5), ask(20.5, 0, 5.5)}, []clients.Sent{ask(6.5, 0, 6.5), ask(22.5, 0, 6.5)}, map[int]int{6: -1}},
		{"a connection made anew", clients.LongTCP,
			[]clients.Sent{ask(5.5, 0, 5.5), ask(20.5, 0, 20.5)}, []clients.Sent{ask(5.5, 0, 5.5), ask(22.5, 0, 22.5)}, map[int]int{21: -1, 22: -1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := agreeing()
			l := load{streams: []streams{{kind: tt.kind, clients: 1}}}
			r.compareSent(l, began, [2][][]clients.Sent{{tt.first}, {tt.second}})
			for _, s := range r.Seconds {
				if s.Apart != tt.want[s.Second] {
					t.Errorf("second %d: %d apart, want %d", s.Second, s.Apart, tt.want[s.Second])
				}
			}
		})
	}
}
