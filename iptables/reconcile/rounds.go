package reconcile

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/reconcile/lease"
	"github.com/trackless-dns/trackless/iptables/reconcile/shared"
)

// rounds runs one round after the other, and starts what need not be done in each of
// them. No goroutine beside it has a timer of its own while nothing happens: each
// wake-up of an idle process costs more than what is done then.
type rounds struct {
	s       *serving
	pace    lease.Pace
	devices *deviceWatch
	changed func() bool   // see [iptables.Capabilities.Changed]
	found   chan struct{} // a change that nobody announces
	settle  atomic.Bool   // a change was announced

	queries uint64    // that had come when the last round ended
	ended   time.Time // it

	effect, load, sync occasion
	syncs              lease.Syncs
}

const (
	// effectInterval is the least time between two checks of the effect, which is
	// that of a busy node; effectAsked that of a calm one to which queries come.
	// effectIdle is the longest, on an idle node: changes of rules are announced.
	effectInterval = time.Second
	effectAsked    = 10 * time.Second
	effectIdle     = 30 * time.Second

	// loadIdle is the longest time between two samples of the load.
	loadIdle = time.Minute
)

// occasion is something that another goroutine does now and then.
type occasion struct {
	due     chan struct{}
	last    time.Time
	queries uint64 // that had come then
}

// begin starts it, unless it is still under way.
func (o *occasion) begin(now time.Time, queries uint64) {
	o.last, o.queries = now, queries
	select {
	case o.due <- struct{}{}:
	default:
	}
}

// follow does it whenever it is due, until the context ends.
func (o *occasion) follow(ctx context.Context, f func()) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-o.due:
			f()
		}
	}
}

func newRounds(s *serving) *rounds {
	can, _ := s.backend.Capabilities() // Devices and Changed take no probe
	r := &rounds{s: s, devices: s.newDeviceWatch(can.Devices), changed: can.Changed, found: make(chan struct{}, 1), ended: time.Now()}
	for _, o := range []*occasion{&r.effect, &r.load, &r.sync} {
		o.due, o.last = make(chan struct{}, 1), r.ended
	}
	cfg := &s.r.cfg
	r.syncs = lease.Syncs{Every: cfg.Sync, Announced: cfg.Changes != nil, Silent: cfg.Kernel.Unannounced}
	r.syncs.Begin(r.ended)
	r.note(r.ended, false)
	return r
}

// run runs rounds until the context ends.
func (r *rounds) run(ctx context.Context) {
	timer := r.s.r.cfg.NewTimer()
	defer timer.Close()
	defer context.AfterFunc(ctx, func() { _ = timer.Close() })()
	due := time.Now().Add(r.next())
	timer.Reset(time.Until(due))
	for timer.Wait() == nil {
		began := time.Now()
		ok := r.s.renew(ctx, r.pace.Calm(began))
		r.devices.peek(r.s, time.Now(), ok && r.s.r.cfg.Queries() == r.queries)
		if r.changed != nil && r.changed() {
			select {
			case r.found <- struct{}{}:
			default:
			}
		}
		r.note(due, !ok)
		r.occasions(time.Now())
		// A round that takes longer than it may is followed by the next at once.
		due = began.Add(r.next())
		if now := time.Now(); due.Before(now) {
			due = now
		}
		timer.Reset(time.Until(due))
	}
}

func (r *rounds) next() time.Duration { return r.pace.Next(time.Now(), r.s.plan.Lease) }

// note tells the pace of the round that has ended.
func (r *rounds) note(due time.Time, failed bool) {
	now, queries := time.Now(), r.s.r.cfg.Queries()
	r.pace.Ended(lease.Past{Due: due, Ended: now, Failed: failed, Queries: queries - r.queries, Since: now.Sub(r.ended)})
	r.queries, r.ended = queries, now
}

// occasions begins what is due.
func (r *rounds) occasions(now time.Time) {
	calm := r.pace.Calm(now)
	if r.effectIsDue(now, calm) {
		r.effect.begin(now, r.queries)
	}
	if since := now.Sub(r.load.last); !calm || since >= loadIdle || r.s.r.load.limited() && r.queries != r.load.queries {
		r.load.begin(now, r.queries)
	}
	if r.settle.Swap(false) {
		r.syncs.Changed()
	}
	if r.syncs.Due(now, r.queries) {
		r.sync.begin(now, r.queries)
	}
}

func (r *rounds) effectIsDue(now time.Time, calm bool) bool {
	since := now.Sub(r.effect.last)
	switch {
	case since < effectInterval:
		return false
	case !calm || since >= effectIdle || r.s.changed.Swap(false):
		return true
	case r.queries != r.effect.queries && since >= effectAsked:
		return true
	}
	return shared.Ask(&r.s.r.leases, func(m *lease.Machine) bool { return m.State() != Attached || r.s.hold.EffectUnclear() })
}

// renewCalmly checks the endpoints of which nothing shows that they answer, and sends
// lease probes to the addresses whose endpoints all do. A lease is not renewed in the
// round in which a check fails, so that it runs out as early as it would have done
// with more rounds. An address that has to wait for its checks does not hold up others,
// and none waits while the process is starved.
func (s *serving) renewCalmly(ctx context.Context, due []netip.Addr) (failed map[netip.Addr]error, renewals []lease.Renewal) {
	plain, checked := s.splitByChecks(due)
	if len(checked) == 0 {
		return map[netip.Addr]error{}, s.probe(ctx, plain)
	}
	checks, t := s.beginChecks(ctx), newTurns()
	var mu sync.Mutex
	var wg sync.WaitGroup
	probe := func(addrs ...netip.Addr) {
		renewed := s.probe(ctx, addrs)
		mu.Lock()
		defer mu.Unlock()
		renewals = append(renewals, renewed...)
	}
	wg.Go(func() { probe(plain...) })
	for _, a := range checked {
		wg.Go(func() {
			select {
			case <-checks.of[a].over:
				if checks.of[a].err != nil {
					return
				}
			case <-t.starved:
			}
			if slices.Contains(due, a) {
				probe(a)
			}
		})
	}
	go func() {
		wg.Wait()
		t.hadOne()
	}()
	if s.await(checks, t) {
		s.round, failed = nil, checks.failed()
	}
	return failed, renewals
}

// splitByChecks returns those of the addresses whose leases are due that need no check,
// and all addresses that need one.
func (s *serving) splitByChecks(due []netip.Addr) (plain, checked []netip.Addr) {
	for _, a := range s.plan.Addresses() {
		switch {
		case s.anyCheckIsDue(a):
			checked = append(checked, a)
		case slices.Contains(due, a):
			plain = append(plain, a)
		}
	}
	return plain, checked
}

func (s *serving) anyCheckIsDue(a netip.Addr) bool {
	return slices.ContainsFunc(s.plan.Listen, func(e iptables.Endpoint) bool { return e.Addr == a && s.checker.IsDue(e) })
}
