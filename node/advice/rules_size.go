package advice

import (
	"fmt"
	"time"

	"github.com/trackless-dns/trackless/internal/figure"
)

// Thresholds of the rules about the size of the table.
const (
	fillWarning  = 0.80
	fillCritical = 0.95

	// A table that fills within this time is a finding.
	fillingHorizon  = time.Hour
	fillingCritical = 10 * time.Minute
	// Below this part of the limit growth is noise: a handful of new
	// connections between two readings.
	fillingNoise = 0.0001

	// The kernel's own default is one bucket to one entry at the limit, and
	// every entry stands in the hash twice, once for each direction.
	entriesPerBucket = 2
	limitPerBucket   = 8
)

func tableFull(m *Measurements) []Finding {
	fill := m.fill()
	if fill < fillWarning {
		return nil
	}
	f := Finding{
		Severity: Warning,
		Title:    fmt.Sprintf("the table is %.0f %% full", 100*fill),
		Evidence: []string{m.entriesOf()},
	}
	if fill >= fillCritical {
		f.Severity = Critical
		f.Evidence = append(f.Evidence, "at the limit entries that are not assured are evicted, DNS first; when there are none packets of new flows are dropped")
	}
	if m.Table != nil && m.share(m.Table.DNS.Entries) >= dnsShareNotable {
		f.Evidence = append(f.Evidence, fmt.Sprintf("%.0f %% of the entries are DNS", 100*m.share(m.Table.DNS.Entries)))
		f.Remedy = append(f.Remedy, "keep DNS out of the table: run Trackless on this node")
	}
	size := Recommend(m).Size
	if size.Max > m.Limit {
		f.Remedy = append(f.Remedy, fmt.Sprintf("raise net.netfilter.nf_conntrack_max to %d and the hash to %d buckets: trackless tune --apply", size.Max, size.Buckets))
		f.Memory = fmt.Sprintf("up to %s more when full", bytesText(size.ExtraBytes))
		f.Risk = "kernel memory that no cgroup limits; none if the entries never come"
	} else {
		f.Remedy = append(f.Remedy, "a higher limit would take more than a sixteenth of this machine's memory: spread the load over more nodes (trackless tune --nodes says how many)")
	}
	f.Remedy = append(f.Remedy, "see who fills it: trackless conntrack stats")
	return []Finding{f}
}

func tableFilling(m *Measurements) []Finding {
	if m.Limit == 0 || m.Interval <= 0 || m.Entries >= m.Limit || float64(m.Growth) <= fillingNoise*float64(m.Limit) {
		return nil
	}
	perSecond := float64(m.Growth) / m.Interval.Seconds()
	left := time.Duration(float64(m.Limit-m.Entries) / perSecond * float64(time.Second))
	if left > fillingHorizon {
		return nil
	}
	f := Finding{
		Severity: Warning,
		Title:    fmt.Sprintf("at this rate the table is full in %s", left.Round(time.Second)),
		Evidence: []string{
			fmt.Sprintf("%s entries in %s: %.0f a second, %s places left", figure.Thousands(m.Growth), m.Interval, perSecond, figure.Thousands(m.Limit-m.Entries)),
			"the rate falls when the first entries expire: measure again after the timeout of what grows (30 s for DNS)",
		},
		Remedy: []string{
			"see what grows: trackless conntrack watch --rate, trackless conntrack stats",
			"raise the limit before it is reached: trackless tune",
		},
		Risk: "none in looking",
	}
	if left <= fillingCritical {
		f.Severity = Critical
	}
	return []Finding{f}
}

func fewBuckets(m *Measurements) []Finding {
	if m.Buckets == 0 {
		return nil
	}
	now, full := float64(m.Entries)/float64(m.Buckets), float64(m.Limit)/float64(m.Buckets)
	title := fmt.Sprintf("%.1f entries to a hash bucket", now)
	if m.Limit > 0 {
		title += fmt.Sprintf(", %.1f when the table is full", full)
	}
	f := Finding{
		Title: title,
		Evidence: []string{
			fmt.Sprintf("%s buckets, %s", figure.Thousands(m.Buckets), m.entriesOf()),
			"an entry stands in the hash twice; every packet walks half a bucket's list before it finds its flow",
		},
	}
	switch {
	case now > entriesPerBucket:
		f.Severity = Warning
	case full > limitPerBucket:
		f.Severity = Info
	default:
		return nil
	}
	buckets := Recommend(m).Size.Buckets
	f.Remedy = []string{
		fmt.Sprintf("echo %d > /sys/module/nf_conntrack/parameters/hashsize, and options nf_conntrack hashsize=%d in /etc/modprobe.d: trackless tune --apply", buckets, buckets),
	}
	f.Memory = fmt.Sprintf("%s for the larger hash, at once", bytesText((buckets-min(buckets, m.Buckets))*m.Memory.BucketBytes))
	f.Risk = "packets wait some milliseconds while the kernel moves the entries; a dump under way is interrupted"
	return []Finding{f}
}
