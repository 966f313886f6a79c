package notrack

import (
	"context"
	"errors"
	"net/netip"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/conntrack/host"
	"github.com/trackless-dns/trackless/conntrack/sysctl"
	"github.com/trackless-dns/trackless/iptables"
)

// The table is walked at most every walkInterval, and so seldom that the walks
// take at most one part in walkShare of one CPU, which a table of a million
// entries stretches to minutes; but at least every maxWalkInterval.
const (
	walkInterval    = 10 * time.Second
	maxWalkInterval = 10 * time.Minute
	walkShare       = 100
)

// table looks, in the background, at what of DNS is in the kernel's table all the
// same, and at whether there is any tracking that could be avoided.
type table struct {
	view     atomic.Pointer[tableView]
	last     atomic.Pointer[walk] // nil before the first
	inactive atomic.Bool          // the kernel tracks nothing here
	cpu      atomic.Int64         // nanoseconds that all walks took
}

// walk is what one look found.
type walk struct {
	at       time.Time
	entries  dnsEntries
	interval time.Duration // until the next

	// idle is why the kernel tracks nothing, empty where it does.
	idle string

	// since is when the walk before it was, zero for none, and arrived how many
	// queries had come to us by now. mostly has the listen addresses of whose
	// queries since then most were tracked, and how many.
	since   time.Time
	arrived uint64
	mostly  map[netip.Addr]uint64
}

// fewTracked is up to how many flows prove nothing.
const fewTracked = 3

// judge finds the addresses of whose queries most were tracked since the walk before:
// rules of others may do that to what pods ask, and not to what we ask ourselves.
func (w *walk) judge(before *walk, fresh map[netip.Addr]uint64) {
	if before == nil {
		return
	}
	w.since = before.at
	for a, n := range fresh {
		if n >= fewTracked && 2*n > w.arrived-before.arrived {
			if w.mostly == nil {
				w.mostly = map[netip.Addr]uint64{}
			}
			w.mostly[a] = n
		}
	}
}

// mostlyTracked returns how many flows to an address were tracked between the last
// two walks, if these are most of them and the address was as it is now since
// before.
func (t *table) mostlyTracked(a netip.Addr, since time.Time) uint64 {
	if w := t.last.Load(); w != nil && !w.since.Before(since) {
		return w.mostly[a]
	}
	return 0
}

// watch walks the table until ctx ends.
func (t *table) watch(ctx context.Context) {
	// The time that walks take is that of this thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	timer := time.NewTimer(0)
	defer timer.Stop()
	complained := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		began := threadTime()
		w, err := t.walk(ctx)
		cost := threadTime() - began
		t.cpu.Add(int64(cost))
		interval := min(max(cost*walkShare, walkInterval), maxWalkInterval)
		timer.Reset(interval)
		switch {
		case err == nil:
			w.interval = interval
			t.last.Store(w)
			t.inactive.Store(w.idle != "")
			complained = false
		case ctx.Err() == nil && !complained && !errors.Is(err, conntrack.ErrInterrupted):
			log.Warningf("the connection tracking table cannot be read, so coredns_conntrack_dns_entries is missing or old: %v", err)
			complained = true
		}
	}
}

// Why nothing is tracked.
const (
	idleNotLoaded = "connection tracking is not loaded"
	idleNotUsed   = "no rule of this network namespace uses connection tracking"
)

func (t *table) walk(ctx context.Context) (*walk, error) {
	w := &walk{at: time.Now(), arrived: process.served.arrived.Load()}
	limits, err := sysctl.ReadLimits("")
	if errors.Is(err, conntrack.ErrUnavailable) {
		w.idle = idleNotLoaded
		return w, nil
	}
	if err != nil {
		return nil, err
	}
	conn, err := conntrack.Dial(nil)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if limits.Count == 0 {
		// Whoever keeps lo untracked would make the question meaningless, had
		// the table entries.
		tracked, err := host.Tracked(conn)
		if err != nil {
			return nil, err
		}
		if !tracked {
			w.idle = idleNotUsed
			return w, nil
		}
	}
	before := t.last.Load()
	window := time.Duration(0)
	if before != nil {
		window = w.at.Sub(before.at)
	}
	var fresh map[netip.Addr]uint64
	w.entries, fresh, err = t.view.Load().count(ctx, conn, window)
	w.judge(before, fresh)
	return w, err
}

// threadTime is the processor time of the calling thread, in user space and in
// the kernel.
func threadTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_THREAD, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// dnsRole is why a DNS flow is in the table.
type dnsRole uint8

const (
	// roleClient: to a listen address, tracked because we are not attached, or
	// since before we were.
	roleClient dnsRole = iota
	// roleUpstream: from this node to a target of forward.
	roleUpstream
	// roleBypass: from this node or one of its pods to another DNS server.
	roleBypass

	dnsRoles = 3
)

// String gives the value of the label role.
func (r dnsRole) String() string { return [dnsRoles]string{"client", "upstream", "bypass"}[r] }

// dnsClass is what entries are counted by.
type dnsClass struct {
	role   dnsRole
	proto  iptables.Proto
	family iptables.Family
}

// dnsEntries is a number of entries of each class.
type dnsEntries map[dnsClass]uint64

// dnsClasses lists all classes.
func dnsClasses() []dnsClass {
	var all []dnsClass
	for role := range dnsRole(dnsRoles) {
		for _, proto := range []iptables.Proto{iptables.UDP, iptables.TCP} {
			for _, family := range []iptables.Family{iptables.IPv4, iptables.IPv6} {
				all = append(all, dnsClass{role, proto, family})
			}
		}
	}
	return all
}

// classOf returns the class of an entry whose role is known.
func classOf(role dnsRole, src netip.Addr, proto conntrack.Protocol) dnsClass {
	return dnsClass{role, iptables.Proto(proto), iptables.FamilyOf(src)}
}
