package reconcile

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/trackless-dns/trackless/internal/figure"
	"github.com/trackless-dns/trackless/iptables"
)

// Reasons of repairs, as the metric's label has them.
const (
	RepairAddress = "address"
	RepairLink    = "link"
	RepairRules   = "rules"
)

// repairer puts back what others took away, and takes away what others left. It
// never fights: what was put back three times in a minute it leaves alone for a
// minute. Its methods are called under the reconciler's lock, save for stats.
type repairer struct {
	cfg    *Config
	fights map[string]*fight
	left   map[netip.Addr]time.Time // what others left, since when we know

	counting *sync.Mutex
	counted  *Stats // Repairs, Syncs and SyncTime
}

// fight remembers recent repairs of one thing.
type fight struct {
	recent []time.Time
	until  time.Time
	held   bool // by somebody else, and said so
}

func newRepairer(cfg *Config) repairer {
	return repairer{
		cfg: cfg, fights: map[string]*fight{}, left: map[netip.Addr]time.Time{},
		counting: new(sync.Mutex), counted: &Stats{Repairs: map[string]uint64{}},
	}
}

func (p *repairer) stats() Stats {
	p.counting.Lock()
	defer p.counting.Unlock()
	s := *p.counted
	s.Repairs = maps.Clone(s.Repairs)
	return s
}

func (p *repairer) count(f func(*Stats)) {
	p.counting.Lock()
	defer p.counting.Unlock()
	f(p.counted)
}

// synced notes what a sync took.
func (p *repairer) synced(began time.Time) {
	p.count(func(s *Stats) {
		s.Syncs++
		s.SyncTime += time.Since(began)
	})
}

// putBack repairs one thing, unless that would be a fight. That somebody else holds
// an address is said once, and no part of a fight: nothing was changed.
func (p *repairer) putBack(what, name string, c iptables.Change, repair func() error) {
	f := p.fights[name]
	if f == nil {
		f = &fight{}
		p.fights[name] = f
	}
	if !p.may(f, name, c) {
		return
	}
	err := repair()
	var held *iptables.HeldError
	if errors.As(err, &held) {
		if !f.held {
			p.cfg.Log.Warningf("cannot restore %s%s: %v", name, after(c), err)
		}
		f.held = true
		return
	}
	if err != nil {
		p.cfg.Log.Warningf("cannot restore %s%s: %v", name, after(c), err)
	} else {
		p.count(func(s *Stats) { s.Repairs[what]++ })
		p.cfg.Log.Infof("restored %s%s", name, after(c))
	}
	f.recent, f.held = append(f.recent, time.Now()), false
}

// may reports whether a repair is no fight yet.
func (p *repairer) may(f *fight, name string, c iptables.Change) bool {
	now := time.Now()
	if now.Before(f.until) {
		return false
	}
	f.recent = slices.DeleteFunc(f.recent, func(t time.Time) bool { return now.Sub(t) > time.Minute })
	if len(f.recent) < 3 {
		return true
	}
	f.recent, f.until = nil, now.Add(time.Minute)
	who := c.Who
	if who == "" {
		who = "somebody"
	}
	p.cfg.Log.Warningf("%s was put back three times within a minute and is gone again: %s takes it away; left alone for a minute", name, who)
	return false
}

func after(c iptables.Change) string {
	if c.Who == "" {
		return ""
	}
	return " after a change by " + c.Who
}

// link puts back the link and the addresses on it.
func (p *repairer) link(addrs []netip.Addr, c iptables.Change) {
	a := p.cfg.Addresses
	// First the link: what is put on one that is down is of no use.
	if down, err := a.Down(); err == nil && down {
		p.putBack(RepairLink, "the link", c, a.SetUp)
	}
	if missing, err := a.Missing(addrs); err == nil {
		// One by one: that somebody else holds one of them keeps nobody from
		// putting back the others.
		for _, m := range missing {
			p.putBack(RepairAddress, "address "+m.String(), c, func() error { return a.Ensure([]netip.Addr{m}) })
		}
	}
	if err := a.PreferSource(); err != nil {
		p.cfg.Log.Warningf("keep the listen addresses from being a source: %v", err)
	}
}

// clearLeft takes away addresses for which nobody asks any more: those of an
// instance that was killed, or of a version that left all of them to us. One that
// starts puts its addresses on the node a moment before its rules ask for them, so
// only those go that nobody has asked for since the sync before. Prepared addresses
// are somebody's: ours.
func (p *repairer) clearLeft(keep, prepared []netip.Addr) {
	left, err := p.cfg.Addresses.Left(keep)
	left = slices.DeleteFunc(left, func(a netip.Addr) bool { return slices.Contains(prepared, a) })
	now := time.Now()
	maps.DeleteFunc(p.left, func(a netip.Addr, _ time.Time) bool { return !slices.Contains(left, a) })
	var due []netip.Addr
	for _, a := range left {
		since, known := p.left[a]
		if !known {
			p.left[a] = now
		} else if now.Sub(since) >= p.cfg.Sync {
			due = append(due, a)
			delete(p.left, a)
		}
	}
	if err == nil && len(due) > 0 {
		if err = p.cfg.Addresses.Clear(due); err == nil {
			p.cfg.Log.Infof("took away %s, which another instance left and nobody asks for", figure.Joined(due))
		}
	}
	if err != nil {
		p.cfg.Log.Warningf("take away the addresses that another instance left: %v", err)
	}
}

// takeOver adopts what a predecessor left as soon as our own rules are in force. It
// may be rules by the ten thousand, so the lease is renewed meanwhile.
func (s *serving) takeOver(ctx context.Context) {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	if ctx.Err() == nil && s.r.current == s {
		s.adopt()
	}
}

// adopt takes over what a predecessor left. It may have been what let untracked
// DNS pass.
func (s *serving) adopt() {
	if s.r.State() != Attached {
		return
	}
	changed, err := s.r.cfg.Kernel.Adopt(s.plan.Addresses())
	if err != nil {
		s.r.cfg.Log.Warningf("take away what a predecessor left: %v", err)
	}
	if changed {
		s.r.checkPath(s.r.rules.installed[s.backend])
	}
}

// sync makes everything what it should be again.
func (s *serving) sync(ctx context.Context, c iptables.Change) {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	if ctx.Err() != nil || s.r.current != s {
		return
	}
	defer s.r.repairs.synced(time.Now())
	s.r.repairs.link(s.plan.Addresses(), c)
	// Uplinks come and go with routes.
	rules, err := s.r.rules.rules(s.backend, s, s.r.next)
	if err == nil {
		// Before the rules: that these are gone costs nobody a query.
		s.r.checkPath(rules)
	}
	if present, presentErr := s.backend.Present(); presentErr == nil && !present {
		gone := false
		s.r.repairs.putBack(RepairRules, "the table", c, func() error {
			gone = true
			return s.reinstall()
		})
		if gone {
			return
		}
	}
	s.adopt()
	var prepared []netip.Addr
	if s.r.next != nil {
		prepared = s.r.next.plan.Addresses()
	}
	s.r.repairs.clearLeft(s.plan.Addresses(), prepared)
	if err == nil && !reflect.DeepEqual(rules, s.r.rules.installed[s.backend]) {
		err = s.r.rules.install(s.backend, s, s.r.next)
	}
	if err == nil {
		err = s.r.cfg.Kernel.Refresh(rules)
	}
	if err != nil {
		s.r.cfg.Log.Warningf("bring the rules up to date: %v", err)
	}
}

// reinstall puts back rules that are gone, those of queries among them where no lease
// brings these back.
func (s *serving) reinstall() error {
	err := s.r.rules.install(s.backend, s, s.r.next)
	if err == nil && s.plan.Lease == 0 && !s.plan.DryRun && s.r.mayTake() && len(s.r.blocked(s.plan)) == 0 {
		err = s.backend.Attach()
	}
	return err
}
