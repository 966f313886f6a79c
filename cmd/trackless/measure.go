package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"time"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/conntrack/loopback"
	"github.com/trackless-dns/trackless/conntrack/summary"
	"github.com/trackless-dns/trackless/conntrack/sysctl"
	"github.com/trackless-dns/trackless/internal/thread"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/hostrules"
	"github.com/trackless-dns/trackless/iptables/owner"
	"github.com/trackless-dns/trackless/node/advice"
	"github.com/trackless-dns/trackless/node/host"
	"github.com/trackless-dns/trackless/node/instance"
	"github.com/trackless-dns/trackless/node/rules"
)

// measureOptions say what doctor and tune look at.
type measureOptions struct {
	root     string
	interval time.Duration // between two looks; 0 for one look
	metrics  string        // URL, "auto" or "off"
}

// measuredHost is what was measured, and what could not be.
type measuredHost struct {
	advice.Measurements
	missing []string
}

func (m *measuredHost) miss(err error) {
	if err != nil {
		m.missing = append(m.missing, err.Error())
	}
}

// measure looks at the host from the calling thread's namespace. It fails only
// if there is no connection tracking to look at; what else it cannot look at it
// names.
func measure(ctx context.Context, o measureOptions, errs io.Writer) (*measuredHost, error) {
	start := time.Now()
	proc := filepath.Join(o.root, "proc")
	limits, err := sysctl.ReadLimits(proc)
	if err != nil {
		return nil, cli.CannotLook(err)
	}
	settings, err := sysctl.ReadSettings(o.root)
	if err != nil {
		return nil, cli.CannotLook(err)
	}
	m := &measuredHost{Measurements: advice.Measurements{
		Entries: limits.Count, Limit: limits.Max, Buckets: limits.Buckets,
		Memory: sysctl.ReadMemory(o.root), Settings: settings,
	}}
	m.Kernel = host.Kernel(o.root)
	m.MemoryTotal, err = host.MemTotal(o.root)
	m.miss(err)

	c, err := conntrack.Dial(&conntrack.Config{ProcRoot: proc})
	if err != nil {
		return nil, cli.CannotLook(err)
	}
	defer func() { _ = c.Close() }()
	before, statsErr := readCounters(c)
	m.Table, err = summary.Read(c, conntrack.Filter{}, m.Entries, measuredTop, cli.Progress(errs))
	m.miss(err)
	m.measureSurroundings(ctx, o, c)
	var look summary.Look
	if o.interval > 0 && m.doubtful() {
		look, err = lookAtDNS(c)
		m.miss(err)
	}
	looked := time.Now()

	if o.interval > 0 {
		if err := wait(ctx, o.interval-time.Since(start)); err != nil {
			return nil, err
		}
		m.Interval = time.Since(start).Round(time.Millisecond)
		limits, err := sysctl.ReadLimits(proc)
		if err != nil {
			return nil, cli.CannotLook(err)
		}
		m.Growth, m.Entries = int64(limits.Count)-int64(m.Entries), limits.Count
	}
	if look != nil {
		if err := wait(ctx, lookApart-time.Since(looked)); err != nil {
			return nil, err
		}
		apart := time.Since(looked)
		again, err := lookAtDNS(c)
		m.miss(err)
		if err == nil {
			m.Recent = summary.Recent(look, again, apart)
		}
	}
	if statsErr != nil {
		m.miss(fmt.Errorf("kernel counters: %w", statsErr))
		return m, nil
	}
	after, err := readCounters(c)
	m.miss(err)
	m.Total = after
	if o.interval > 0 {
		m.Rise = rise(before, after)
	}
	return m, nil
}

// lookApart is the least time between two looks at DNS: the kernel tells whole
// seconds.
const lookApart = 1100 * time.Millisecond

// doubtful reports whether entries of DNS to the cache on this node contradict
// the rules, or meet rules that could not be read: they may be older.
func (m *measuredHost) doubtful() bool {
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

// lookAtDNS looks how long the entries of DNS have left.
func lookAtDNS(c *conntrack.Conn) (summary.Look, error) {
	look := summary.Look{}
	dns := []conntrack.PortRange{{First: 53, Last: 53}}
	for _, f := range []conntrack.Filter{{DstPorts: dns}, {SrcPorts: dns}} {
		if err := c.Dump(f, look.Add); err != nil && !errors.Is(err, conntrack.ErrInterrupted) {
			return nil, err
		}
	}
	return look, nil
}

// measuredTop is how many addresses the rules get to see of each list.
const measuredTop = 50

// wait waits for d, or less if ctx ends; then it returns its error.
func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return cli.CannotLook(fmt.Errorf("ended before the second look: %w", ctx.Err()))
	}
}

// readCounters returns the kernel's counters over netlink, or from /proc where
// netlink is refused.
func readCounters(c *conntrack.Conn) (conntrack.CPUStats, error) {
	stats, err := c.Stats()
	if err != nil {
		var procErr error
		if stats, procErr = conntrack.ReadStats(thread.Proc); procErr != nil {
			return conntrack.CPUStats{}, errors.Join(err, procErr)
		}
	}
	return conntrack.Sum(stats), nil
}

// rise returns how much the counters of the rules grew. A counter of 32 bits
// that wrapped on some CPU between two looks would seem to fall: it counts as 0.
func rise(before, after conntrack.CPUStats) conntrack.CPUStats {
	grown := func(a, b uint64) uint64 {
		if b < a {
			return 0
		}
		return b - a
	}
	return conntrack.CPUStats{
		CPU:          -1,
		Drop:         grown(before.Drop, after.Drop),
		EarlyDrop:    grown(before.EarlyDrop, after.EarlyDrop),
		InsertFailed: grown(before.InsertFailed, after.InsertFailed),
		ChainTooLong: grown(before.ChainTooLong, after.ChainTooLong),
		ClashResolve: grown(before.ClashResolve, after.ClashResolve),
	}
}

// measureSurroundings looks at what bears on the table from outside.
func (m *measuredHost) measureSurroundings(ctx context.Context, o measureOptions, c *conntrack.Conn) {
	var err error
	m.Log, err = host.KernelLog(o.root)
	m.miss(err)
	if m.Table != nil { // without CAP_NET_ADMIN there is nothing to find the packet with
		active, err := loopback.Tracked(c)
		if err == nil {
			m.Active = &active
		}
		m.miss(err)
	}
	m.Listeners, err = rules.Listeners()
	m.miss(err)
	m.miss(m.measureNotrack())
	m.KubeProxies, err = host.KubeProxies(o.root, thread.Proc)
	m.miss(err)
	m.SavedTables = host.SavedTables(o.root, owner.TablePrefix)
	links, err := linkNames()
	m.miss(err)
	m.Datapath = host.Datapath(o.root, links)
	m.measureAvoided(ctx, o.metrics)
}

// measureNotrack finds out what rules do to the DNS of the addresses on which a
// DNS server listens: those of Trackless and those of others, in nf_tables and in
// the tables of iptables-legacy.
func (m *measuredHost) measureNotrack() error {
	if len(m.Listeners) == 0 {
		return nil
	}
	endpoints := make([]iptables.Endpoint, len(m.Listeners))
	for i, a := range m.Listeners {
		endpoints[i] = iptables.Endpoint{Addr: a, Port: 53, Proto: iptables.UDP}
	}
	instances, err := instance.Kernel{}.Instances()
	var unsupported *iptables.UnsupportedError
	if err != nil && !errors.As(err, &unsupported) { // without nf_tables there are none in it
		return err
	}
	foreign, err := hostrules.ForeignRules(hostrules.Config{}, endpoints)
	if err != nil {
		return err
	}
	for _, e := range endpoints {
		n := advice.Notrack{Address: e.Addr}
		for _, i := range instances {
			if slices.Contains(i.Listen, e) {
				n.Responses = true
				n.Queries = n.Queries || slices.Contains(i.Live, e)
				n.Detached = !n.Queries
			}
		}
		for _, r := range foreign {
			if !slices.Contains(r.Concerns, e) {
				continue
			}
			if slices.Contains(r.Effects, hostrules.EffectZone) && slices.Contains(r.Directions, iptables.Query) {
				n.Zone = fmt.Sprintf("chain %s of table %s %s (%s)", r.Chain, r.Family, r.Table, r.Text)
			}
			if slices.Contains(r.Effects, "notrack") {
				n.Queries = n.Queries || slices.Contains(r.Directions, iptables.Query)
				n.Responses = n.Responses || slices.Contains(r.Directions, iptables.Response)
			}
		}
		m.Notrack = append(m.Notrack, n)
	}
	return nil
}

// metricsTimeout bounds the question to a Trackless that may not be there.
const metricsTimeout = 500 * time.Millisecond

// checkMetrics refuses a --metrics that cannot be asked.
func checkMetrics(metrics string) error {
	if metrics == "auto" || metrics == "off" {
		return nil
	}
	u, err := url.Parse(metrics)
	if err == nil {
		_, err = netip.ParseAddr(u.Hostname())
	}
	if err != nil || u.Scheme != "http" {
		return fmt.Errorf("--metrics %q: it takes auto, off, or http:// with an address, such as http://127.0.0.1:9253/metrics", metrics)
	}
	return nil
}

// measureAvoided asks the Trackless of this node what it saves: at the given
// URL, or with "auto" where it usually answers, if a cache listens at all.
func (m *measuredHost) measureAvoided(ctx context.Context, metrics string) {
	var urls []string
	switch metrics {
	case "off":
		return
	case "auto":
		if len(m.Listeners) == 0 {
			return
		}
		for _, a := range append([]netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}, m.Listeners...) {
			urls = append(urls, "http://"+netip.AddrPortFrom(a, 9253).String()+"/metrics")
		}
	default:
		urls = []string{metrics}
	}
	ctx, cancel := context.WithTimeout(ctx, metricsTimeout)
	defer cancel()
	var failed error
	for _, url := range urls {
		n, err := host.Avoided(ctx, url)
		if err == nil {
			m.Avoided = &n
			return
		}
		failed = err
	}
	if metrics != "auto" {
		m.miss(failed)
	}
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
