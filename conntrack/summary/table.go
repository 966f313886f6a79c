package summary

import (
	"errors"
	"fmt"
	"time"

	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/conntrack/reread"
	"github.com/trackless-dns/trackless/conntrack/sysctl"
	"github.com/trackless-dns/trackless/internal/figure"
	"github.com/trackless-dns/trackless/internal/thread"
)

// A Table is what is known of a table: the kernel's counts, and what its entries
// are. Its JSON names do not change.
type Table struct {
	Time time.Time `json:"time"`
	// Entries is the kernel's count, expired entries that nobody collected
	// included; Summary.Entries are those that were dumped.
	Entries     uint64  `json:"entries"`
	Limit       uint64  `json:"limit"`
	FillPercent float64 `json:"fill_percent"`
	Buckets     uint64  `json:"buckets"`

	Memory struct {
		sysctl.Memory
		NowBytes   uint64 `json:"now_bytes"`
		LimitBytes uint64 `json:"limit_bytes"`
	} `json:"memory"`

	Filtered     bool                 `json:"filtered"`
	Summary      *Summary             `json:"summary,omitempty"`
	Expectations uint64               `json:"expectations"`
	Counters     []conntrack.Counter  `json:"counters,omitempty"`
	PerCPU       []conntrack.CPUStats `json:"per_cpu,omitempty"`
	// Missing says what could not be read, and why.
	Missing []string `json:"missing,omitempty"`
}

// ReadTable reads all there is to know about the table of the calling thread's
// namespace, with the top addresses of each list. A field that cannot be read without
// privileges is left out and named; then the table comes with an error. It is nil
// if there is no table to read.
func ReadTable(f conntrack.Filter, top int, p reread.Progress) (*Table, error) {
	limits, err := sysctl.ReadLimits("")
	if err != nil {
		return nil, err
	}
	r := &Table{Time: time.Now().UTC(), Entries: limits.Count, Limit: limits.Max, Buckets: limits.Buckets}
	r.FillPercent = figure.Percent(r.Entries, r.Limit)
	r.Memory.Memory = sysctl.ReadMemory("")
	r.Memory.NowBytes = r.Memory.Table(r.Entries, r.Buckets)
	r.Memory.LimitBytes = r.Memory.Table(r.Limit, r.Buckets)

	c, err := conntrack.Dial(nil)
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()

	if stats, err := ReadStats(c); err == nil {
		sum := conntrack.Sum(stats)
		r.Counters, r.PerCPU = sum.Counters(), stats
	} else {
		r.Missing = append(r.Missing, "kernel counters: "+err.Error())
	}

	r.Summary, err = Read(c, f, r.Entries, top, p)
	if err != nil && r.Summary == nil {
		r.Missing = append(r.Missing, "entries: "+err.Error())
		return r, err
	}
	if err := c.DumpExpectations(func(*conntrack.Expectation) error { r.Expectations++; return nil }); err != nil {
		r.Missing = append(r.Missing, "expectations: "+err.Error())
	}
	return r, err
}

// ReadStats returns the kernel's counters over netlink, or from /proc where netlink
// is refused.
func ReadStats(c *conntrack.Conn) ([]conntrack.CPUStats, error) {
	stats, err := c.Stats()
	if err == nil {
		return stats, nil
	}
	stats, procErr := conntrack.ReadStats(thread.Proc)
	if procErr != nil {
		return nil, fmt.Errorf("%w; %w", err, procErr)
	}
	return stats, nil
}

// Read summarises the entries of a table, of which so many are expected. It reads
// again if the table was rebuilt meanwhile. After reread.Attempts the summary comes
// with an error that wraps conntrack.ErrInterrupted; with any other error it is nil.
func Read(c *conntrack.Conn, f conntrack.Filter, expected uint64, top int, p reread.Progress) (*Summary, error) {
	var established time.Duration
	if settings, err := sysctl.ReadSettings(""); err == nil {
		if v, ok := sysctl.SettingValue(settings, "nf_conntrack_tcp_timeout_established"); ok {
			established = time.Duration(v) * time.Second
		}
	}
	var collector *Collector
	err := reread.Until(p, func() error {
		collector = New(established)
		read := p.Begin("entries read", expected)
		defer read.Stop()
		return c.Dump(f, func(e *conntrack.Entry) error {
			read.Step()
			return collector.Add(e)
		})
	})
	switch {
	case errors.Is(err, conntrack.ErrInterrupted):
		err = fmt.Errorf("gave up after %d attempts, the numbers are near: %w", reread.Attempts, err)
	case err != nil:
		return nil, err
	}
	return collector.Summary(top), err
}
