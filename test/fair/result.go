package main

import (
	"fmt"
	"io"
)

// What is asked of Trackless.
const (
	moreMiB       = 40  // above what is resident without a flood
	uncachedLost  = 0.1 // percent, lost or answered with an error
	slowerBy      = 2.0 // the 99th percentile of uncached names beside the flood
	namedWithinMS = 10_000

	// Where the upstream fails altogether, or over TCP, cached names may be lost: percent.
	cachedLost = 1.0
)

// A result is what a flood did to a server. Its JSON form is stable.
type result struct {
	Server   string `json:"server"`
	Upstream string `json:"upstream"`
	Protocol string `json:"protocol"`
	Flood    int    `json:"flood"` // queries of the flood

	// Shed are queries that Trackless dropped or answered SERVFAIL since their client has more
	// than its share, Buffer those that found no room in a socket's buffer.
	Shed   int    `json:"shed"`
	Buffer uint64 `json:"buffer"`

	// Of the other pod's queries for cached and uncached names. Failed are REFUSED,
	// SERVFAIL and the like.
	Cached         int     `json:"cached"`
	CachedLost     int     `json:"cached_lost"`
	CachedP99MS    float64 `json:"cached_p99_ms"`
	Uncached       int     `json:"uncached"`
	UncachedLost   int     `json:"uncached_lost"`
	UncachedFailed int     `json:"uncached_failed"`
	UncachedP50MS  float64 `json:"uncached_p50_ms"`
	UncachedP99MS  float64 `json:"uncached_p99_ms"`

	// Without the flood.
	QuietLost  int     `json:"quiet_lost"`
	QuietP99MS float64 `json:"quiet_p99_ms"`

	IdleMiB      float64 `json:"idle_mib"`
	PeakMiB      float64 `json:"peak_mib"`
	Descriptors  int     `json:"descriptors"`
	Killed       bool    `json:"killed"`
	NamedAfterMS int64   `json:"named_after_ms"` // 0: never

	Failures []string `json:"failures,omitempty"`
}

func percent(part, whole int) float64 { return 100 * float64(part) / float64(max(whole, 1)) }

// judge notes what Trackless did not keep.
func (r *result) judge() {
	fail := func(format string, args ...any) { r.Failures = append(r.Failures, fmt.Sprintf(format, args...)) }
	mostCached := 0.0
	if r.Upstream == closed || r.Upstream == refusing {
		mostCached = cachedLost
	}
	if r.Killed {
		fail("killed: out of memory")
	}
	if lost := percent(r.CachedLost, r.Cached); lost > mostCached {
		fail("%d of %d queries for cached names were lost (%.2f %%, at most %.1f)", r.CachedLost, r.Cached, lost, mostCached)
	}
	if r.Upstream != closed {
		if lost := percent(r.UncachedLost+r.UncachedFailed, r.Uncached); lost > uncachedLost {
			fail("%d of %d queries for uncached names were lost or failed (%.2f %%, at most %.1f)", r.UncachedLost+r.UncachedFailed, r.Uncached, lost, uncachedLost)
		}
		if r.UncachedP99MS > slowerBy*r.QuietP99MS {
			fail("99 %% of uncached names took up to %.1f ms, without the flood %.1f ms", r.UncachedP99MS, r.QuietP99MS)
		}
	}
	if r.PeakMiB > r.IdleMiB+moreMiB {
		fail("%.0f MiB were resident, %.0f without the flood", r.PeakMiB, r.IdleMiB)
	}
	if r.NamedAfterMS == 0 || r.NamedAfterMS > namedWithinMS {
		fail("the log did not name the client that floods within %d s", namedWithinMS/1000)
	}
}

const lineFormat = "%-5s %-9s %-14s %9s %12s %8s %14s %8s %8s %9s %10s %6s %7s %6s %8s %8s\n"

func writeHead(out io.Writer) {
	fmt.Fprintf(out, lineFormat, "over", "upstream", "server", "flood", "cached lost", "p99", "uncached lost", "failed", "p50", "p99", "quiet p99", "MiB", "named", "files", "shed", "buffer")
}

func (r *result) write(out io.Writer) {
	mib, named := fmt.Sprintf("+%.0f", r.PeakMiB-r.IdleMiB), "-"
	if r.Killed {
		mib = "KILLED"
	}
	if r.NamedAfterMS > 0 {
		named = fmt.Sprintf("%.1f s", float64(r.NamedAfterMS)/1000)
	}
	ms := func(v float64) string { return fmt.Sprintf("%.1f ms", v) }
	fmt.Fprintf(out, lineFormat, r.Protocol, r.Upstream, r.Server, fmt.Sprint(r.Flood),
		fmt.Sprintf("%d/%d", r.CachedLost, r.Cached), ms(r.CachedP99MS), fmt.Sprintf("%d/%d", r.UncachedLost, r.Uncached), fmt.Sprint(r.UncachedFailed),
		ms(r.UncachedP50MS), ms(r.UncachedP99MS), ms(r.QuietP99MS), mib, named, fmt.Sprint(r.Descriptors), fmt.Sprint(r.Shed), fmt.Sprint(r.Buffer))
	for _, f := range r.Failures {
		fmt.Fprintf(out, "    %s\n", f)
	}
}
