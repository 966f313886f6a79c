// Package measure measures a node: its connection tracking table and what acts on it,
// over an interval. node/advice turns the measurements into findings.
package measure

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/conntrack/loopback"
	"github.com/trackless-dns/trackless/conntrack/reread"
	"github.com/trackless-dns/trackless/conntrack/summary"
	"github.com/trackless-dns/trackless/conntrack/sysctl"
	"github.com/trackless-dns/trackless/internal/thread"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/owner"
	"github.com/trackless-dns/trackless/node/advice"
	"github.com/trackless-dns/trackless/node/host"
)

// Options say what is measured, and over which time.
type Options struct {
	Root     string        // the directory under which the host's proc, sys and etc are
	Interval time.Duration // between two readings; 0 for one reading
	Metrics  string        // URL, "auto" or "off"
	Ask      string        // a name outside of the cluster to ask a pod's DNS servers; "" or AskNothing for no query

	Rules    Rules
	Progress reread.Progress
}

// Rules reads the rules of the node of the calling thread's namespace.
type Rules struct {
	// Instances are those of Trackless in the kernel.
	Instances func() ([]iptables.Instance, error)
	// Listeners are the addresses at which a DNS server of the node can be asked.
	Listeners func() ([]netip.Addr, error)
}

// A Node is what was measured, and what could not be.
type Node struct {
	advice.Measurements
	Missing []string
}

func (m *Node) miss(err error) {
	if err != nil {
		m.Missing = append(m.Missing, err.Error())
	}
}

// Take measures the node of the calling thread's namespace, over the interval. It
// fails only if there is no connection tracking to measure; what else it cannot read
// it names.
func Take(ctx context.Context, o Options) (*Node, error) {
	start := time.Now()
	proc := filepath.Join(o.Root, "proc")
	limits, err := sysctl.ReadLimits(proc)
	if err != nil {
		return nil, err
	}
	settings, err := sysctl.ReadSettings(o.Root)
	if err != nil {
		return nil, err
	}
	m := &Node{Measurements: advice.Measurements{
		Entries: limits.Count, Limit: limits.Max, Buckets: limits.Buckets,
		Memory: sysctl.ReadMemory(o.Root), Settings: settings,
	}}
	m.Kernel = host.Kernel(o.Root)
	m.MemoryTotal, err = host.MemTotal(o.Root)
	m.miss(err)

	c, err := conntrack.Dial(&conntrack.Config{ProcRoot: proc})
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	m.measureAnswers(ctx, o, c)
	before, statsErr := summary.ReadStats(c)
	m.Table, err = summary.Read(c, conntrack.Filter{}, m.Entries, measuredTop, o.Progress)
	m.miss(err)
	m.measureSurroundings(ctx, o, c)
	var first summary.TimesLeft
	if o.Interval > 0 && m.doubtful() {
		first, err = readTimesLeft(c)
		m.miss(err)
	}
	firstRead := time.Now()

	if o.Interval > 0 {
		if err := Wait(ctx, o.Interval-time.Since(start)); err != nil {
			return nil, err
		}
		m.Interval = time.Since(start).Round(time.Millisecond)
		limits, err := sysctl.ReadLimits(proc)
		if err != nil {
			return nil, err
		}
		m.Growth, m.Entries = int64(limits.Count)-int64(m.Entries), limits.Count
	}
	if first != nil {
		if err := Wait(ctx, timesLeftApart-time.Since(firstRead)); err != nil {
			return nil, err
		}
		apart := time.Since(firstRead)
		second, err := readTimesLeft(c)
		m.miss(err)
		if err == nil {
			m.Recent = summary.Recent(first, second, apart)
		}
	}
	if statsErr != nil {
		m.miss(fmt.Errorf("kernel counters: %w", statsErr))
		return m, nil
	}
	after, err := summary.ReadStats(c)
	m.miss(err)
	m.Total = conntrack.Sum(after)
	if o.Interval > 0 {
		m.Rise = conntrack.Rise(before, after)
	}
	return m, nil
}

// timesLeftApart is the least time between two readings of the times that are left:
// the kernel tells whole seconds.
const timesLeftApart = 1100 * time.Millisecond

// doubtful reports whether entries of DNS to the cache on this node contradict
// the rules, or meet rules that could not be read: they may be older.
func (m *Node) doubtful() bool {
	if m.Table == nil {
		return false
	}
	seen := make([]netip.Addr, 0, len(m.Table.DNS.Servers))
	for _, s := range m.Table.DNS.Servers {
		seen = append(seen, s.Asked)
	}
	for _, r := range m.Table.DNS.ReversedSources {
		seen = append(seen, r.Address)
	}
	return slices.ContainsFunc(m.Listeners, func(a netip.Addr) bool {
		i := slices.IndexFunc(m.Notrack, func(n advice.Notrack) bool { return n.Address == a })
		return slices.Contains(seen, a) && (i < 0 || m.Notrack[i].Queries && m.Notrack[i].Responses)
	})
}

// readTimesLeft reads how long the entries of DNS have left.
func readTimesLeft(c *conntrack.Conn) (summary.TimesLeft, error) {
	left := summary.TimesLeft{}
	dns := []conntrack.PortRange{{First: 53, Last: 53}}
	for _, f := range []conntrack.Filter{{DstPorts: dns}, {SrcPorts: dns}} {
		if err := c.Dump(f, left.Add); err != nil && !errors.Is(err, conntrack.ErrInterrupted) {
			return nil, err
		}
	}
	return left, nil
}

// measuredTop is how many addresses the rules get to see of each list.
const measuredTop = 50

// Wait waits for d, or less if ctx ends; then it returns its error.
func Wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("ended before the second reading: %w", ctx.Err())
	}
}

// measureSurroundings reads what acts on the table from outside.
func (m *Node) measureSurroundings(ctx context.Context, o Options, c *conntrack.Conn) {
	var err error
	m.Log, err = host.KernelLog(o.Root)
	m.miss(err)
	if m.Table != nil { // without CAP_NET_ADMIN there is nothing to find the packet with
		active, err := loopback.Tracked(c)
		if err == nil {
			m.Active = &active
		}
		m.miss(err)
	}
	m.Listeners, err = o.Rules.Listeners()
	m.miss(err)
	m.Notrack, err = o.Rules.Notrack(m.Listeners)
	m.miss(err)
	m.KubeProxies, err = host.KubeProxies(o.Root, thread.Proc)
	m.miss(err)
	m.SavedTables = host.SavedTables(o.Root, owner.TablePrefix)
	links, err := linkNames()
	m.miss(err)
	m.Datapath = host.Datapath(o.Root, links)
	m.measureSaved(ctx, o.Metrics)
}

func linkNames() ([]string, error) {
	links, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("network devices: %w", err)
	}
	names := make([]string, 0, len(links))
	for _, l := range links {
		names = append(names, l.Name)
	}
	return names, nil
}
