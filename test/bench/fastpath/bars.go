package main

// bar is a row of the table of bars.
type bar struct {
	load   string
	figure figure
	server string

	// peers are those with the best of which the server is compared, round by round.
	// Without peers the figure itself has the bound.
	peers []string

	// bound is the most, or where more is better the least, of the median.
	bound float64
}

// bars is the table of what is asked of Trackless.
var bars = []bar{
	{bursts, cpu, kernelOn, []string{unbound, dnsdist}, 0.55},
	{bursts, cpu, kernelOn, []string{coredns}, 0.18},
	{atRate, p50, kernelOn, []string{unbound}, 0.2},
	{atRate, p99, kernelOn, []string{unbound}, 0.15},
	{atRate, process, kernelOn, nil, 3},
	{twoPods, qps, kernelOn, []string{dnsdistTwo}, 2.2},
	{bursts, ofServer, socketsOn, []string{coredns}, 0.33},
	{bursts, ofServer, socketsOn, []string{unbound}, 1.1},
	{saturated, ofServer, socketsOn, []string{coredns}, 0.435},
	{saturated, ofServer, socketsOn, []string{unbound}, 1.1},
	{atRate, ofServer, socketsOn, []string{coredns}, 0.69},
	{atRate, ofServer, socketsOn, []string{unbound}, 1.2},
	{atRate, p50, socketsOn, []string{coredns}, 0.75},
	{misses, ofServer, socketsOn, []string{kernelOff}, 1.1},
	{programHits, program, kernelOn, nil, 800},
	{programMisses, program, kernelOn, nil, 350},
	{programOthers, program, kernelOn, nil, 100},
}

// verdict is what became of a bar.
type verdict struct {
	Load   string   `json:"load"`
	Figure string   `json:"figure"`
	Server string   `json:"server"`
	Peers  []string `json:"peers,omitempty"`
	Bound  float64  `json:"bound"`
	More   bool     `json:"more_is_better,omitempty"`

	// Measured is the ratio, or without peers the figure; nil if it was not measured.
	Measured *spread `json:"measured,omitempty"`
	Kept     bool    `json:"kept"`
}

// values are the ratio of each round, or without peers the figure. None are returned
// where a server is missing.
func (b bar) values(rounds []round) []float64 {
	var values []float64
	for _, r := range rounds {
		value, there := r.best([]string{b.server}, b.figure)
		if there && len(b.peers) > 0 {
			var peer float64
			if peer, there = r.best(b.peers, b.figure); there {
				value /= peer
			}
		}
		if !there {
			return nil
		}
		values = append(values, value)
	}
	return values
}

// judge compares the rounds of the bar's load with the bar.
func (b bar) judge(rounds []round) verdict {
	v := verdict{Load: b.load, Figure: b.figure.name, Server: b.server, Peers: b.peers, Bound: b.bound, More: b.figure.more}
	values := b.values(rounds)
	if len(values) == 0 {
		return v
	}
	s := spreadOf(values)
	v.Measured = &s
	v.Kept = (s.Median == b.bound || (s.Median > b.bound) == b.figure.more) && !loses(rounds, b.server)
	return v
}

// loses reports whether the server lost more than a hundredth of the queries: figures of what
// it answered say little then.
func loses(rounds []round, server string) bool {
	sent, lost := 0, 0
	for _, r := range rounds {
		if s, there := r.find(server); there {
			sent, lost = sent+s.Sent, lost+s.Lost
		}
	}
	return 100*lost > sent
}
