// Package tablewalk looks, in the background, at what of DNS is in the kernel's
// connection tracking table all the same.
package tablewalk

import (
	"context"
	"errors"
	"net/netip"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/conntrack/loopback"
	"github.com/trackless-dns/trackless/conntrack/sysctl"
	"github.com/trackless-dns/trackless/internal/logger"
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

// Watcher looks, in the background, at what of DNS is in the kernel's table all the
// same, and at whether there is any tracking that could be avoided.
type Watcher struct {
	Log     logger.Logger
	Arrived func() uint64 // queries that have come to us

	view     atomic.Pointer[View]
	last     atomic.Pointer[Walk] // nil before the first
	inactive atomic.Bool          // the kernel tracks nothing here
	cpu      atomic.Int64         // nanoseconds that all walks took
}

// Walk is what one look found.
type Walk struct {
	At       time.Time
	Entries  Entries
	Interval time.Duration // until the next

	// Idle is why the kernel tracks nothing, empty where it does.
	Idle string

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
func (w *Walk) judge(before *Walk, fresh map[netip.Addr]uint64) {
	if before == nil {
		return
	}
	w.since = before.At
	for a, n := range fresh {
		if n >= fewTracked && 2*n > w.arrived-before.arrived {
			if w.mostly == nil {
				w.mostly = map[netip.Addr]uint64{}
			}
			w.mostly[a] = n
		}
	}
}

// MostlyTracked returns how many flows to an address were tracked between the last
// two walks, if these are most of them and the address was as it is now since
// before.
func (t *Watcher) MostlyTracked(a netip.Addr, since time.Time) uint64 {
	if w := t.last.Load(); w != nil && !w.since.Before(since) {
		return w.mostly[a]
	}
	return 0
}

// Run walks the table until ctx ends.
func (t *Watcher) Run(ctx context.Context) {
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
		interval := min(max(cost*walkShare, walkInterval), maxWalkInterval)
		timer.Reset(interval)
		switch {
		case err == nil:
			w.Interval = interval
			complained = false
		case ctx.Err() == nil && !complained && !errors.Is(err, conntrack.ErrInterrupted):
			t.Log.Warningf("the connection tracking table cannot be read, so coredns_conntrack_dns_entries is missing or old: %v", err)
			complained = true
		}
		if err != nil {
			w = nil
		}
		t.Record(w, cost)
	}
}

// Record takes what a walk found, nil for nothing, and the processor time it took.
func (t *Watcher) Record(w *Walk, cost time.Duration) {
	t.cpu.Add(int64(cost))
	if w != nil {
		t.last.Store(w)
		t.inactive.Store(w.Idle != "")
	}
}

// Follow has the next walks count by another view.
func (t *Watcher) Follow(v *View) { t.view.Store(v) }

// Latest returns the last walk, nil before the first.
func (t *Watcher) Latest() *Walk { return t.last.Load() }

// Idle reports whether the kernel tracks nothing here.
func (t *Watcher) Idle() bool { return t.inactive.Load() }

// CPUTime is the processor time that all walks took.
func (t *Watcher) CPUTime() time.Duration { return time.Duration(t.cpu.Load()) }

// Why nothing is tracked.
const (
	idleNotLoaded = "connection tracking is not loaded"
	idleNotUsed   = "no rule of this network namespace uses connection tracking"
)

func (t *Watcher) walk(ctx context.Context) (*Walk, error) {
	w := &Walk{At: time.Now(), arrived: t.Arrived()}
	limits, err := sysctl.ReadLimits("")
	if errors.Is(err, conntrack.ErrUnavailable) {
		w.Idle = idleNotLoaded
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
		tracked, err := loopback.Tracked(conn)
		if err != nil {
			return nil, err
		}
		if !tracked {
			w.Idle = idleNotUsed
			return w, nil
		}
	}
	before := t.last.Load()
	window := time.Duration(0)
	if before != nil {
		window = w.At.Sub(before.At)
	}
	var fresh map[netip.Addr]uint64
	w.Entries, fresh, err = t.view.Load().count(ctx, conn, window)
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

// Role is why a DNS flow is in the table.
type Role uint8

const (
	// Client is to a listen address, tracked because we are not attached, or
	// since before we were.
	Client Role = iota
	// Upstream is from this node to a target of forward.
	Upstream
	// Bypass is from this node or one of its pods to another DNS server.
	Bypass

	dnsRoles = 3
)

// String gives the value of the label role.
func (r Role) String() string { return [dnsRoles]string{"client", "upstream", "bypass"}[r] }

// Class is what entries are counted by.
type Class struct {
	Role   Role
	Proto  iptables.Proto
	Family iptables.Family
}

// Entries is a number of entries of each class.
type Entries map[Class]uint64

// Classes lists all classes.
func Classes() []Class {
	var all []Class
	for role := range Role(dnsRoles) {
		for _, proto := range []iptables.Proto{iptables.UDP, iptables.TCP} {
			for _, family := range []iptables.Family{iptables.IPv4, iptables.IPv6} {
				all = append(all, Class{role, proto, family})
			}
		}
	}
	return all
}

// classOf returns the class of an entry whose role is known.
func classOf(role Role, src netip.Addr, proto conntrack.Protocol) Class {
	return Class{role, iptables.Proto(proto), iptables.FamilyOf(src)}
}
