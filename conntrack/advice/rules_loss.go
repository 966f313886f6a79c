package advice

import (
	"fmt"
	"time"
)

// recentLog is how old a message may be to speak of the present.
const recentLog = 10 * time.Minute

// loss makes the finding about one counter of the kernel: of the given severity
// if it rises, of the lesser one if it rose some time since boot.
func loss(m *Measurements, counter string, rise, total uint64, rising, once Severity, f Finding) []Finding {
	switch {
	case rise > 0:
		f.Severity = rising
		f.Evidence = append([]string{fmt.Sprintf("%s rose by %s in %s, to %s", counter, thousands(rise), m.Interval, thousands(total))}, f.Evidence...)
	case total > 0:
		f.Severity = once
		f.Title += " (not now)"
		f.Evidence = append([]string{fmt.Sprintf("%s is %s since this namespace was made and did not rise while we looked", counter, thousands(total))}, f.Evidence...)
	default:
		return nil
	}
	return []Finding{f}
}

func dropped(m *Measurements) []Finding {
	return loss(m, "drop", m.Rise.Drop, m.Total.Drop, Critical, Warning, Finding{
		Title:    "packets of new flows are dropped",
		Evidence: []string{m.entriesOf()},
		Remedy: []string{
			"raise the limit: trackless tune",
			"keep DNS out of the table: run Trackless on this node",
			"if the table is not near its limit, memory is short: look for allocation failures in the kernel's log",
		},
		Memory: "see trackless tune",
		Risk:   "none beyond the memory",
	})
}

func earlyDropped(m *Measurements) []Finding {
	return loss(m, "early_drop", m.Rise.EarlyDrop, m.Total.EarlyDrop, Critical, Warning, Finding{
		Title:    "entries are evicted to make room",
		Evidence: []string{"only entries that are not assured go: DNS queries, half-open connections. Their answers are then INVALID, and lost behind NAT"},
		Remedy:   []string{"raise the limit: trackless tune", "keep DNS out of the table: run Trackless on this node"},
		Memory:   "see trackless tune",
		Risk:     "none beyond the memory",
	})
}

func insertFailed(m *Measurements) []Finding {
	f := Finding{
		Title: "packets are lost in the insertion race",
		Evidence: []string{
			"two packets sent at once from one socket (A and AAAA of a resolver) find no entry, both make one, and the second is dropped: the lookup waits 5 s",
		},
		Remedy: []string{
			"keep DNS out of the table: run Trackless on this node; untracked packets cannot race",
			"until then: options single-request-reopen in the pods' resolv.conf (glibc only), or a resolver that uses a socket per query",
			"source NAT with few free ports races too: give masquerade rules --random-fully",
		},
		Risk: "none",
	}
	if m.Total.ClashResolve > 0 {
		f.Evidence = append(f.Evidence, fmt.Sprintf("%s further races were settled without loss (clash_resolve)", thousands(m.Total.ClashResolve)))
	}
	return loss(m, "insert_failed", m.Rise.InsertFailed, m.Total.InsertFailed, Warning, Info, f)
}

func chainTooLong(m *Measurements) []Finding {
	return loss(m, "chain_toolong", m.Rise.ChainTooLong, m.Total.ChainTooLong, Critical, Warning, Finding{
		Title:    "packets are dropped because their hash bucket is full",
		Evidence: []string{fmt.Sprintf("%s buckets for %s entries", thousands(m.Buckets), thousands(m.Entries))},
		Remedy: []string{
			"give the hash more buckets: trackless tune",
			"many flows between the same two addresses in reused zones or with fixed ports end in one bucket: spread the ports",
		},
		Memory: "8 bytes a bucket",
		Risk:   "packets wait some milliseconds while the kernel moves the entries",
	})
}

func kernelLog(m *Measurements) []Finding {
	if m.Log == nil || m.Log.TableFull == 0 {
		return nil
	}
	f := Finding{
		Severity: Warning,
		Title:    "the kernel's log says that the table was full",
		Evidence: []string{
			fmt.Sprintf("%s messages \"nf_conntrack: table full, dropping packet\", the last %s ago", thousands(m.Log.TableFull), m.Log.LastAgo.Round(time.Second)),
			"the log is limited to a few messages in five seconds: packets were more. A namespace of this host was full, not necessarily this one: trackless conntrack stats --netns all",
		},
		Remedy: []string{"raise the limit: trackless tune", "keep DNS out of the table: run Trackless on this node"},
		Memory: "see trackless tune",
		Risk:   "none beyond the memory",
	}
	if m.Log.LastAgo <= recentLog {
		f.Severity = Critical
	}
	return []Finding{f}
}
