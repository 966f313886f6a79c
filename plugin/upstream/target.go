package upstream

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coredns/coredns/plugin/pkg/proxy"
	"github.com/coredns/coredns/plugin/pkg/transport"
	"github.com/coredns/coredns/plugin/pkg/up"
)

// target is an address that is asked, with what is known of how it answers.
type target struct {
	*proxy.Proxy

	checked bool      // by health checks
	probe   *up.Probe // runs them, one at a time, until one succeeds
	late    moment    // when an answer was late that has not come since
	failed  moment    // when a try failed, and nothing has succeeded since

	mu        sync.Mutex
	usual     time.Duration // smoothed time of an answer
	deviation time.Duration // smoothed, from the usual
}

// doubtFor is how long others are preferred to an address of which nothing new is
// heard.
const doubtFor = time.Second

// moment is a time, or none.
type moment struct{ atomic.Pointer[time.Time] }

func (m *moment) now()   { at := time.Now(); m.Store(&at) }
func (m *moment) clear() { m.Store(nil) }

func (m *moment) within(d time.Duration) bool {
	at := m.Load()
	return at != nil && time.Since(*at) < d
}

func (u *Upstream) open(a netip.AddrPort) *target {
	t := &target{Proxy: proxy.NewProxy(directive, a.String(), transport.DNS), checked: u.maxFails > 0, probe: up.New()}
	t.SetExpire(u.expire)
	t.SetMaxAge(u.maxAge)
	t.SetMaxIdleConns(u.maxIdle)
	t.SetReadTimeout(u.timeout)
	checker := t.GetHealthchecker()
	checker.SetRecursionDesired(u.options.HCRecursionDesired)
	checker.SetDomain(u.options.HCDomain)
	if u.options.ForceTCP {
		checker.SetTCPTransport()
	}
	t.Start(u.checkInterval)
	t.probe.Start(u.checkInterval)
	return t
}

func (t *target) close() {
	t.probe.Stop()
	t.Stop() // its connections go with the last query that uses them
}

// answered notes an answer that took so long.
func (t *target) answered(took time.Duration) {
	t.late.clear()
	t.failed.clear()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.usual == 0 {
		t.usual, t.deviation = took, took/2
		return
	}
	// RFC 6298, section 2.
	t.deviation += (max(took-t.usual, t.usual-took) - t.deviation) / 4
	t.usual += (took - t.usual) / 8
}

// failedToAnswer notes a try that failed, and has the address checked. One that was
// given up while it dialled says nothing.
func (t *target) failedToAnswer(err error) {
	if errors.Is(err, context.Canceled) || errors.Is(err, proxy.ErrInvalidRequest) || errors.Is(err, proxy.ErrUnsupportedRequest) {
		return
	}
	t.failed.now()
	if !t.checked {
		return
	}
	t.probe.Do(func() error {
		err := t.GetHealthchecker().Check(t.Proxy)
		if err == nil {
			t.failed.clear()
		}
		return err
	})
}

// Bounds of patience.
const (
	minPatience   = 100 * time.Millisecond
	maxPatience   = time.Second
	firstPatience = 300 * time.Millisecond // nothing is known yet
)

// patience is how long an answer is waited for until it is asked for elsewhere as
// well: longer than nearly all of them take.
func (t *target) patience() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.usual == 0 {
		return firstPatience
	}
	return min(max(t.usual+4*t.deviation, minPatience), maxPatience)
}

// doubt is how little an answer is to be expected.
type doubt int

const (
	none   doubt = iota
	late         // an answer is overdue
	failed       // a try has failed
	down         // so have max_fails health checks
)

func (t *target) doubt(maxFails uint32) doubt {
	switch {
	case t.Down(maxFails):
		return down
	case t.checked && t.failed.Load() != nil, t.failed.within(doubtFor):
		return failed
	case t.late.within(doubtFor):
		return late
	}
	return none
}

// targets are those to ask, and those to ask when the first do not answer.
type targets struct{ first, last []*target }

func (t *targets) all() []*target { return slices.Concat(t.first, t.last) }

// policy brings addresses that are equally good in an order.
type policy string

const (
	random     policy = "random"
	roundRobin policy = "round_robin"
	sequential policy = "sequential"
)

func (u *Upstream) arrange(list []*target) []*target {
	list = slices.Clone(list)
	switch {
	case len(list) < 2:
	case u.policy == random:
		rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	case u.policy == roundRobin:
		n := int(u.turn.Add(1) % uint64(len(list)))
		return slices.Concat(list[n:], list[:n])
	}
	return list
}

// order are the addresses to try: those that answer, by the policy, then the
// fallback in the order of the Corefile, then those that do not, the fallback's
// last again.
func (u *Upstream) order() []*target {
	t := u.targets.Load()
	if t == nil {
		return nil
	}
	type rated struct {
		*target
		rank int
	}
	var all []rated
	rate := func(list []*target, offset int) {
		for _, t := range list {
			d := t.doubt(u.maxFails)
			rank := 4*int(d) + offset
			if d == late {
				rank = offset + 1 // no reason to ask the fallback
			}
			all = append(all, rated{t, rank})
		}
	}
	rate(u.arrange(t.first), 0)
	rate(t.last, 2)
	slices.SortStableFunc(all, func(a, b rated) int { return a.rank - b.rank })
	out := make([]*target, 0, len(all))
	for _, r := range all {
		out = append(out, r.target)
	}
	return out
}
