package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
)

// The bars of Trackless.
const (
	// Nobody asks, at two addresses.
	idleCPU     = 1.5  // milliseconds of processor time a second
	idleWakeups = 15.0 // a second

	// busyCPU is by how many milliseconds a second a server that is asked may exceed
	// the same server without notrack.
	busyCPU = 2.0

	setBytes = 1 << 20

	// backendCPU is by how many milliseconds a second the two backends may differ
	// while nobody asks.
	backendCPU = 0.5
)

// A report is what was measured. Its JSON form is stable.
type report struct {
	Kept     bool     `json:"kept"`
	Failures []string `json:"failures,omitempty"`

	// Seconds is how long each load lasted, Rate how many queries a second came to
	// each server of Busy.
	Seconds     float64 `json:"seconds"`
	Rate        float64 `json:"rate"`
	LoadAverage string  `json:"load_average"`

	Idle []row `json:"idle"`
	Busy []row `json:"busy,omitempty"`
}

// A row is what one server took.
type row struct {
	Server    string `json:"server"`
	Kind      kind   `json:"kind"`
	Backend   string `json:"backend,omitempty"`
	Addresses int    `json:"addresses"`
	Other     bool   `json:"other,omitempty"` // the other binary, which has no bars

	CPU     float64 `json:"cpu_ms_per_second"`
	Wakeups float64 `json:"wakeups_per_second"`

	// Syscalls is nil where system calls cannot be counted.
	Syscalls *float64 `json:"syscalls_per_second,omitempty"`

	// SetBytes is the kernel memory of our sets, measured on the idle node.
	SetBytes int `json:"set_bytes,omitempty"`

	// Queries of the load: all of them, those without an answer, and those that
	// kube-dns answered.
	Queries   int `json:"queries,omitempty"`
	Lost      int `json:"lost,omitempty"`
	Elsewhere int `json:"elsewhere,omitempty"`
}

// judge notes the bars that Trackless did not keep.
func (r *report) judge() {
	fail := func(format string, args ...any) { r.Failures = append(r.Failures, fmt.Sprintf(format, args...)) }
	for _, now := range r.Idle {
		if now.Kind != trackless || now.Other {
			continue
		}
		if now.SetBytes > setBytes {
			fail("%s, idle: the sets take %.1f MB of kernel memory, the bar is %.0f", now.Server, megabytes(now.SetBytes), megabytes(setBytes))
		}
		if now.Addresses != 2 {
			continue
		}
		if now.CPU > idleCPU {
			fail("%s, idle: %.2f ms/s of CPU, the bar is %.1f", now.Server, now.CPU, idleCPU)
		}
		if now.Wakeups > idleWakeups {
			fail("%s, idle: %.0f wake-ups a second, the bar is %.0f", now.Server, now.Wakeups, idleWakeups)
		}
	}
	for _, addresses := range []int{1, 2, 4} {
		nftables, there := find(r.Idle, trackless, "nftables", addresses)
		iptables, too := find(r.Idle, trackless, "iptables", addresses)
		if there && too && iptables.CPU > nftables.CPU+backendCPU {
			fail("%s, idle: %.2f ms/s of CPU, with nftables %.2f; the bar is %.1f more", iptables.Server, iptables.CPU, nftables.CPU, backendCPU)
		}
	}
	without, there := find(r.Busy, bare, "", 2)
	for _, now := range r.Busy {
		if now.Kind != trackless || now.Other || !there {
			continue
		}
		if now.CPU > without.CPU+busyCPU {
			fail("%s, %g qps: %.2f ms/s of CPU, without notrack %.2f; the bar is %.1f more", now.Server, r.Rate, now.CPU, without.CPU, busyCPU)
		}
	}
	r.Kept = len(r.Failures) == 0
}

// find returns a row of the binary under test.
func find(rows []row, k kind, backend string, addresses int) (row, bool) {
	i := slices.IndexFunc(rows, func(r row) bool {
		return !r.Other && r.Kind == k && r.Backend == backend && r.Addresses == addresses
	})
	if i < 0 {
		return row{}, false
	}
	return rows[i], true
}

func megabytes(n int) float64 { return float64(n) / (1 << 20) }

const format = "%-32s %10s %10s %10s %10s %9s %6s %9s\n"

// writeTable writes both loads and the verdict.
func (r *report) writeTable(w io.Writer) {
	for _, load := range []struct {
		name string
		rows []row
	}{
		{"idle", r.Idle},
		{fmt.Sprintf("%g queries a second", r.Rate), r.Busy},
	} {
		if len(load.rows) == 0 {
			continue
		}
		fmt.Fprintf(w, "%s, %.0f s, load average %s\n\n", load.name, r.Seconds, cmp.Or(r.LoadAverage, "unknown"))
		fmt.Fprintf(w, format, "server, addresses", "CPU ms/s", "wake-ups/s", "syscalls/s", "sets", "queries", "lost", "kube-dns")
		for _, now := range load.rows {
			now.write(w)
		}
		fmt.Fprintln(w)
	}
	if r.Kept {
		fmt.Fprintln(w, "pass")
		return
	}
	fmt.Fprintln(w, "FAIL")
	for _, f := range r.Failures {
		fmt.Fprintf(w, "  %s\n", f)
	}
}

func (r *row) write(w io.Writer) {
	syscalls, sets, queries, lost, elsewhere := "-", "-", "-", "-", "-"
	if r.Syscalls != nil {
		syscalls = fmt.Sprintf("%.0f", *r.Syscalls)
	}
	if r.Queries > 0 {
		queries, lost, elsewhere = fmt.Sprint(r.Queries), fmt.Sprint(r.Lost), fmt.Sprint(r.Elsewhere)
	} else if r.Kind == trackless {
		sets = fmt.Sprintf("%.2f MB", megabytes(r.SetBytes))
	}
	fmt.Fprintf(w, format, r.Server, fmt.Sprintf("%.2f", r.CPU), fmt.Sprintf("%.1f", r.Wakeups), syscalls, sets, queries, lost, elsewhere)
}
