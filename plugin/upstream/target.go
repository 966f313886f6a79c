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

// target is an address to ask, and the state of its answers.
type target struct {
	*proxy.Proxy

	checked bool      // health checks are on
	probe   *up.Probe // runs health checks, one at a time, until one succeeds
	late    moment    // when an answer was late; none after the next answer
	failed  moment    // when a try failed; none after the next success

	mu        sync.Mutex
	usual     time.Duration // smoothed time of an answer
	deviation time.Duration // smoothed, from the usual
}

// doubtFor is how long other addresses are preferred after a late answer or a failure.
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
	t.Stop() // connections are closed after their last query
}

// answered records an answer and how long it took.
func (t *target) answered(took time.Duration) {
	t.late.clear()
	t.failed.clear()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.usual == 0 {
		t.usual, t.deviation = took, took/2
		return
	}
	// Smooth the time and its deviation as RFC 6298 section 2 does.
	t.deviation += (max(took-t.usual, t.usual-took) - t.deviation) / 4
	t.usual += (took - t.usual) / 8
}

// failedToAnswer records a failed try and starts a health check. A canceled try does not
// count.
func (t *target) failedToAnswer(err error) {
	if errors.Is(err, context.Canceled) || errors.Is(err, proxy.ErrInvalidRequest) || errors.Is(err, proxy.ErrUnsupportedRequest) {
		return
	}
	t.failed.now()
	t.check()
}

// check has health checks run until one succeeds.
func (t *target) check() {
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
	firstPatience = 300 * time.Millisecond // before the first answer
)

// patience returns how long to wait for an answer before another address is asked, too. It
// is longer than nearly all answers take.
func (t *target) patience() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.usual == 0 {
		return firstPatience
	}
	return min(max(t.usual+4*t.deviation, minPatience), maxPatience)
}

// doubt says how unlikely an answer is.
type doubt int

const (
	none   doubt = iota
	late         // an answer is overdue
	failed       // a try has failed
	down         // max_fails health checks have failed
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

// targets has the addresses, and the fallbacks that are asked when they do not answer.
type targets struct{ first, last []*target }

func (t *targets) all() []*target { return slices.Concat(t.first, t.last) }

// policy is the order of addresses that are equally good.
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

// order returns the addresses in the order of tries. First come those that answer: by the
// policy, then the fallbacks in the order of the Corefile. Those that do not answer follow
// in the same order.
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
