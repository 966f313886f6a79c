package main

import (
	"fmt"
	"io"
	"time"
)

// What is asked of Trackless.
const (
	containerMiB = 128
	maxMiB       = 110

	// recovery is how long after the flood a cached name may still be lost: as
	// long as answers to what the flood left behind are waited for.
	recovery = time.Second

	// lostMore is by how many percent of the other pod's queries two runs of the
	// same program differ on a machine with two processors.
	lostMore = 3.0
)

// A result is what one flood did to one server. Its JSON form is stable.
type result struct {
	Server   string `json:"server"`
	Upstream string `json:"upstream"`

	// Flood is how many queries were sent, and Answers how many of the other
	// pod's queries for cached names were answered within a second.
	Flood   int `json:"flood"`
	Queries int `json:"queries"`
	Answers int `json:"answers"`

	// LostPercent is of the other pod's queries, and P90 of their latencies.
	LostPercent float64 `json:"lost_percent"`
	P90MS       float64 `json:"p90_ms"`

	// Killed says that the kernel ended the server for want of memory. PeakMiB is
	// the most that was resident, Goroutines the most that there were.
	Killed     bool    `json:"killed"`
	PeakMiB    float64 `json:"peak_mib"`
	Goroutines int     `json:"goroutines"`

	// Lapses are leases that ran out, Entries the most conntrack entries of
	// clients' queries. Trackless only.
	Lapses  int `json:"lapses"`
	Entries int `json:"entries"`

	// RecoveredMS is the time from the end of the flood to the last query of the
	// other pod that was lost, -1 for a server that was killed.
	RecoveredMS int64 `json:"recovered_ms"`

	// LogBytes is what the server has written.
	LogBytes int `json:"log_bytes"`

	Failures []string `json:"failures,omitempty"`
}

// judge notes what Trackless did not keep. stock is what CoreDNS did, nil if it
// was not measured.
func (r *result) judge(stock *result) {
	fail := func(format string, args ...any) { r.Failures = append(r.Failures, fmt.Sprintf(format, args...)) }
	if r.Killed {
		fail("killed: out of memory")
	}
	if r.PeakMiB > maxMiB {
		fail("%.0f MiB were resident, at most %d may be", r.PeakMiB, maxMiB)
	}
	if r.Lapses > 0 {
		fail("the lease lapsed %d times", r.Lapses)
	}
	if r.RecoveredMS > recovery.Milliseconds() {
		fail("cached names were lost for %d ms after the flood", r.RecoveredMS)
	}
	if stock != nil && r.LostPercent > stock.LostPercent+lostMore {
		fail("%.1f %% of the other pod's queries were lost, with CoreDNS %.1f %%", r.LostPercent, stock.LostPercent)
	}
}

const lineFormat = "%-10s %-10s %9s %8s %8s %8s %8s %10s %7s %8s %10s %8s\n"

func writeHead(out io.Writer) {
	fmt.Fprintf(out, lineFormat, "upstream", "server", "flood", "lost", "p90", "killed", "MiB", "goroutines", "lapses", "entries", "recovered", "log")
}

func (r *result) write(out io.Writer) {
	killed, recovered := "no", fmt.Sprintf("%d ms", r.RecoveredMS)
	if r.Killed {
		killed, recovered = "YES", "-"
	}
	fmt.Fprintf(out, lineFormat, r.Upstream, r.Server, fmt.Sprint(r.Flood), fmt.Sprintf("%.1f %%", r.LostPercent), fmt.Sprintf("%.0f ms", r.P90MS), killed,
		fmt.Sprintf("%.0f", r.PeakMiB), fmt.Sprint(r.Goroutines), fmt.Sprint(r.Lapses), fmt.Sprint(r.Entries), recovered, fmt.Sprintf("%d KB", r.LogBytes/1000))
	for _, f := range r.Failures {
		fmt.Fprintf(out, "    %s\n", f)
	}
}
