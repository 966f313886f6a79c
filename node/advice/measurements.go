package advice

import (
	"net/netip"
	"time"

	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/conntrack/summary"
	"github.com/trackless-dns/trackless/conntrack/sysctl"
	"github.com/trackless-dns/trackless/internal/figure"
)

// Measurements describe a host. A field that could not be measured is left
// at its zero value, and no rule finds anything in it.
type Measurements struct {
	// Entries, Limit and Buckets are sysctl.Limits; a Limit of 0 is none.
	Entries, Limit, Buckets uint64
	// Memory is the size of an entry; MemoryTotal the machine's memory in bytes.
	Memory      sysctl.Memory
	MemoryTotal uint64

	// Kernel is the version of Linux as {major, minor}, zero if not known.
	Kernel [2]int

	// Interval is the time between two readings; Growth and Rise are how much
	// Entries and the kernel's counters grew in it.
	Interval time.Duration
	Growth   int64
	Rise     conntrack.CPUStats
	// Total are the kernel's counters at the second reading.
	Total conntrack.CPUStats

	Settings []sysctl.Setting
	Table    *summary.Summary

	Log *KernelLog

	// Active is false if a packet sent for the purpose was not tracked, nil if
	// it was not tried.
	Active *bool

	// Listeners are the addresses of this node on which a DNS server listens
	// with sockets of their own: those of a node-local cache.
	Listeners []netip.Addr
	// Notrack says for each of Listeners which of its DNS rules untrack, nil if
	// the rules could not be read whole.
	Notrack []Notrack
	// Recent are the DNS flows of which a packet was tracked during Interval, nil
	// if that was not measured. Entries outlive the rules that untrack their flows:
	// one that is not in Recent may be older than these rules.
	Recent map[summary.DNSFlow]bool
	// Avoided is the number of entries that a Trackless on this node keeps out
	// of the table (its metric entries_avoided), nil if none was asked.
	Avoided *uint64

	// Search are the queries of search paths that this Trackless got.
	Search Search

	// Answers are those of a pod's DNS servers, nil where none was asked.
	Answers []Answers

	// SavedTables are tables of Trackless in rulesets that are loaded at boot.
	SavedTables []SavedTable

	Datapath Datapath
	// KubeProxies are the programs that do kube-proxy's work in this network
	// namespace. Beside RKE2, which sets the sysctls, runs a kube-proxy that
	// does not.
	KubeProxies []KubeProxy
}

// KernelLog is what the kernel's log says of the table.
type KernelLog struct {
	// TableFull counts messages "table full, dropping packet". The kernel
	// limits their rate, so packets were more.
	TableFull int
	// LastAgo is how long ago the last one was.
	LastAgo time.Duration
}

// Notrack is what rules do to the DNS of one address before conntrack sees it.
type Notrack struct {
	Address netip.Addr
	// Queries and Responses tell whether some rule untracks them.
	Queries, Responses bool
	// Detached: a Trackless has rules for the address, but lets its queries
	// pass to kube-dns for now.
	Detached bool
	// Zone names a rule that puts the queries into a conntrack zone, which tracks
	// them whatever is untracked before; empty if there is none.
	Zone string
}

// SavedTable is a statement about a table of Trackless in a file of nft.
type SavedTable struct {
	Path  string
	Line  int
	Table string
}

// Datapath is how pods' packets reach the node, as far as it passes the hooks by.
type Datapath struct {
	// KubeProxyReplacement: Cilium translates what pods send to Services in its
	// own programs, instead of kube-proxy or beside it.
	KubeProxyReplacement bool
	// SocketLB: Cilium translates Services in the pod's connect(2) already.
	SocketLB bool
	// CalicoEBPF: Calico's eBPF datapath.
	CalicoEBPF bool
	// Evidence names what was found.
	Evidence []string
}

func valueOr[T any](p *T, def T) T {
	if p == nil {
		return def
	}
	return *p
}

// setting returns a setting's value by its name below net.netfilter.
func (m *Measurements) setting(name string) (uint64, bool) {
	return sysctl.SettingValue(m.Settings, name)
}

// entriesOf writes how many entries there are of how many.
func (m *Measurements) entriesOf() string { return figure.Entries(m.Entries, m.Limit) }

// fill returns how much of the limit is used, 0 to 1 and above; 0 if there is
// none.
func (m *Measurements) fill() float64 {
	if m.Limit == 0 {
		return 0
	}
	return float64(m.Entries) / float64(m.Limit)
}

// share returns the share of n in the entries that were read.
func (m *Measurements) share(n uint64) float64 {
	if m.Table == nil || m.Table.Entries == 0 {
		return 0
	}
	return float64(n) / float64(m.Table.Entries)
}

// Search are the queries of search paths that a Trackless got since it started.
type Search struct {
	// Queries were asked of its cache. OnPath are those of them for an external name below a domain of a
	// search path, Cut those that the denial of another question answered.
	Queries, OnPath, Cut uint64
	// OnePass are replies for a whole search path.
	OnePass uint64
}
