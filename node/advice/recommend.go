package advice

import (
	"fmt"
	"math"
	"math/bits"
	"time"

	"github.com/trackless-dns/trackless/internal/figure"
)

// A Recommendation is a set of settings that fits what was measured.
type Recommendation struct {
	Size     Size      `json:"size"`
	Settings []Setting `json:"settings"`
	// Notes say what was considered and not recommended, and why.
	Notes []string `json:"notes,omitempty"`
}

// Size is the recommended size of the table.
type Size struct {
	// Max is 0 where there is no limit: it stays so.
	Max     uint64 `json:"max"`
	Buckets uint64 `json:"buckets"`
	// ExtraBytes is what the table of this size takes when full beyond what
	// the present one takes when full.
	ExtraBytes uint64 `json:"extra_bytes"`
}

// A Setting is one sysctl to set, by its full name.
type Setting struct {
	Name    string `json:"name"`
	Current uint64 `json:"current"`
	Value   uint64 `json:"value"`
	Why     string `json:"why"`
	Memory  string `json:"memory"`
	Risk    string `json:"risk"`
}

const (
	// targetFill is how full the table should be under the load that was seen.
	targetFill = 0.5
	// memoryShare is the most of the machine's memory that a full table may take.
	memoryShare = 1.0 / 16
)

// Recommend returns the settings that fit: a table that what was seen fills to
// half, never smaller than it is, never more than a sixteenth of the memory.
func Recommend(m *Measurements) Recommendation {
	var r Recommendation
	r.Size = recommendSize(m)
	if r.Size.Max > m.Limit {
		r.Settings = append(r.Settings, Setting{
			Name: "net.netfilter.nf_conntrack_max", Current: m.Limit, Value: r.Size.Max,
			Why:    fmt.Sprintf("%s entries fill %.0f %% of %s; of %s they fill %.0f %%", figure.Thousands(m.Entries), 100*m.fill(), figure.Thousands(m.Limit), figure.Thousands(r.Size.Max), 100*float64(m.Entries)/float64(r.Size.Max)),
			Memory: fmt.Sprintf("%s more when full", bytesText(r.Size.ExtraBytes)),
			Risk:   "kernel memory that no cgroup limits",
		})
	}
	if m.Limit == 0 {
		r.Notes = append(r.Notes, "nf_conntrack_max is 0: there is no limit, and none is proposed. The entries may take all the memory that the kernel has; no cgroup limits them")
	} else if r.Size.Max < wantedMax(m) {
		r.Notes = append(r.Notes, fmt.Sprintf("%s entries would be wanted; more than %s take over a sixteenth of this machine's memory. Spread the load over more nodes", figure.Thousands(wantedMax(m)), figure.Thousands(r.Size.Max)))
	}
	established, ok := m.setting("nf_conntrack_tcp_timeout_established")
	switch {
	case ok && time.Duration(established)*time.Second > 24*time.Hour:
		r.Settings = append(r.Settings, Setting{
			Name: "net.netfilter.nf_conntrack_tcp_timeout_established", Current: established, Value: 86400,
			Why:    "a connection whose end was not seen stays in the table this long",
			Memory: "none; frees entries",
			Risk:   "a connection idle for over a day without keepalives is forgotten: its next packet is INVALID",
		})
	case ok && time.Duration(established)*time.Second < keepalive:
		r.Settings = append(r.Settings, Setting{
			Name: "net.netfilter.nf_conntrack_tcp_timeout_established", Current: established, Value: 86400,
			Why:    "connection pools and TCP keepalives are idle for longer than the present value; their next packet is INVALID",
			Memory: "entries of connections that ended unseen stay longer",
			Risk:   "a fuller table",
		})
	}
	if len(timeWait(m)) > 0 {
		if current, ok := m.setting("nf_conntrack_tcp_timeout_time_wait"); ok && current > 30 {
			r.Settings = append(r.Settings, Setting{
				Name: "net.netfilter.nf_conntrack_tcp_timeout_time_wait", Current: current, Value: 30,
				Why:    "closed connections are a large part of the table",
				Memory: "none; frees entries",
				Risk:   "late segments of a closed connection are INVALID; harmless unless rules answer INVALID with a reset",
			})
		}
	}
	return r
}

// wantedMax is the limit that the load asks for, before memory is considered.
func wantedMax(m *Measurements) uint64 {
	return max(m.Limit, powerOfTwo(uint64(math.Ceil(float64(m.Entries)/targetFill))))
}

// affordable returns n, or fewer entries where so many take over a sixteenth of
// the memory.
func affordable(m *Measurements, n uint64) uint64 {
	perEntry := m.Memory.EntryBytes + m.Memory.ExtensionBytes + m.Memory.BucketBytes
	if m.MemoryTotal == 0 || perEntry == 0 {
		return n
	}
	return min(n, uint64(memoryShare*float64(m.MemoryTotal)/float64(perEntry)))
}

func recommendSize(m *Measurements) Size {
	if m.Limit == 0 {
		// Only the hash has a size: for the load, with as much room as a limit
		// would leave.
		buckets := max(m.Buckets, affordable(m, wantedMax(m)))
		return Size{Buckets: buckets, ExtraBytes: (buckets - m.Buckets) * m.Memory.BucketBytes}
	}
	s := Size{Max: max(m.Limit, affordable(m, wantedMax(m)))}
	// One bucket to an entry, as the kernel does by itself since Linux 5.15.
	s.Buckets = max(m.Buckets, s.Max)
	s.ExtraBytes = m.Memory.Table(s.Max, s.Buckets) - min(m.Memory.Table(s.Max, s.Buckets), m.Memory.Table(m.Limit, m.Buckets))
	return s
}

// powerOfTwo returns the smallest power of two that is at least n.
func powerOfTwo(n uint64) uint64 {
	if n <= 1 {
		return 1
	}
	return 1 << bits.Len64(n-1)
}

// A Node is one node of a cluster, for Nodes.
type Node struct {
	Name           string `json:"name"`
	Entries, Limit uint64
}

// NodeCount says how many nodes of the smallest limit among those given would
// bring the entries under the target fill.
type NodeCount struct {
	Nodes   int     `json:"nodes"`
	Entries uint64  `json:"entries"`
	Limit   uint64  `json:"limit"`
	Fill    float64 `json:"fill_percent"`
	Needed  int     `json:"needed"`
	// FillThen is the fill with so many nodes, if the load spreads evenly.
	FillThen float64 `json:"fill_percent_then"`
}

// NodeTarget is the fill that Nodes brings the entries under.
const NodeTarget = 0.60

// Nodes computes how many nodes it takes, nil if no node has a limit.
func Nodes(nodes []Node) *NodeCount {
	c := &NodeCount{}
	for _, n := range nodes {
		if n.Limit == 0 {
			continue
		}
		c.Nodes++
		c.Entries += n.Entries
		if c.Limit == 0 || n.Limit < c.Limit {
			c.Limit = n.Limit
		}
	}
	if c.Limit == 0 {
		return nil
	}
	c.Fill = 100 * float64(c.Entries) / float64(c.Limit) / float64(c.Nodes)
	c.Needed = max(1, int(math.Ceil(float64(c.Entries)/(NodeTarget*float64(c.Limit)))))
	c.FillThen = 100 * float64(c.Entries) / float64(c.Limit) / float64(c.Needed)
	return c
}
