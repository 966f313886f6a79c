package lease

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/trackless-dns/trackless/iptables"
)

// Machine is the state of one process. It is not safe for concurrent use, and
// neither is what its methods return that points to it.
type Machine struct {
	state State
	since time.Time // of state

	hold    *Hold                // the plan in force
	covered []netip.Addr         // its addresses whose rules are in force; replaced, never changed
	held    map[netip.Addr]span  // for which time leases are known to be held
	effects map[netip.Addr]error // what the last check of the effect found

	reason      error  // why the rules wait, or why the last round of checks failed
	cause       string // what of others may be why
	quarantined error  // which devices are left to the cluster

	blocked map[netip.Addr]error // what blocks untracked DNS to an address
	cleared time.Time            // when the last blocker went

	byHand       bool  // an operator left the queries to the cluster's DNS
	unanswerable error // why what comes here would not be answered
	released     bool  // the query rules were taken away on purpose

	// What lapses have taught outlasts the plan under which they happened.
	learned   backoff
	waitsFor  error // why it waits, or waited last
	lapses    uint64
	overloads uint64
}

// span is the time for which the lease of an address is known to be held.
type span struct{ since, until time.Time }

// New returns a machine that holds nothing.
func New(now time.Time) *Machine {
	return &Machine{since: now, held: map[netip.Addr]span{}, effects: map[netip.Addr]error{}}
}

// State returns the state.
func (m *Machine) State() State { return m.state }

func (m *Machine) enter(now time.Time, s State) {
	if m.state != s {
		m.state, m.since = s, now
	}
}

// View returns what readers see until the next event.
func (m *Machine) View() *View {
	v := &View{covered: m.covered, byHand: m.byHand, released: m.released}
	for a, err := range m.effects {
		if err != nil {
			v.defeated = append(v.defeated, a)
		}
	}
	return v
}

// Lapses is how often a lease ran out although it was meant to be held.
func (m *Machine) Lapses() uint64 { return m.lapses }

// Overloads is how often queries were left to the cluster's DNS before a lease ran
// out, since too many were lost to a CPU limit.
func (m *Machine) Overloads() uint64 { return m.overloads }

// Standing returns how things are. What it says of a dry run is the caller's.
func (m *Machine) Standing(now time.Time) Standing {
	reason := m.reason
	if reason != nil && m.cause != "" && m.state == Detached {
		reason = fmt.Errorf("%w; %s", reason, m.cause)
	}
	for _, a := range slices.SortedFunc(maps.Keys(m.effects), netip.Addr.Compare) {
		if reason == nil && m.effects[a] != nil {
			reason = fmt.Errorf("%s: %w", a, m.effects[a])
		}
	}
	if reason == nil {
		reason = m.quarantined
	}
	var wait Wait
	if m.learned.waits(now) {
		wait, reason = Wait{m.learned.until, m.learned.cause}, m.waitsFor
	}
	if m.unanswerable != nil {
		reason = m.unanswerable
	}
	return Standing{State: m.state, Since: m.since, ByHand: m.byHand, Reason: reason, Wait: wait}
}

// Start puts a plan in force. Its checks were answered, and taken tells that its
// queries are untracked, by leases renewed at the given times where it has any.
func (m *Machine) Start(now time.Time, p iptables.Plan, renewed map[netip.Addr]time.Time, taken bool) *Hold {
	addrs := p.Addresses()
	other := func(a netip.Addr) bool { return !slices.Contains(addrs, a) }
	maps.DeleteFunc(m.effects, func(a netip.Addr, _ error) bool { return other(a) })
	maps.DeleteFunc(m.held, func(a netip.Addr, _ span) bool { return other(a) })
	h := &Hold{
		m: m, plan: p, addrs: addrs, checked: now, renewed: maps.Clone(renewed),
		failed: map[netip.Addr]error{}, down: map[netip.Addr]bool{}, unclear: map[netip.Addr]time.Time{}, suspect: map[netip.Addr]time.Time{},
	}
	if h.renewed == nil {
		h.renewed = map[netip.Addr]time.Time{}
	}
	for _, a := range addrs {
		h.down[a] = !taken || p.Lease > 0 && h.renewed[a].IsZero()
	}
	m.hold = h
	m.reason, m.cause = nil, ""
	if taken {
		m.enter(now, Attached)
		blocked := m.Blocked(p)
		m.covered = slices.DeleteFunc(slices.Clone(addrs), func(a netip.Addr) bool { return blocked[a] != nil })
	}
	return h
}

// Failing notes why a plan cannot be put in force yet.
func (m *Machine) Failing(why error) { m.reason = why }

// Drain ends what is held, for good. It reports whether the query rules have to go:
// they do also where a lease probe was answered from which nothing followed yet.
func (m *Machine) Drain(now time.Time) bool {
	m.released = true
	if m.state != Attached && !m.anyHeld(now) {
		return false
	}
	m.covered = nil
	m.enter(now, Draining)
	return true
}

// Stop notes that no query is untracked any more.
func (m *Machine) Stop(now time.Time) {
	m.covered = nil
	m.enter(now, Detached)
}

// Reason is why all queries are left to the cluster's DNS until somebody allows to
// take them again. Each will do, and all must end.
type Reason uint8

// The reasons.
const (
	// ByHand: an operator wants it.
	ByHand Reason = iota
	// Unanswerable: what came here would not be answered.
	Unanswerable
)

// Withhold leaves all queries to the cluster's DNS from here on: no lease is renewed
// any more. It reports whether the reason is new, and whether it is the only one, for
// which the query rules have to go. Withheld follows when they went, and Allow when
// they could not be taken away.
func (m *Machine) Withhold(r Reason, why error) (isNew, only bool) {
	only = !m.withheld()
	switch {
	case m.withholds(r):
		return false, only
	case r == ByHand:
		m.byHand = true
	default:
		m.unanswerable = why
	}
	return true, only
}

// Withheld notes that the query rules went.
func (m *Machine) Withheld(now time.Time) {
	m.released = true
	m.Stop(now)
	clear(m.held)
}

// Allow ends a reason. The rules are complete again if it was the only one.
func (m *Machine) Allow(r Reason) {
	if r == ByHand {
		m.byHand = false
	} else {
		m.unanswerable = nil
	}
	if !m.withheld() {
		m.released = false
	}
}

// Withholds reports whether a reason is in force, and whether it is the only one.
func (m *Machine) Withholds(r Reason) (inForce, only bool) {
	return m.withholds(r), m.withholds(r) && m.byHand != (m.unanswerable != nil)
}

func (m *Machine) withholds(r Reason) bool {
	if r == ByHand {
		return m.byHand
	}
	return m.unanswerable != nil
}

func (m *Machine) withheld() bool { return m.byHand || m.unanswerable != nil }

// MayTake reports whether queries may be taken at all: nobody withholds them, and
// no lapse is waited for.
func (m *Machine) MayTake(now time.Time) bool { return !m.withheld() && m.waiting(now) == nobody }

// PathChecked notes to which addresses something of others blocks untracked DNS. It
// returns those whose queries are untracked and lost from now on.
func (m *Machine) PathChecked(now time.Time, blocked map[netip.Addr]error, cleared bool) (lost []netip.Addr) {
	for a := range blocked {
		if m.blocked[a] == nil && slices.Contains(m.covered, a) {
			lost = append(lost, a)
		}
	}
	m.blocked = blocked
	if cleared {
		m.cleared = now
	}
	return lost
}

// Blocked returns what blocks untracked DNS, by address. Without a lease all
// addresses are live or none is.
func (m *Machine) Blocked(p iptables.Plan) map[netip.Addr]error {
	out := map[netip.Addr]error{}
	for _, a := range p.Addresses() {
		if err := m.blocked[a]; err != nil {
			out[a] = err
		} else if p.Lease == 0 && len(m.blocked) > 0 {
			out[a] = firstError(m.blocked)
		}
	}
	return out
}

// PathCleared returns when the last blocker went. Queries that were lost before tell
// nothing any more.
func (m *Machine) PathCleared() time.Time { return m.cleared }

// MayStart returns nil if a plan may be put in force after a round of checks. It is
// told what failed, by address; blocked addresses are no reason to wait while there
// are others.
func (m *Machine) MayStart(p iptables.Plan, failed map[netip.Addr]error) error {
	blocked := m.Blocked(p)
	if len(blocked) == len(p.Addresses()) {
		return firstError(blocked)
	}
	for a := range blocked {
		delete(failed, a)
	}
	return firstError(failed)
}

// Yield notes that the queries to addresses are left to the cluster's DNS.
func (m *Machine) Yield(addrs []netip.Addr) {
	for _, a := range addrs {
		delete(m.held, a)
	}
	m.covered = slices.DeleteFunc(slices.Clone(m.covered), func(a netip.Addr) bool { return slices.Contains(addrs, a) })
}

// Quarantined notes which devices are left to the cluster's DNS; nil for none.
func (m *Machine) Quarantined(why error) { m.quarantined = why }

// errWaits says that queries were left to the cluster's DNS since a round began.
var errWaits = errors.New("queries are left to the cluster's DNS")

// MayProbe returns nil if the lease of an address may be renewed at this moment:
// much may have happened since the round of checks began.
func (m *Machine) MayProbe(now time.Time, p iptables.Plan, a netip.Addr) error {
	if why := m.Blocked(p)[a]; why != nil {
		return why
	}
	if m.withheld() || m.waiting(now) == everybody {
		return errWaits
	}
	return nil
}

// Probed notes that a lease probe, which left at one time, was answered at another.
// The lease lasts from somewhere between the two on.
func (m *Machine) Probed(a netip.Addr, began, ended time.Time, lease time.Duration) {
	s := m.held[a]
	if s.until.Before(ended) {
		s.since = ended
	}
	m.held[a] = span{since: s.since, until: began.Add(lease)}
}

// Leases returns until when the leases are held on which fast paths may rely: those of
// addresses whose queries are taken, whose last checks and lease probe were answered,
// and whose effect was not found missing.
func (m *Machine) Leases() map[netip.Addr]time.Time {
	out := map[netip.Addr]time.Time{}
	if m.state != Attached || m.withheld() || m.released || m.hold == nil {
		return out
	}
	for _, a := range m.covered {
		if s, held := m.held[a]; held && m.effects[a] == nil && m.hold.failed[a] == nil {
			out[a] = s.until
		}
	}
	return out
}

func (m *Machine) anyHeld(now time.Time) bool {
	for _, s := range m.held {
		if now.Before(s.until) {
			return true
		}
	}
	return false
}

// heldSince reports whether the lease of an address was held from the given time
// until now, and a lease probe that left after it was answered. If in doubt it
// was not.
func (m *Machine) heldSince(now time.Time, a netip.Addr, began time.Time, lease time.Duration) bool {
	s := m.held[a]
	return !s.since.After(began) && now.Before(s.until) && s.until.Add(-lease).After(began)
}

// waiters are the addresses whose queries are left to the cluster's DNS after lapses.
type waiters uint8

const (
	nobody     waiters = iota
	lapsedOnes         // those whose lease ran out
	everybody          // one process answers for all, and it is throttled
)

func (m *Machine) waiting(now time.Time) waiters {
	switch {
	case !m.learned.waits(now):
		return nobody
	case m.learned.cause == Throttled:
		return everybody
	}
	return lapsedOnes
}

// EndWait forgets what lapses have taught.
func (m *Machine) EndWait() { m.learned, m.waitsFor = backoff{}, nil }

// MayYield reports whether a load that loses queries is a reason to leave them all
// to the cluster's DNS.
func (m *Machine) MayYield(now time.Time, p iptables.Plan) bool {
	return !p.DryRun && m.state == Attached && m.waiting(now) != everybody
}

// Overloaded notes that all queries are left to the cluster's DNS since too many are
// lost to a CPU limit, and returns for how long. Yield follows.
func (m *Machine) Overloaded(now time.Time, why error) time.Duration {
	m.overloads++
	return m.learn(now, Throttled, why)
}

// learn notes a lapse and returns for how long queries are left to the cluster's DNS.
func (m *Machine) learn(now time.Time, cause Cause, why error) time.Duration {
	m.learned.lapsed(now, cause)
	m.waitsFor = fmt.Errorf("left to the cluster's DNS until %s (%s after lapse %d; `trackless rules attach` ends it): %w",
		m.learned.until.UTC().Format("15:04:05 MST"), m.learned.wait, m.learned.count, why)
	return m.learned.wait
}

// CauseIsDue reports whether it is time to find out what of others keeps our checks
// from being answered: once, from and to as long after it began.
func (m *Machine) CauseIsDue(now time.Time, from, to time.Duration) bool {
	if m.state != Detached || m.reason == nil || m.withheld() {
		m.cause = ""
		return false
	}
	passed := now.Sub(m.since)
	return m.cause == "" && passed >= from && passed < to
}

// FoundCause notes what it is; empty if nothing was found.
func (m *Machine) FoundCause(why string) { m.cause = why }

// firstError returns the error of the lowest address that has one.
func firstError(errs map[netip.Addr]error) error {
	for _, a := range slices.SortedFunc(maps.Keys(errs), netip.Addr.Compare) {
		if errs[a] != nil {
			return errs[a]
		}
	}
	return nil
}
