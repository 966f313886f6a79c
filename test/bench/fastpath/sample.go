package main

import (
	"cmp"
	"slices"

	"github.com/trackless-dns/trackless/test/bench/fastpath/generator"
)

// A sample is one server under one load in one round.
type sample struct {
	Server string `json:"server"`

	CPU       float64 `json:"cpu_us_per_answer,omitempty"`
	ServerCPU float64 `json:"server_cpu_us_per_answer"`
	Process   float64 `json:"server_percent_of_a_cpu"` // of its process alone
	QPS       float64 `json:"qps"`
	P50       float64 `json:"p50_us,omitempty"`
	P99       float64 `json:"p99_us,omitempty"`
	Program   float64 `json:"program_ns_per_packet,omitempty"`

	Sent int `json:"sent"`
	Lost int `json:"lost"`

	// Others is the share of the CPUs' time that other processes took, and Steal the
	// share that this machine did not get.
	Others float64 `json:"others"`
	Steal  float64 `json:"steal"`
}

// figure is one of a sample's figures.
type figure struct {
	name, unit string
	of         func(s sample) float64

	// more tells that more is better.
	more bool
}

var (
	cpu      = figure{"CPU", "us", func(s sample) float64 { return s.CPU }, false}
	ofServer = figure{"CPU of the server", "us", func(s sample) float64 { return s.ServerCPU }, false}
	process  = figure{"process of the server", "% of a CPU", func(s sample) float64 { return s.Process }, false}
	qps      = figure{"qps", "", func(s sample) float64 { return s.QPS }, true}
	p50      = figure{"p50", "us", func(s sample) float64 { return s.P50 }, false}
	p99      = figure{"p99", "us", func(s sample) float64 { return s.P99 }, false}
	program  = figure{"time in the program", "ns", func(s sample) float64 { return s.Program }, false}
)

// round are the samples of all servers of a load, one each.
type round []sample

// disturbed reports whether others took more than the share of the CPUs' time.
func (s sample) disturbed(share float64) bool { return s.Others+s.Steal > share }

// disturbed reports whether one of its samples was.
func (r round) disturbed(share float64) bool {
	return slices.ContainsFunc(r, func(s sample) bool { return s.disturbed(share) })
}

// find returns the sample of a server.
func (r round) find(server string) (sample, bool) {
	i := slices.IndexFunc(r, func(s sample) bool { return s.Server == server })
	if i < 0 {
		return sample{}, false
	}
	return r[i], true
}

// best returns the best of the servers' figures.
func (r round) best(servers []string, f figure) (best float64, found bool) {
	for _, server := range servers {
		s, there := r.find(server)
		if !there {
			return 0, false
		}
		if value := f.of(s); !found || (value > best) == f.more {
			best, found = value, true
		}
	}
	return best, found
}

// A spread is the median of values, with the lowest and the highest.
type spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

// spreadOf returns the spread of at least one value. The median of an even number of
// them is the lower one in the middle.
func spreadOf(values []float64) spread {
	sorted := slices.SortedFunc(slices.Values(values), cmp.Compare)
	return spread{Median: generator.Percentile(sorted, 0.5), Min: sorted[0], Max: sorted[len(sorted)-1]}
}

// again takes a sample until it is not disturbed, and returns the last one and how many
// were discarded. It gives up soon: the samples of a round should be close together.
func again(share float64, take func() (sample, error)) (s sample, discarded int, err error) {
	const most = 4
	for {
		if s, err = take(); err != nil || !s.disturbed(share) || discarded == most-1 {
			return s, discarded, err
		}
		discarded++
	}
}

// keep plays rounds until enough were not disturbed, and returns these. It gives up
// when most are.
func keep(enough int, share float64, play func(n int) (round, error)) (kept []round, discarded int, err error) {
	const most = 4 // rounds for each one that is needed
	for n := 0; len(kept) < enough && n < most*enough; n++ {
		r, err := play(n)
		if err != nil {
			return nil, discarded, err
		}
		if r.disturbed(share) {
			discarded++
			continue
		}
		kept = append(kept, r)
	}
	return kept, discarded, nil
}
