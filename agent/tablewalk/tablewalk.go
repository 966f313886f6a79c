// Package tablewalk finds DNS that is in the kernel's connection tracking table although
// it should not be there.
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
	"github.com/trackless-dns/trackless/internal/wakeup"
	"github.com/trackless-dns/trackless/iptables"
)

// Watcher walks the table in the background, when somebody wants to know what is in it:
// after a scrape, and when there may be queries to us that are tracked.
type Watcher struct {
	Log     logger.Logger
	Arrived func() uint64 // queries that have come to us

	view     atomic.Pointer[View]
	last     atomic.Pointer[Walk] // nil before the first
	scraped  atomic.Bool          // since the last walk
	inactive atomic.Bool          // the kernel tracks nothing here
	cpu      atomic.Int64         // nanoseconds that all walks took

	// Of Run.
	pace       pace
	window     window
	complained bool
}

// Walk is what one walk found.
type Walk struct {
	At       time.Time
	Entries  Entries
	Interval time.Duration // the next walk is not earlier than that

	// Idle is why the kernel tracks nothing, empty where it does.
	Idle string

	// since is when the last window began, zero for none. mostly has the listen
	// addresses of whose queries in it most were tracked, and how many.
	since  time.Time
	mostly map[netip.Addr]uint64
}

// window is the time since a poll that found out which queries were tracked.
type window struct {
	began   time.Time
	arrived uint64 // queries that had come to us by then
}

// fewTracked is up to how many flows prove nothing.
const fewTracked = 3

// judge finds the addresses of whose queries in the window most were tracked. Another
// program's rules can track the queries of pods and not those of this node.
func (w *Walk) judge(in window, arrived uint64, fresh map[netip.Addr]uint64) {
	if in.began.IsZero() {
		return
	}
	w.since = in.began
	for a, n := range fresh {
		if n >= fewTracked && 2*n > arrived-in.arrived {
			if w.mostly == nil {
				w.mostly = map[netip.Addr]uint64{}
			}
			w.mostly[a] = n
		}
	}
}

// MostlyTracked returns how many flows to an address were tracked in the last window, if
// these are most of them and the address was as it is now since before.
func (t *Watcher) MostlyTracked(a netip.Addr, since time.Time) uint64 {
	if w := t.last.Load(); w != nil && !w.since.Before(since) {
		return w.mostly[a]
	}
	return 0
}

// Run polls the table, and walks it when that is needed, until ctx ends.
func (t *Watcher) Run(ctx context.Context) {
	t.pace, t.window, t.complained = pace{}, window{}, false
	timer := wakeup.New()
	defer timer.Close()
	defer context.AfterFunc(ctx, func() { _ = timer.Close() })()
	for due := time.Now(); ; {
		t.poll(ctx)
		if due = due.Add(pollInterval); due.Before(time.Now()) {
			due = time.Now()
		}
		timer.Reset(time.Until(due))
		if timer.Wait() != nil {
			return
		}
	}
}

// poll finds out which queries were tracked since the last poll.
func (t *Watcher) poll(ctx context.Context) {
	// The time that walks take is that of this thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	began, now := threadTime(), window{time.Now(), t.Arrived()}
	w, err := t.read(ctx, now)
	cost := threadTime() - began
	switch {
	case err == nil:
		t.complained = false
	case ctx.Err() == nil && !t.complained && !errors.Is(err, conntrack.ErrInterrupted):
		t.Log.Warningf("the connection tracking table cannot be read, so coredns_conntrack_dns_entries is missing or old: %v", err)
		t.complained = true
	}
	if err != nil {
		w = nil
		t.pace.failed(now.began, cost)
	}
	if w != nil {
		t.window = now
		if w.At.Equal(now.began) { // the table was walked now
			w.Interval = t.pace.rest(cost)
		}
	}
	t.Record(w, cost)
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

// Latest returns the last walk for a scrape, nil before the first. The table is walked
// again at the next poll: the next scrape gets what is found then.
func (t *Watcher) Latest() *Walk {
	t.scraped.Store(true)
	return t.last.Load()
}

// Idle reports whether the kernel tracks nothing here.
func (t *Watcher) Idle() bool { return t.inactive.Load() }

// CPUTime is the processor time that all walks took.
func (t *Watcher) CPUTime() time.Duration { return time.Duration(t.cpu.Load()) }

// Why nothing is tracked.
const (
	idleNotLoaded = "connection tracking is not loaded"
	idleNotUsed   = "no rule of this network namespace uses connection tracking"
)

// read walks the table if that is needed, and returns the last walk otherwise. It returns nil
// if a walk is needed and it is too early for it.
func (t *Watcher) read(ctx context.Context, now window) (*Walk, error) {
	limits, err := sysctl.ReadLimits("")
	if errors.Is(err, conntrack.ErrUnavailable) {
		t.pace.walked(poll{at: now.began}, false)
		return &Walk{At: now.began, Idle: idleNotLoaded}, nil
	}
	if err != nil {
		return nil, err
	}
	if limits.Count == 0 {
		return t.readEmpty(now)
	}
	known := poll{
		at: now.began, count: limits.Count, arrived: now.arrived - t.window.arrived,
		view: t.view.Load(), scraped: t.scraped.Load(),
	}
	switch t.pace.decide(known) {
	case walkLater:
		return nil, nil
	case walkNot:
		w := *t.last.Load()
		w.mostly = nil
		w.judge(t.window, now.arrived, nil)
		return &w, nil
	}
	conn, err := conntrack.Dial(nil)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	length := time.Duration(0)
	if !t.window.began.IsZero() {
		length = now.began.Sub(t.window.began)
	}
	entries, fresh, err := known.view.count(ctx, conn, limits, length)
	if err != nil {
		return nil, err
	}
	t.scraped.Store(false)
	t.pace.walked(known, len(fresh) > 0)
	w := &Walk{At: now.began, Entries: entries}
	w.judge(t.window, now.arrived, fresh)
	return w, nil
}

// readEmpty finds out whether the table is empty since nothing is tracked.
func (t *Watcher) readEmpty(now window) (*Walk, error) {
	conn, err := conntrack.Dial(nil)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	// In a table with entries this would prove nothing: a rule may untrack lo alone.
	tracked, err := loopback.Tracked(conn)
	if err != nil {
		return nil, err
	}
	w := &Walk{At: now.began, Entries: Entries{}}
	if !tracked {
		w.Idle = idleNotUsed
	}
	t.pace.walked(poll{at: now.began}, false)
	w.judge(t.window, now.arrived, nil)
	return w, nil
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
	// Client is to a listen address, tracked while we are not attached, or since a
	// time when we were not.
	Client Role = iota
	// Upstream is from this node to a target of forward.
	Upstream
	// Bypass is from this node or one of its pods to another DNS server.
	Bypass

	dnsRoles = 3
)

// String gives the value of the label role.
func (r Role) String() string { return [dnsRoles]string{"client", "upstream", "bypass"}[r] }

// Class is a kind of entries that is counted.
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
