package advice

import (
	"fmt"
	"strings"
	"time"

	"github.com/trackless-dns/trackless/conntrack/summary"
	"github.com/trackless-dns/trackless/internal/figure"
)

// Thresholds of the rules about what is in the table. A share of a small table
// means nothing: below manyEntries no rule speaks.
const (
	manyEntries = 1000

	dnsShareNotable       = 0.20
	idleShareNotable      = 0.20
	timeWaitShareNotable  = 0.30
	unrepliedShareNotable = 0.50

	// Above this fill a notable share is a warning, below it is for information.
	fillCrowded = 0.50

	// Pools keep idle connections for long; the kernel's TCP keepalive, which
	// would refresh the entry, starts after 2 hours (tcp_keepalive_time).
	keepalive = 2 * time.Hour
)

// crowded is Warning where room is short, Info elsewhere.
func (m *Measurements) crowded() Severity {
	if m.fill() >= fillCrowded {
		return Warning
	}
	return Info
}

func dnsShare(m *Measurements) []Finding {
	if m.Avoided != nil && *m.Avoided > 0 {
		return []Finding{{
			Severity: Info,
			Title:    fmt.Sprintf("Trackless keeps %s entries out of the table", figure.Thousands(*m.Avoided)),
			Evidence: []string{
				fmt.Sprintf("the table has %s entries; with them it would have %s%s", figure.Thousands(m.Entries), figure.Thousands(m.Entries+*m.Avoided), m.ofLimit(m.Entries+*m.Avoided)),
				fmt.Sprintf("memory saved: %s", bytesText(m.Memory.Table(*m.Avoided, 0))),
			},
			Remedy: []string{"nothing to do"},
		}}
	}
	if m.Table == nil || m.Table.DNS.Entries < manyEntries || m.share(m.Table.DNS.Entries) < dnsShareNotable {
		return nil
	}
	dns := m.Table.DNS
	evidence := []string{fmt.Sprintf("%s of %s entries: %s UDP, %s TCP, %s never answered", figure.Thousands(dns.Entries), figure.Thousands(m.Table.Entries), figure.Thousands(dns.UDP), figure.Thousands(dns.TCP), figure.Thousands(dns.Unreplied))}
	if m.Limit > 0 {
		evidence = append(evidence, fmt.Sprintf("without them the table would be %.0f %% full instead of %.0f %%", 100*float64(m.Entries-min(m.Entries, dns.Entries))/float64(m.Limit), 100*m.fill()))
	}
	return []Finding{{
		Severity: m.crowded(),
		Title:    fmt.Sprintf("%.0f %% of the table is DNS", 100*m.share(dns.Entries)),
		Evidence: evidence,
		Remedy:   []string{fmt.Sprintf("run Trackless on this node: it answers from a cache and keeps DNS untracked; saves about %s entries, %s", figure.Thousands(dns.Entries), bytesText(m.Memory.Table(dns.Entries, 0)))},
		Memory:   "the cache's own, as configured",
		Risk:     "none: without Trackless queries go to kube-dns as now",
	}}
}

// ofLimit writes how much of the limit n entries are, nothing if there is none.
func (m *Measurements) ofLimit(n uint64) string {
	if m.Limit == 0 {
		return ""
	}
	return fmt.Sprintf(", %.0f %% of its limit", 100*float64(n)/float64(m.Limit))
}

func idleEstablished(m *Measurements) []Finding {
	timeout, ok := m.setting("nf_conntrack_tcp_timeout_established")
	if !ok || m.Table == nil || time.Duration(timeout)*time.Second <= 24*time.Hour {
		return nil
	}
	idle := m.Table.Established.IdleHour
	if idle < manyEntries || m.share(idle) < idleShareNotable {
		return nil
	}
	return []Finding{{
		Severity: m.crowded(),
		Title:    fmt.Sprintf("%.0f %% of the table are TCP connections idle for an hour or more", 100*m.share(idle)),
		Evidence: []string{
			fmt.Sprintf("%s of %s established connections idle over an hour, %s over a day", figure.Thousands(idle), figure.Thousands(m.Table.Established.Entries), figure.Thousands(m.Table.Established.IdleDay)),
			fmt.Sprintf("nf_conntrack_tcp_timeout_established is %s: a connection whose end was not seen stays that long", time.Duration(timeout)*time.Second),
		},
		Remedy: []string{"set net.netfilter.nf_conntrack_tcp_timeout_established to 86400 (one day, as kube-proxy does): trackless tune"},
		Memory: "none; frees " + bytesText(m.Memory.Table(m.Table.Established.IdleDay, 0)) + " within a day",
		Risk:   "a connection idle for longer than the timeout is forgotten: its next packet is INVALID, or is taken up without its NAT, and the application sees a reset or a hang. Keep the timeout above the idle time of connection pools, or their keepalive below the timeout",
	}}
}

func establishedShort(m *Measurements) []Finding {
	seconds, ok := m.setting("nf_conntrack_tcp_timeout_established")
	timeout := time.Duration(seconds) * time.Second
	if !ok || timeout >= keepalive {
		return nil
	}
	return []Finding{{
		Severity: Warning,
		Title:    fmt.Sprintf("established connections are forgotten after %s of silence", timeout),
		Evidence: []string{
			fmt.Sprintf("nf_conntrack_tcp_timeout_established is %d s; TCP keepalives start after %d s unless an application asks for sooner", seconds, int(keepalive.Seconds())),
			"a pool that keeps a connection longer sends its next request into nothing: the packet is INVALID and passes without NAT, or is dropped",
		},
		Remedy: []string{
			fmt.Sprintf("set it to %d or more (kube-proxy: conntrack.tcpEstablishedTimeout)", int(24*time.Hour/time.Second)),
			"or make pools close idle connections, or send keepalives, before " + timeout.String(),
		},
		Memory: "entries of closed-without-goodbye connections stay longer: " + fmt.Sprint(m.Memory.EntryBytes+m.Memory.ExtensionBytes) + " bytes each",
		Risk:   "a fuller table",
	}}
}

func timeWait(m *Measurements) []Finding {
	if m.Table == nil {
		return nil
	}
	n := m.Table.State("tcp", "TIME_WAIT")
	if n < manyEntries || m.share(n) < timeWaitShareNotable {
		return nil
	}
	timeout, _ := m.setting("nf_conntrack_tcp_timeout_time_wait")
	return []Finding{{
		Severity: m.crowded(),
		Title:    fmt.Sprintf("%.0f %% of the table are closed TCP connections", 100*m.share(n)),
		Evidence: []string{fmt.Sprintf("%s entries in TIME_WAIT, which last %d s: about %s connections closed a second", figure.Thousands(n), timeout, figure.Thousands(n/max(1, timeout)))},
		Remedy: []string{
			"let clients reuse connections (HTTP keep-alive, pools): the cause is a connection for each request",
			"set net.netfilter.nf_conntrack_tcp_timeout_time_wait to 30",
		},
		Memory: "none; frees " + bytesText(m.Memory.Table(n-n*min(30, timeout)/max(1, timeout), 0)),
		Risk:   "with a shorter timeout late segments of an old connection are INVALID instead of ignored; harmless unless rules reject INVALID with a reset",
	}}
}

func udpUnreplied(m *Measurements) []Finding {
	if m.Table == nil || m.Table.UDPUnreplied < manyEntries || m.share(m.Table.UDPUnreplied) < unrepliedShareNotable {
		return nil
	}
	return []Finding{{
		Severity: Warning,
		Title:    fmt.Sprintf("%.0f %% of the table are UDP flows without an answer", 100*m.share(m.Table.UDPUnreplied)),
		Evidence: append([]string{fmt.Sprintf("%s entries; most from %s", figure.Thousands(m.Table.UDPUnreplied), countedList(m.Table.UDPUnrepliedSources))},
			portsOf(m.Table, "udp")),
		Remedy: []string{
			"if the sources are pods: check what they send and to whom (trackless conntrack list --proto udp --state UNREPLIED)",
			"if they are from outside: drop the packets before they are tracked, in a raw or nftables prerouting chain at priority -300",
			"if a server is down or its answers take another way, the flows are its clients': see dead-dns-endpoint",
		},
		Risk: "a rule that drops too much",
	}}
}

func countedList(list []summary.Counted) string {
	const shown = 3
	parts := make([]string, 0, shown)
	for _, c := range list[:min(shown, len(list))] {
		parts = append(parts, fmt.Sprintf("%s (%s)", c.Address, figure.Thousands(c.Entries)))
	}
	if len(parts) == 0 {
		return "unknown sources"
	}
	return strings.Join(parts, ", ")
}

func portsOf(s *summary.Summary, protocol string) string {
	const shown = 3
	parts := make([]string, 0, shown)
	for _, p := range s.DestinationPorts {
		if p.Protocol == protocol && len(parts) < shown {
			parts = append(parts, fmt.Sprintf("%d (%s)", p.Port, figure.Thousands(p.Entries)))
		}
	}
	return "most frequent " + protocol + " destination ports: " + strings.Join(parts, ", ")
}
