// Package snapshot is what is known of a node's connection tracking table and
// of the DNS in it at one time, in a form that is kept in a file and compared
// later: `trackless snapshot` writes it, `trackless compare` reads it.
//
// The form is versioned by its field schema. Within a version fields are added,
// never renamed and never given another meaning; docs/snapshot.md describes
// them all.
package snapshot

import (
	"net/netip"
	"time"

	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/conntrack/summary"
	"github.com/trackless-dns/trackless/internal/figure"
)

// Schema names this version of the form.
const Schema = "trackless.snapshot/v1"

// A Snapshot is one node, measured for WindowSeconds. Pointers that are nil, and
// lists that are empty, were not measured; Missing says why.
type Snapshot struct {
	Schema string `json:"schema"`
	// Time is the end of the window, in UTC.
	Time time.Time `json:"time"`
	// WindowSeconds is how long it was measured; 0 if it was read once, which has
	// no rates.
	WindowSeconds float64  `json:"window_seconds"`
	Node          Node     `json:"node"`
	Versions      Versions `json:"versions"`
	Table         Table    `json:"table"`
	// Settings are the sysctls of connection tracking by their full names, in
	// the units that docs/conntrack.md gives.
	Settings map[string]uint64 `json:"settings,omitempty"`
	Counters []Counter         `json:"counters"`
	// NewFlows are the entries that were made during the window.
	NewFlows *NewFlows `json:"new_flows,omitempty"`
	// SentPerSecond is the number of DNS queries a second where whoever took
	// the snapshot sent them, each from a port of its own: `trackless lab`.
	SentPerSecond *float64 `json:"sent_per_second,omitempty"`
	// Listeners are the addresses of this node on which a DNS server listens.
	Listeners []Listener `json:"listeners"`
	Rules     *Rules     `json:"rules,omitempty"`
	// Ledger is what the instances of Trackless kept out of the table; nil if
	// none was reached.
	Ledger *Ledger `json:"ledger,omitempty"`
	// Search are the queries of search paths that these instances got.
	Search  *Search  `json:"search,omitempty"`
	Samples []Sample `json:"samples"`
	// Missing says in sentences what could not be measured, and why.
	Missing []string `json:"missing,omitempty"`
}

// Node tells nodes, and the boots of one node, apart.
type Node struct {
	Name string `json:"name"`
	// BootID is the kernel's random identity of this boot
	// (kernel.random.boot_id, random(4)).
	BootID string `json:"boot_id,omitempty"`
	// NetworkNamespace is the inode of the network namespace.
	NetworkNamespace uint64  `json:"network_namespace,omitempty"`
	Kernel           string  `json:"kernel,omitempty"`
	Architecture     string  `json:"architecture,omitempty"`
	CPUs             int     `json:"cpus,omitempty"`
	MemoryBytes      uint64  `json:"memory_bytes,omitempty"`
	UptimeSeconds    float64 `json:"uptime_seconds,omitempty"`
}

// Versions are those of the program that took the snapshot.
type Versions struct {
	Trackless string `json:"trackless"`
	CoreDNS   string `json:"coredns"`
	Go        string `json:"go"`
}

// Table is the table at the end of the window.
type Table struct {
	// Entries is the kernel's own count, expired entries that nobody collected
	// yet included.
	Entries          uint64  `json:"entries"`
	Limit            uint64  `json:"limit"`
	Buckets          uint64  `json:"buckets"`
	FillPercent      float64 `json:"fill_percent"`
	MemoryBytes      uint64  `json:"memory_bytes"`
	MemoryLimitBytes uint64  `json:"memory_limit_bytes"`
	Expectations     uint64  `json:"expectations"`
	// Summary says what the entries are: its field dns is DNS over port 53. Nil
	// without CAP_NET_ADMIN.
	Summary *summary.Summary `json:"summary,omitempty"`
	// DNSPercent is the share of DNS in the entries of Summary.
	DNSPercent *float64 `json:"dns_percent,omitempty"`
}

// Counter is a counter of the kernel, conntrack.Counter with its rate.
type Counter struct {
	Name string `json:"name"`
	// Total is the count since the namespace was made, modulo 2^32 on each CPU.
	Total uint64 `json:"total"`
	// PerSecond is its rise during the window, nil without a window.
	PerSecond *float64 `json:"per_second,omitempty"`
	// Loss says that every count is a packet or an entry lost.
	Loss bool `json:"loss"`
}

// NewFlows counts the kernel's events of new entries.
type NewFlows struct {
	PerSecond    float64 `json:"per_second"`
	DNSPerSecond float64 `json:"dns_per_second"`
	// Lost: events came faster than they were read, and the rates are too low.
	Lost bool `json:"lost,omitempty"`
}

// Listener is an address with a DNS server, and whether rules untrack its
// queries and responses; nil if the rules could not be read whole.
type Listener struct {
	Address            netip.Addr `json:"address"`
	QueriesUntracked   *bool      `json:"queries_untracked,omitempty"`
	ResponsesUntracked *bool      `json:"responses_untracked,omitempty"`
}

// Rules are those that untrack DNS.
type Rules struct {
	Instances []Instance `json:"instances"`
	// Failover is the standing table for link-local addresses, nil if there is
	// none.
	Failover *Failover `json:"failover,omitempty"`
	// Foreign are the rules of others that meet DNS before conntrack sees it.
	Foreign []ConflictingRule `json:"foreign"`
	Notes   []string          `json:"notes,omitempty"`
}

// Instance is a Trackless of this node.
type Instance struct {
	Table   string `json:"table,omitempty"`
	Backend string `json:"backend"`
	Owned   bool   `json:"owned"`
	PID     int    `json:"pid"`
	Version string `json:"version,omitempty"`
	// State is attached, partly attached, detached or draining.
	State string `json:"state"`
	// Since is when it was entered; zero if the instance did not answer.
	Since   time.Time `json:"since,omitzero"`
	ByHand  bool      `json:"by_hand,omitempty"`
	Reason  string    `json:"reason,omitempty"`
	Packets []Packets `json:"packets,omitempty"`
}

// Packets counts the packets that a rule untracked, or for failover sent on.
type Packets struct {
	Direction string `json:"direction"`
	Family    string `json:"family"`
	Protocol  string `json:"protocol"`
	Total     uint64 `json:"total"`
}

// Failover is the table that takes queries to kube-dns when nobody is attached.
type Failover struct {
	Intact  bool      `json:"intact"`
	Packets []Packets `json:"packets"`
}

// ConflictingRule is a rule that is not ours.
type ConflictingRule struct {
	Family  string   `json:"family"`
	Table   string   `json:"table"`
	Chain   string   `json:"chain"`
	Rule    string   `json:"rule"`
	Effects []string `json:"effects"`
	Meaning string   `json:"meaning"`
	Certain bool     `json:"certain"`
}

// Ledger is the sum over all instances that were reached.
type Ledger struct {
	Instances int `json:"instances"`
	// EntriesAvoided is how many more entries the table would have now had the
	// DNS that the instances serve been tracked.
	EntriesAvoided uint64 `json:"entries_avoided"`
	// Error is the distance within which the truth lies with a probability of
	// 99.7 %; 0 where the number is exact.
	Error             float64 `json:"entries_avoided_error"`
	FlowsAvoidedTotal uint64  `json:"flows_avoided_total"`
	// FlowsPerSecond is how fast FlowsAvoidedTotal rose during the window.
	FlowsPerSecond *float64 `json:"flows_avoided_per_second,omitempty"`
	Classes        []Class  `json:"classes"`
}

// Search is the sum over all instances that were reached, since they started. The shares are those of
// the window, and nil if there was none, or no query in it.
type Search struct {
	// QueriesTotal were asked of the cache. SearchTotal are those of them for an external name below a
	// domain of a search path, CutTotal those that the denial of another question answered.
	QueriesTotal uint64 `json:"queries_total"`
	SearchTotal  uint64 `json:"search_total"`
	CutTotal     uint64 `json:"cut_total"`
	// OnePassTotal are queries that clients did not send, since one reply was for the whole path.
	OnePassTotal uint64 `json:"one_pass_total"`
	// SearchPercent is the share of the search path in the queries. SavedPerSecond are the queries that
	// upstream or this node did not get: CutTotal and OnePassTotal.
	SearchPercent  *float64 `json:"search_percent,omitempty"`
	SavedPerSecond *float64 `json:"saved_per_second,omitempty"`
}

// Since sets the shares of a window that began with before, and lasted seconds. An instance that was
// replaced meanwhile began to count at 0: then there are none.
func (s *Search) Since(before Search, seconds float64) {
	saved := func(s Search) uint64 { return s.CutTotal + s.OnePassTotal }
	if seconds <= 0 || s.QueriesTotal < before.QueriesTotal || s.SearchTotal < before.SearchTotal || saved(*s) < saved(before) {
		return
	}
	s.SavedPerSecond = new(float64(saved(*s)-saved(before)) / seconds)
	if queries := s.QueriesTotal - before.QueriesTotal; queries > 0 {
		s.SearchPercent = new(figure.Percent(s.SearchTotal-before.SearchTotal, queries))
	}
}

// Class is a part of the ledger.
type Class struct {
	Protocol          string `json:"protocol"`
	Family            string `json:"family"`
	EntriesAvoided    uint64 `json:"entries_avoided"`
	FlowsAvoidedTotal uint64 `json:"flows_avoided_total"`
}

// Sample is one reading within the window.
type Sample struct {
	// Seconds since the window began.
	Seconds float64 `json:"seconds"`
	Entries uint64  `json:"entries"`
	// DNSEntries is nil where the table was not walked, which large tables are
	// not at every sample.
	DNSEntries     *uint64 `json:"dns_entries,omitempty"`
	EntriesAvoided *uint64 `json:"entries_avoided,omitempty"`
	// Lost is the rise of the counters with Loss since the window began.
	Lost uint64 `json:"lost"`
}

// SetSummary takes over what was counted.
func (t *Table) SetSummary(s *summary.Summary) {
	t.Summary, t.DNSPercent = s, nil
	if s != nil && s.Entries > 0 {
		t.DNSPercent = new(100 * float64(s.DNS.Entries) / float64(s.Entries))
	} else if s != nil {
		t.DNSPercent = new(0.0)
	}
}

// Counters gives the kernel's counters their rates: rise is what they grew in
// the window, or nil without one.
func Counters(total conntrack.CPUStats, rise *conntrack.CPUStats, window time.Duration) []Counter {
	var grown []conntrack.Counter
	if rise != nil && window > 0 {
		grown = rise.Counters()
	}
	var counters []Counter
	for i, c := range total.Counters() {
		counter := Counter{Name: c.Name, Total: c.Value, Loss: c.Loss}
		if grown != nil {
			counter.PerSecond = new(float64(grown[i].Value) / window.Seconds())
		}
		counters = append(counters, counter)
	}
	return counters
}

// Attached returns the instances whose rules are in force.
func (s *Snapshot) Attached() []Instance {
	var list []Instance
	if s.Rules == nil {
		return nil
	}
	for _, i := range s.Rules.Instances {
		if i.State == "attached" || i.State == "partly attached" {
			list = append(list, i)
		}
	}
	return list
}

// Counter returns the named counter, nil if it was not read.
func (s *Snapshot) Counter(name string) *Counter {
	for i := range s.Counters {
		if s.Counters[i].Name == name {
			return &s.Counters[i]
		}
	}
	return nil
}
