package lease

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/trackless-dns/trackless/iptables"
)

var (
	clusterIP = netip.MustParseAddr("10.96.0.10")
	linkLocal = netip.MustParseAddr("169.254.20.10")
	both      = []netip.Addr{clusterIP, linkLocal}

	errSilent  = errors.New("no answer")
	errBlocked = errors.New("a chain drops")
	errEntry   = errors.New("an entry stands")
)

// play drives a machine with one plan in force through a test.
type play struct {
	t     *testing.T
	m     *Machine
	h     *Hold
	now   time.Time
	plan  iptables.Plan
	began time.Time
}

func planOf(lease time.Duration) iptables.Plan {
	p := iptables.Plan{Link: "nodelocaldns", Lease: lease}
	for _, a := range both {
		p.Listen = append(p.Listen, iptables.Endpoint{Addr: a, Port: 53, Proto: iptables.UDP})
	}
	return p
}

// attached returns a machine whose plan has just been put in force.
func attached(t *testing.T, p iptables.Plan) *play {
	t.Helper()
	now := time.Unix(1_000_000, 0)
	m := New(now)
	renewed := map[netip.Addr]time.Time{}
	for _, a := range both {
		renewed[a] = now
		m.Probed(a, now, now, p.Lease)
	}
	return &play{t: t, m: m, h: m.Start(now, p, renewed, true), now: now, plan: p, began: now}
}

// round lets a time pass and a round end in which some did not answer. It returns
// what came of it; lapses are put down to cause.
func (p *play) round(after time.Duration, cause Cause, silent ...netip.Addr) *Round {
	p.t.Helper()
	var renewals []Renewal
	for _, a := range p.h.Due(p.now) {
		p.m.Probed(a, p.now, p.now, p.plan.Lease)
		renewals = append(renewals, Renewal{Addr: a, Answered: p.now})
	}
	p.now = p.now.Add(after)
	checks := map[netip.Addr]error{}
	for _, a := range silent {
		checks[a] = errSilent
	}
	r := p.h.Ended(p.now, checks, renewals)
	if len(r.Lapsed) > 0 {
		if r.First {
			r.Explain(p.now, cause, r.Worst().Why)
		}
		p.m.Yield(r.Yield(p.now))
	}
	r.Settle(p.now)
	return r
}

// says what readers see.
func (p *play) says() string {
	s := p.m.State().String()
	v := p.m.View()
	for _, a := range both {
		if v.Covers(a) {
			s += " " + a.String()
		}
		if v.Covers(a) && !v.Untracks(a) {
			s += "!"
		}
	}
	if v.Released() {
		s += " released"
	}
	return s
}

func (p *play) expect(want string) {
	p.t.Helper()
	if got := p.says(); got != want {
		p.t.Errorf("after %s: %s, want %s", p.now.Sub(p.began), got, want)
	}
}

// TestEvents plays sequences of events. Each step is a word and what readers see
// after it.
func TestEvents(t *testing.T) {
	all := "attached 10.96.0.10 169.254.20.10"
	words := map[string]func(p *play){
		"round":      func(p *play) { p.round(200*time.Millisecond, Unanswered) },
		"silent":     func(p *play) { p.round(200*time.Millisecond, Unanswered, both...) },
		"one silent": func(p *play) { p.round(200*time.Millisecond, Unanswered, clusterIP) },
		"hang":       func(p *play) { p.round(2*time.Second, Unanswered) },
		"starved":    func(p *play) { p.round(2*time.Second, Starved) },
		"throttled":  func(p *play) { p.round(2*time.Second, Throttled) },
		"overload": func(p *play) {
			p.m.Overloaded(p.now, errors.New("too many"))
			p.m.Yield(both)
		},
		"wait":       func(p *play) { p.now = p.now.Add(throttledWait) },
		"block one":  func(p *play) { p.block(clusterIP) },
		"block none": func(p *play) { p.block() },
		"by hand":    func(p *play) { p.withhold(ByHand) },
		"useless":    func(p *play) { p.withhold(Unanswerable) },
		"allow hand": func(p *play) { p.m.Allow(ByHand) },
		"allow use":  func(p *play) { p.m.Allow(Unanswerable) },
		"end wait":   func(p *play) { p.m.EndWait() },
		"drain":      func(p *play) { p.m.Drain(p.now) },
		"stop":       func(p *play) { p.m.Stop(p.now) },
	}
	type step struct{ event, want string }
	for _, tc := range []struct {
		name  string
		lease time.Duration
		steps []step
	}{
		{"a lease is held while rounds are answered", time.Second, []step{{"round", all}, {"round", all}, {"round", all}}},
		{"it lasts a while without", time.Second, []step{
			{"round", all}, {"silent", all}, {"silent", all}, {"silent", all}, {"silent", all}, {"silent", all}, {"silent", "detached"},
		}},
		{"one address goes, the other stays", time.Second, []step{
			{"round", all}, {"one silent", all}, {"one silent", all}, {"one silent", all}, {"one silent", all}, {"one silent", all},
			{"one silent", "attached 169.254.20.10"}, {"round", "attached 169.254.20.10"}, {"round", all},
		}},
		{"after a hang they are taken again", time.Second, []step{{"round", all}, {"hang", all}, {"round", all}, {"round", all}}},
		{"after a second one they wait", time.Second, []step{
			{"hang", all}, {"round", all}, {"hang", all}, {"round", "detached"}, {"round", "detached"}, {"wait", "detached"}, {"round", "detached"}, {"round", all},
		}},
		{"throttled, they wait at once", time.Second, []step{
			{"throttled", all}, {"throttled", "detached"}, {"round", "detached"}, {"wait", "detached"}, {"round", "detached"}, {"round", all},
		}},
		{"an overload is left at once, and a hand ends the wait", time.Second, []step{
			{"round", all}, {"overload", "attached"}, {"round", "detached"}, {"end wait", "detached"}, {"round", all},
		}},
		{"a blocked address is left alone", time.Second, []step{
			{"round", all}, {"block one", "attached 169.254.20.10"}, {"round", "attached 169.254.20.10"}, {"block none", "attached 169.254.20.10"}, {"round", all},
		}},
		{"without a lease all are left", 0, []step{
			{"round", all}, {"block one", "attached"}, {"round", "detached"}, {"block none", "detached"}, {"round", all},
		}},
		{"withheld for two reasons, both have to end", time.Second, []step{
			{"by hand", "detached released"}, {"round", "detached released"}, {"useless", "detached released"},
			{"allow hand", "detached released"}, {"round", "detached released"}, {"allow use", "detached"}, {"round", all},
		}},
		{"a stop", time.Second, []step{{"round", all}, {"drain", "draining released"}, {"stop", "detached released"}}},
		{"a stop while withheld", time.Second, []step{{"by hand", "detached released"}, {"drain", "detached released"}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := attached(t, planOf(tc.lease))
			p.expect(all)
			for i, s := range tc.steps {
				words[s.event](p)
				if got := p.says(); got != s.want {
					t.Fatalf("step %d, %s: %s, want %s", i+1, s.event, got, s.want)
				}
			}
		})
	}
}

// block lets others block addresses, and leaves those that are lost.
func (p *play) block(addrs ...netip.Addr) {
	blocked := map[netip.Addr]error{}
	for _, a := range addrs {
		blocked[a] = errBlocked
	}
	lost := p.m.PathChecked(p.now, blocked, len(addrs) == 0)
	if p.plan.Lease == 0 && len(lost) > 0 {
		lost = both
	}
	p.m.Yield(lost)
}

// withhold leaves the queries to the cluster's DNS, as far as that is still to do.
func (p *play) withhold(r Reason) {
	if isNew, only := p.m.Withhold(r, errSilent); isNew && only {
		p.m.Withheld(p.now)
	}
}

// TestStart says what a plan begins with.
func TestStart(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	for _, tc := range []struct {
		name    string
		change  func(*Machine)
		renewed []netip.Addr
		taken   bool
		want    string
	}{
		{"taken", nil, both, true, "attached 10.96.0.10 169.254.20.10"},
		{"not taken", nil, nil, false, "detached"},
		{"one is blocked", func(m *Machine) { m.PathChecked(now, map[netip.Addr]error{clusterIP: errBlocked}, false) }, []netip.Addr{linkLocal}, true, "attached 169.254.20.10"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := New(now)
			if tc.change != nil {
				tc.change(m)
			}
			renewed := map[netip.Addr]time.Time{}
			for _, a := range tc.renewed {
				renewed[a] = now
			}
			m.Failing(errSilent)
			p := &play{t: t, m: m, h: m.Start(now, planOf(time.Second), renewed, tc.taken), now: now, began: now}
			p.expect(tc.want)
			if reason := m.Standing(now).Reason; reason != nil {
				t.Errorf("reason %v", reason)
			}
		})
	}
	t.Run("the plan before has no more say", func(t *testing.T) {
		p := attached(t, planOf(time.Second))
		old := p.h
		p.m.Start(p.now, planOf(time.Second), map[netip.Addr]time.Time{clusterIP: p.now, linkLocal: p.now}, true)
		old.Ended(p.now.Add(time.Minute), map[netip.Addr]error{clusterIP: errSilent, linkLocal: errSilent}, nil).Settle(p.now)
		p.expect("attached 10.96.0.10 169.254.20.10")
	})
	t.Run("a dry run takes nothing", func(t *testing.T) {
		m, plan := New(now), planOf(time.Second)
		plan.DryRun = true
		p := &play{t: t, m: m, h: m.Start(now, plan, nil, false), now: now, began: now, plan: plan}
		if due := p.h.Due(now); len(due) > 0 {
			t.Errorf("%s are to be renewed", due)
		}
		p.round(200*time.Millisecond, Unanswered)
		p.expect("detached")
	})
}

// TestMayStart says for what a prepared plan waits.
func TestMayStart(t *testing.T) {
	for _, tc := range []struct {
		name            string
		lease           time.Duration
		blocked, failed []netip.Addr
		want            error
	}{
		{"all answer", time.Second, nil, nil, nil},
		{"one does not", time.Second, nil, []netip.Addr{linkLocal}, errSilent},
		{"one is blocked and does not", time.Second, []netip.Addr{linkLocal}, []netip.Addr{linkLocal}, nil},
		{"one is blocked, the other does not", time.Second, []netip.Addr{linkLocal}, []netip.Addr{clusterIP}, errSilent},
		{"all are blocked", time.Second, both, nil, errBlocked},
		{"without a lease one blocks all", 0, []netip.Addr{linkLocal}, nil, errBlocked},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := New(time.Now())
			blocked, failed := map[netip.Addr]error{}, map[netip.Addr]error{}
			for _, a := range tc.blocked {
				blocked[a] = errBlocked
			}
			for _, a := range tc.failed {
				failed[a] = errSilent
			}
			m.PathChecked(time.Now(), blocked, false)
			if err := m.MayStart(planOf(tc.lease), failed); !errors.Is(err, tc.want) || err != nil && tc.want == nil {
				t.Errorf("%v, want %v", err, tc.want)
			}
		})
	}
}

// TestMayProbe is for what happened between the beginning of a round and its probe.
func TestMayProbe(t *testing.T) {
	for _, tc := range []struct {
		name     string
		happened func(p *play)
		want     error
	}{
		{"nothing", func(*play) {}, nil},
		{"blocked", func(p *play) { p.block(clusterIP) }, errBlocked},
		{"another is blocked", func(p *play) { p.block(linkLocal) }, nil},
		{"overloaded", func(p *play) { p.m.Overloaded(p.now, errSilent) }, errWaits},
		{"withheld", func(p *play) { p.withhold(ByHand) }, errWaits},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := attached(t, planOf(time.Second))
			tc.happened(p)
			if err := p.m.MayProbe(p.now, p.plan, clusterIP); !errors.Is(err, tc.want) || err != nil && tc.want == nil {
				t.Errorf("%v, want %v", err, tc.want)
			}
		})
	}
}

// TestLapses tells what a round says of leases that ran out.
func TestLapses(t *testing.T) {
	t.Run("the first, and its consequence", func(t *testing.T) {
		p := attached(t, planOf(time.Second))
		p.round(200*time.Millisecond, Unanswered)
		p.round(900*time.Millisecond, Unanswered, clusterIP)
		r := p.round(500*time.Millisecond, Unanswered, both...)
		if got := lapses(r); got != "10.96.0.10 after 1.4s: no answer" || !r.First {
			t.Errorf("%s, first %t", got, r.First)
		}
		r = p.round(600*time.Millisecond, Unanswered, both...)
		if got := lapses(r); got != "169.254.20.10 after 1.1s: no answer" || r.First {
			t.Errorf("%s, first %t", got, r.First)
		}
		if p.m.Lapses() != 2 {
			t.Errorf("%d lapses", p.m.Lapses())
		}
	})
	t.Run("a probe that is answered too late takes the lease anew", func(t *testing.T) {
		p := attached(t, planOf(time.Second))
		p.now = p.now.Add(1500 * time.Millisecond)
		r := p.h.Ended(p.now, nil, []Renewal{{clusterIP, p.now, nil}, {linkLocal, p.now.Add(-time.Second), nil}})
		if got := lapses(r); got != "10.96.0.10 after 1.5s: this process did not run in time" {
			t.Error(got)
		}
		if diff := cmp.Diff([]netip.Addr{clusterIP}, r.Again, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Errorf("attached again (-want +got):\n%s", diff)
		}
	})
	t.Run("blocked is no lapse and said once", func(t *testing.T) {
		p := attached(t, planOf(time.Second))
		p.block(clusterIP)
		for i, want := range []int{1, 0, 0} {
			r := p.round(2*time.Second, Unanswered)
			if len(r.Blocked) != want {
				t.Errorf("round %d: %v, want %d", i+1, r.Blocked, want)
			}
			for _, l := range r.Lapsed {
				if l.Addr == clusterIP {
					t.Error("the lease of a blocked address is said to have run out")
				}
			}
		}
	})
}

func lapses(r *Round) string {
	var out []string
	for _, l := range r.Lapsed {
		out = append(out, fmt.Sprintf("%s after %s: %v", l.Addr, l.Late, l.Why))
	}
	return strings.Join(out, ", ")
}

// TestEffect: others are to blame only if two checks fail in one lease of ours that
// goes on to be renewed.
func TestEffect(t *testing.T) {
	const round = 200 * time.Millisecond
	check := func(p *play, err error) Effect {
		p.t.Helper()
		if !p.h.MayCheckEffect(p.now, clusterIP) {
			p.t.Fatal("the effect is not to be checked")
		}
		e := p.h.EffectChecked(p.now, p.now, clusterIP, err)
		if e == Defeated {
			p.h.EffectDefeated(clusterIP, err)
		}
		return e
	}
	p := attached(t, planOf(time.Second))
	p.round(round, Unanswered)
	for i, s := range []struct {
		err  error
		want Effect
		says string
	}{
		{nil, Unchanged, "attached 10.96.0.10 169.254.20.10"},
		{errEntry, Unclear, "attached 10.96.0.10 169.254.20.10"},
		{nil, Unchanged, "attached 10.96.0.10 169.254.20.10"},
		{errEntry, Unclear, "attached 10.96.0.10 169.254.20.10"},
		{errEntry, Defeated, "attached 10.96.0.10! 169.254.20.10"},
		{errEntry, Unchanged, "attached 10.96.0.10! 169.254.20.10"},
		{nil, Restored, "attached 10.96.0.10 169.254.20.10"},
	} {
		if got := check(p, s.err); got != s.want {
			t.Errorf("check %d: %d, want %d", i+1, got, s.want)
		}
		p.expect(s.says)
		p.round(round, Unanswered)
		p.round(round, Unanswered)
	}

	check(p, errEntry)
	p.round(2*time.Second, Unanswered) // we hung
	p.round(round, Unanswered)
	p.round(round, Unanswered)
	if got := check(p, errEntry); got != Unclear {
		t.Errorf("after a lapse of ours: %d", got)
	}
	p.m.Yield([]netip.Addr{clusterIP})
	if p.h.MayCheckEffect(p.now, clusterIP) {
		t.Error("checked while the queries are left to the cluster's DNS")
	}
}

// TestStanding says which of several reasons is told.
func TestStanding(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	m := New(now)
	said := func() string {
		if err := m.Standing(now).Reason; err != nil {
			return err.Error()
		}
		return ""
	}
	for _, s := range []struct {
		event func()
		want  string
	}{
		{func() {}, ""},
		{func() { m.Failing(errSilent) }, "no answer"},
		{func() { m.FoundCause("a rule of others") }, "no answer; a rule of others"},
		{func() { m.Start(now, planOf(time.Second), map[netip.Addr]time.Time{clusterIP: now}, true) }, ""},
		{func() { m.Quarantined(errors.New("veth1 loses its queries")) }, "veth1 loses its queries"},
		{func() { m.hold.EffectDefeated(linkLocal, errEntry) }, "169.254.20.10: an entry stands"},
		{func() { m.Overloaded(now, errors.New("the limit is used up")) }, "left to the cluster's DNS until 13:47:40 UTC (1m0s after lapse 1; `trackless rules attach` ends it): the limit is used up"},
		{func() { m.Withhold(Unanswerable, errors.New("no upstream")) }, "no upstream"},
	} {
		if s.event(); said() != s.want {
			t.Errorf("%q, want %q", said(), s.want)
		}
	}
}

// TestCauseIsDue: it is looked for once, when a fault lasts.
func TestCauseIsDue(t *testing.T) {
	p := attached(t, planOf(time.Second))
	due := func() bool { return p.m.CauseIsDue(p.now, 5*time.Second, 7*time.Second) }
	p.round(time.Second, Unanswered, both...)
	p.round(2*time.Second, Unanswered, both...)
	for passed, want := range []bool{false, false, false, false, false, true, true, false} {
		if due() != want {
			t.Errorf("%d s after the lapse: %t, want %t", passed, !want, want)
		}
		p.round(time.Second, Unanswered, both...)
	}
	p.now = p.now.Add(-2 * time.Second)
	p.m.FoundCause("a rule of others")
	if due() {
		t.Error("looked for again")
	}
	p.round(200*time.Millisecond, Unanswered)
	p.round(200*time.Millisecond, Unanswered)
	if due(); p.m.State() != Attached || p.m.Standing(p.now).Reason != nil {
		t.Errorf("%s, reason %v", p.m.State(), p.m.Standing(p.now).Reason)
	}
}
