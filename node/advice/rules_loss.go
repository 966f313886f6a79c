package advice

import (
	"fmt"
	"time"

	"github.com/trackless-dns/trackless/internal/figure"
)

// recentLog is how old a message may be to speak of the present.
const recentLog = 10 * time.Minute

// loss makes the finding about one counter of the kernel: of the given severity
// if it rises, of the lesser one if it rose some time since boot.
func loss(m *Measurements, counter string, rise, total uint64, rising, once Severity, f Finding) []Finding {
	switch {
	case rise > 0:
		f.Severity = rising
		f.Evidence = append([]string{fmt.Sprintf("%s rose by %s in %s, to %s", counter, figure.Thousands(rise), m.Interval, figure.Thousands(total))}, f.Evidence...)
	case total > 0:
		f.Severity = once
		f.Title += " (not now)"
		f.Evidence = append([]string{fmt.Sprintf("%s is %s since this namespace was made and did not rise while it was measured", counter, figure.Thousands(total))}, f.Evidence...)
	default:
		return nil
	}
	return []Finding{f}
}

// withoutClashes takes off drop what insert_failed counts, too. Near the limit
// nothing is taken off: then the table is the more likely cause.
func withoutClashes(m *Measurements, drop, insertFailed uint64) uint64 {
	if m.fill() >= fillCritical {
		return drop
	}
	return drop - min(drop, insertFailed)
}

func dropped(m *Measurements) []Finding {
	f := Finding{
		Title:    "packets of new flows are dropped",
		Evidence: []string{m.entriesOf()},
		Remedy: []string{
			"raise the limit: trackless tune",
			"keep DNS out of the table: run Trackless on this node",
			"if the table is not near its limit, memory is short: search for allocation failures in the kernel's log",
		},
		Memory: "see trackless tune",
		Risk:   "none beyond the memory",
	}
	if m.Limit == 0 {
		f.Remedy = f.Remedy[1:]
	}
	if clashes := max(m.Rise.InsertFailed, m.Total.InsertFailed); clashes > 0 {
		f.Evidence = append(f.Evidence, "the kernel counts failed insertions as drop, too: "+figure.Thousands(m.Total.InsertFailed)+" in all, which are left out above unless the table is nearly full")
	}
	return loss(m, "drop", withoutClashes(m, m.Rise.Drop, m.Rise.InsertFailed), withoutClashes(m, m.Total.Drop, m.Total.InsertFailed), Critical, Warning, f)
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

// clashes says what the kernel does about two packets whose entries collide, and
// so what raises insert_failed there: nf_ct_resolve_clash in
// nf_conntrack_core.c, which was changed over the years. Only UDP is spared.
func clashes(kernel [2]int) []string {
	const (
		settled = "two packets sent at once from one UDP socket, such as A and AAAA of a resolver, lose nothing on this kernel (Linux 5.10 and later), whichever server they are sent to: that race is clash_resolve"
		partly  = "two packets sent at once from one UDP socket, such as A and AAAA of a resolver, make two entries. On this kernel (Linux 4.19 to 5.9) one packet may be lost if they are sent to different servers of a Service: the lookup waits 5 s"
		lost    = "two packets sent at once from one UDP socket, such as A and AAAA of a resolver, make two entries. On this kernel (before Linux 4.19) one packet is lost if they are translated, as those to a Service are: the lookup waits 5 s"
		others  = "on every kernel: two flows whose answers would look alike. Either masquerade gave two flows one port at the same time, or one client port asks two Service addresses that lead to the same server"
		notUDP  = "on every kernel: two first packets at once of one TCP connection; on most also of one ICMP flow, such as two pings with one identifier"
	)
	switch {
	case kernel == [2]int{}:
		return []string{"before Linux 5.10: two packets sent at once from one UDP socket, such as A and AAAA of a resolver. Since then that race is settled, and counts as clash_resolve", others, notUDP}
	case !olderThan(kernel, 5, 10):
		return []string{others, notUDP, settled}
	case !olderThan(kernel, 4, 19):
		return []string{partly, others, notUDP}
	}
	return []string{lost, others, notUDP}
}

func olderThan(kernel [2]int, major, minor int) bool {
	return kernel[0] < major || kernel[0] == major && kernel[1] < minor
}

func insertFailed(m *Measurements) []Finding {
	f := Finding{
		Title:    "packets are lost because their entry collides with another",
		Evidence: clashes(m.Kernel),
		Remedy: []string{
			"masquerade: rules without fully-random (nft list ruleset) or --random-fully (iptables-save -t nat) race for ports. Add it, and see whether the counter still rises",
			"Services: two of them with the same endpoints (kubectl get endpointslices -A), asked from one port. Let clients ask one of them",
			"DNS: run Trackless on this node; untracked packets cannot collide",
		},
		Risk: "none",
	}
	if olderThan(m.Kernel, 5, 10) {
		f.Remedy = append(f.Remedy, "a resolver's pair of queries, until then: options single-request-reopen in the pods' resolv.conf (glibc only), or a resolver that uses a socket per query")
	}
	if m.Table != nil {
		f.Evidence = append(f.Evidence, fmt.Sprintf("of the entries now %s are under source NAT and %s under destination NAT", figure.Thousands(m.Table.NAT.SNAT+m.Table.NAT.Both), figure.Thousands(m.Table.NAT.DNAT+m.Table.NAT.Both)))
	}
	if m.Total.ClashResolve > 0 {
		f.Evidence = append(f.Evidence, fmt.Sprintf("%s further races were settled without loss (clash_resolve)", figure.Thousands(m.Total.ClashResolve)))
	}
	f.Evidence = append(f.Evidence, "each counts as drop, too")
	return loss(m, "insert_failed", m.Rise.InsertFailed, m.Total.InsertFailed, Warning, Info, f)
}

func chainTooLong(m *Measurements) []Finding {
	return loss(m, "chain_toolong", m.Rise.ChainTooLong, m.Total.ChainTooLong, Critical, Warning, Finding{
		Title:    "packets are dropped because their hash bucket is full",
		Evidence: []string{fmt.Sprintf("%s buckets for %s entries", figure.Thousands(m.Buckets), figure.Thousands(m.Entries))},
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
			fmt.Sprintf("%s messages \"nf_conntrack: table full, dropping packet\", the last %s ago", figure.Thousands(m.Log.TableFull), m.Log.LastAgo.Round(time.Second)),
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
