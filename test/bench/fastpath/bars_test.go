package main

import (
	"math"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/test/bench/fastpath/generator"
)

// threeRounds are three of a load, in which a server and two peers have these figures.
func threeRounds(ours, one, two [3]float64) []round {
	var rounds []round
	for i := range ours {
		r := round{}
		for name, v := range map[string]float64{kernelOn: ours[i], unbound: one[i], dnsdist: two[i]} {
			r = append(r, sample{Server: name, CPU: v, QPS: v, Program: v})
		}
		rounds = append(rounds, r)
	}
	return rounds
}

func TestBars(t *testing.T) {
	// The best peer is another one in each round, and so is the machine's speed.
	rounds := threeRounds([3]float64{5, 10, 21}, [3]float64{10, 30, 42}, [3]float64{20, 25, 60})
	for _, c := range []struct {
		name string
		bar
		want spread
		kept bool
	}{
		{"at most, of the best in each round", bar{figure: cpu, server: kernelOn, peers: []string{unbound, dnsdist}, bound: 0.5}, spread{0.5, 0.4, 0.5}, true},
		{"more than at most", bar{figure: cpu, server: kernelOn, peers: []string{unbound, dnsdist}, bound: 0.45}, spread{0.5, 0.4, 0.5}, false},
		{"at least, of the best in each round", bar{figure: qps, server: kernelOn, peers: []string{unbound, dnsdist}, bound: 0.3}, spread{1.0 / 3, 0.25, 0.35}, true},
		{"less than at least", bar{figure: qps, server: kernelOn, peers: []string{unbound, dnsdist}, bound: 0.34}, spread{1.0 / 3, 0.25, 0.35}, false},
		{"without peers", bar{figure: program, server: kernelOn, bound: 10}, spread{10, 5, 21}, true},
		{"without peers, more", bar{figure: program, server: kernelOn, bound: 9}, spread{10, 5, 21}, false},
	} {
		v := c.judge(rounds)
		if v.Measured == nil {
			t.Errorf("%s: not measured", c.name)
			continue
		}
		got := *v.Measured
		if math.Abs(got.Median-c.want.Median)+math.Abs(got.Min-c.want.Min)+math.Abs(got.Max-c.want.Max) > 1e-9 || v.Kept != c.kept {
			t.Errorf("%s: %v, kept %t; want %v, %t", c.name, got, v.Kept, c.want, c.kept)
		}
	}
	for n, kept := range map[int]bool{1: true, 2: false} {
		lossy := threeRounds([3]float64{1, 1, 1}, [3]float64{2, 2, 2}, [3]float64{2, 2, 2})
		for _, r := range lossy {
			for i := range r {
				r[i].Sent, r[i].Lost = 100, n
			}
		}
		if v := (bar{figure: cpu, server: kernelOn, bound: 1}).judge(lossy); v.Kept != kept {
			t.Errorf("%d of 100 queries lost: kept %t", n, v.Kept)
		}
	}
	for _, missing := range []bar{
		{figure: cpu, server: kernelOff, bound: 1},
		{figure: cpu, server: kernelOn, peers: []string{unbound, coredns}, bound: 1},
	} {
		if v := missing.judge(rounds); v.Measured != nil || v.Kept {
			t.Errorf("a bar of a server that was not measured: %+v", v)
		}
	}
}

func TestTheTablesFit(t *testing.T) {
	known := func(what, name string, names []string) {
		for _, n := range names {
			if n == name {
				return
			}
		}
		t.Errorf("%s %q is in no table", what, name)
	}
	for _, l := range loads {
		for _, name := range l.servers {
			known("server", name, serverNames())
		}
	}
	for _, b := range bars {
		known("load", b.load, loadNames())
		for _, l := range loads {
			if l.name != b.load {
				continue
			}
			for _, name := range append([]string{b.server}, b.peers...) {
				known("server of load "+l.name+":", name, l.servers)
			}
		}
	}
}

func TestFreshNamesAreAskedOnce(t *testing.T) {
	c := client{options: generator.Options{First: 50, Names: 10}}
	for _, test := range []struct {
		fresh bool
		n     int
		want  int
	}{{false, 3, 50}, {true, 0, 50}, {true, 1, 60}, {true, 3, 80}} {
		if got := (load{fresh: test.fresh}).inSample(c, test.n).First; got != test.want {
			t.Errorf("sample %d, fresh %t: the first name is %d, want %d", test.n, test.fresh, got, test.want)
		}
	}
}

func TestOnlyChosenBarsAreJudged(t *testing.T) {
	for _, c := range []struct {
		name string
		options
		want int
	}{
		{"all", options{}, len(bars)},
		{"a load", options{loads: bursts}, 4},
		{"two loads", options{loads: bursts + "," + twoPods}, 5},
		{"without a peer", options{loads: bursts, servers: kernelOn + "," + unbound + "," + coredns}, 1},
		{"without ours", options{servers: unbound}, 0},
	} {
		if got := len(c.bars()); got != c.want {
			t.Errorf("%s: %d bars, want %d", c.name, got, c.want)
		}
	}
}

func TestStatus(t *testing.T) {
	seen := &spread{}
	for _, c := range []struct {
		name     string
		verdicts []verdict
		want     int
	}{
		{"all kept", []verdict{{Measured: seen, Kept: true}}, kept},
		{"one missed", []verdict{{Measured: seen, Kept: true}, {Measured: seen}}, missed},
		{"one unknown", []verdict{{Measured: seen, Kept: true}, {}}, unknown},
		{"none", nil, unknown},
		{"one of each", []verdict{{Measured: seen, Kept: true}, {Measured: seen}, {}}, missed},
	} {
		if got := (&report{Verdicts: c.verdicts}).status(); got != c.want {
			t.Errorf("%s: status %d, want %d", c.name, got, c.want)
		}
	}
}

func TestTooFewRoundsAreNotJudged(t *testing.T) {
	rounds := threeRounds([3]float64{1, 1, 1}, [3]float64{9, 9, 9}, [3]float64{9, 9, 9})
	for _, c := range []struct {
		asked int
		want  int
	}{{3, kept}, {4, unknown}} {
		r := &report{Rounds: c.asked, Loads: []measured{{Load: bursts, Rounds: rounds}}}
		r.judge([]bar{{bursts, cpu, kernelOn, []string{unbound}, 0.5}})
		if got := r.status(); got != c.want {
			t.Errorf("3 rounds of %d: status %d, want %d", c.asked, got, c.want)
		}
	}
}

func TestDisturbedRoundsAreDiscarded(t *testing.T) {
	const limit = 0.04
	for _, c := range []struct {
		name            string
		others          []float64 // of each round; the last one goes on
		kept, discarded int
	}{
		{"none", []float64{0.04}, 3, 0},
		{"the first", []float64{0.05, 0}, 3, 1},
		{"two of them", []float64{0, 0.05, 0, 0.5, 0}, 3, 2},
		{"all but one", []float64{0, 0.05}, 1, 11},
	} {
		played := 0
		rounds, discarded, err := keep(3, limit, func(n int) (round, error) {
			if n != played {
				t.Errorf("%s: round %d is called %d", c.name, played, n)
			}
			others := c.others[min(n, len(c.others)-1)]
			played++
			return round{{Server: unbound}, {Server: kernelOn, Others: others}}, nil
		})
		if err != nil || len(rounds) != c.kept || discarded != c.discarded {
			t.Errorf("%s: %d rounds kept, %d discarded (%v); want %d, %d", c.name, len(rounds), discarded, err, c.kept, c.discarded)
		}
	}
	if !(round{{Others: 0.03, Steal: 0.02}}).disturbed(limit) {
		t.Error("a round is not disturbed by others and steal together")
	}
}

func TestDisturbedSamplesAreTakenAgain(t *testing.T) {
	for _, c := range []struct {
		name      string
		others    []float64
		want      float64 // of the sample that is returned
		discarded int
	}{
		{"calm", []float64{0.01}, 0.01, 0},
		{"disturbed once", []float64{0.5, 0.02}, 0.02, 1},
		{"disturbed for ever", []float64{0.5, 0.6, 0.7, 0.8, 0.01}, 0.8, 3},
	} {
		taken := 0
		s, discarded, err := again(0.04, func() (sample, error) {
			taken++
			return sample{Others: c.others[taken-1]}, nil
		})
		if err != nil || s.Others != c.want || discarded != c.discarded {
			t.Errorf("%s: the sample with %v, %d discarded (%v); want %v, %d", c.name, s.Others, discarded, err, c.want, c.discarded)
		}
	}
}

func TestSummarise(t *testing.T) {
	before := clock{at: time.Unix(0, 0), server: time.Second, softirq: time.Second, busy: time.Minute, stolen: time.Second}
	after := clock{
		at:      before.at.Add(2 * time.Second),
		server:  before.server + 300*time.Millisecond,
		softirq: before.softirq + 100*time.Millisecond,
		busy:    before.busy + 1500*time.Millisecond,
		stolen:  before.stolen + 40*time.Millisecond,
	}
	client := generator.Result{
		Sent: 110, Answered: 100, Took: 500 * time.Millisecond, CPU: 500 * time.Millisecond, Process: 550 * time.Millisecond,
		P50: time.Millisecond, P99: 3 * time.Millisecond,
	}
	slower := client
	slower.P50, slower.P99, slower.Took = 2*time.Millisecond, 2*time.Millisecond, time.Second
	for _, c := range []struct {
		name    string
		clients []generator.Result
		want    sample
	}{
		// 400 ms of the server and 500 of the client for 100 answers; of 2 CPUs and
		// 2 s others had 1500 - 950 ms.
		{"one client", []generator.Result{client}, sample{CPU: 9000, ServerCPU: 4000, Process: 15, QPS: 200, P50: 1000, P99: 3000, Sent: 110, Lost: 10, Others: 0.1375, Steal: 0.01}},
		{"two clients", []generator.Result{client, slower}, sample{CPU: 7000, ServerCPU: 2000, Process: 15, QPS: 300, P50: 2000, P99: 3000, Sent: 220, Lost: 20, Others: 0, Steal: 0.01}},
	} {
		got, err := summarise(before, after, c.clients)
		if err != nil || got != c.want {
			t.Errorf("%s: %+v (%v), want %+v", c.name, got, err, c.want)
		}
	}
	for name, bad := range map[string]generator.Result{
		"a wrong answer": {Sent: 10, Answered: 9, Wrong: 1, Took: time.Second},
		"no answer":      {Sent: 10, Took: time.Second},
	} {
		if s, err := summarise(before, after, []generator.Result{bad}); err == nil {
			t.Errorf("%s is no error: %+v", name, s)
		}
	}
}
