package reconcile

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/iptables"
)

// lazy is a checker whose endpoints are due as told.
type lazy struct {
	checker
	due    func(iptables.Endpoint) bool
	checks atomic.Int64
}

func (l *lazy) IsDue(e iptables.Endpoint) bool { return l.due(e) }

func (l *lazy) Check(ctx context.Context, e iptables.Endpoint) error {
	l.checks.Add(1)
	return l.checker.Check(ctx, e)
}

// calm returns an attached reconciler to which as many queries have come as told.
func calm(t *testing.T, n *node, k *Reconciler, due func(iptables.Endpoint) bool) (l *lazy, queries *atomic.Uint64) {
	t.Helper()
	queries = new(atomic.Uint64)
	k.cfg.Queries = queries.Load
	p := planFor("10.96.0.10", "169.254.20.10")
	n.answer(p)
	l = &lazy{checker: checker{n}, due: due}
	if err := k.Prepare(p, l); err != nil {
		t.Fatal(err)
	}
	k.Commit()
	t.Cleanup(func() { _ = k.Close() })
	settle(2 * attachInterval)
	if k.State() != Attached {
		t.Fatalf("state %s after the listeners answered", k.State())
	}
	return l, queries
}

func never(iptables.Endpoint) bool { return false }

func TestCalmRounds(t *testing.T) {
	inBubble(t, "an idle node is asked seldom, and keeps its lease", func(t *testing.T, n *node, k *Reconciler) {
		var samples atomic.Int64
		k.cfg.Kernel.Load = func([]iptables.Endpoint) Load {
			samples.Add(1)
			return Load{}
		}
		l, _ := calm(t, n, k, never)
		settle(5 * time.Second)
		before, checks, looks, sampled := n.renewals(clusterIP), l.checks.Load(), n.effects(), samples.Load()
		settle(time.Minute)
		if got := n.renewals(clusterIP) - before; got < 85 || got > 91 {
			t.Errorf("%d renewals in a minute, want one in 0.67 s", got)
		}
		if got := l.checks.Load() - checks; got != 0 {
			t.Errorf("%d checks, and none was due", got)
		}
		if got := n.effects() - looks; got < 2 || got > 6 {
			t.Errorf("%d checks of the effect of two addresses, want one each in 30 s", got)
		}
		if got := samples.Load() - sampled; got > 7 {
			t.Errorf("%d samples of the load in a minute", got)
		}
		if s := k.Stats(); s.Lapses != 0 || k.State() != Attached {
			t.Errorf("%d lapses, %s", s.Lapses, k.State())
		}
	})
	inBubble(t, "with few queries the effect is checked more often", func(t *testing.T, n *node, k *Reconciler) {
		_, queries := calm(t, n, k, never)
		settle(5 * time.Second)
		looks, before := n.effects(), n.renewals(clusterIP)
		for range 60 {
			queries.Add(10)
			settle(time.Second)
		}
		if got := n.effects() - looks; got < 9 || got > 13 {
			t.Errorf("%d checks of the effect of two addresses, want one each in 10.7 s", got)
		}
		if got := n.renewals(clusterIP) - before; got > 90 {
			t.Errorf("%d renewals in a minute, want one in 0.67 s", got)
		}
	})
	inBubble(t, "with many the lease is renewed more often", func(t *testing.T, n *node, k *Reconciler) {
		_, queries := calm(t, n, k, never)
		before := 0
		for i := range 100 {
			queries.Add(100)
			settle(100 * time.Millisecond)
			if i == 20 {
				before = n.renewals(clusterIP)
			}
		}
		if got := n.renewals(clusterIP) - before; got < 35 {
			t.Errorf("%d renewals in 8 s, want one in 0.2 s", got)
		}
	})
	inBubble(t, "a lease probe that fails is sent again in time", func(t *testing.T, n *node, k *Reconciler) {
		calm(t, n, k, never)
		for i := range 70 {
			settle(10*time.Second + time.Duration(i)*10*time.Millisecond)
			n.set(func() { n.fail["renew"] = context.DeadlineExceeded })
			settle(100 * time.Millisecond) // in which there is at most one round
			n.set(func() { clear(n.fail) })
		}
		if s := k.Stats(); s.Lapses != 0 {
			t.Errorf("%d lapses", s.Lapses)
		}
	})
	inBubble(t, "an address whose check fails is not renewed, and the other is", func(t *testing.T, n *node, k *Reconciler) {
		var due atomic.Bool
		calm(t, n, k, func(e iptables.Endpoint) bool { return due.Load() && e.Addr == clusterIP })
		settle(10 * time.Second)
		n.set(func() {
			clear(n.answers)
			n.slowCheck = 250 * time.Millisecond
		})
		due.Store(true)
		began := time.Now()
		for k.Covers(clusterIP) && time.Since(began) < 10*time.Second {
			settle(10 * time.Millisecond)
		}
		// The round in which the check fails, and the lease of the one before it.
		if took := time.Since(began); took > 1500*time.Millisecond {
			t.Errorf("the lease ran out after %s", took)
		}
		settle(5 * time.Second)
		if !k.Covers(linkLocal) || k.Stats().Lapses != 1 {
			t.Errorf("the other: covered %t, %d lapses", k.Covers(linkLocal), k.Stats().Lapses)
		}
	})
	inBubble(t, "after a change that is announced the effect is checked", func(t *testing.T, n *node, k *Reconciler) {
		changes := make(chan iptables.Change)
		k.cfg.Changes = changes
		calm(t, n, k, never)
		settle(35 * time.Second)
		before := n.effects()
		for n.effects() == before {
			settle(100 * time.Millisecond)
		}
		settle(effectInterval)
		before = n.effects()
		changes <- iptables.Change{}
		settle(time.Second)
		if n.effects() == before {
			t.Error("not checked within a second")
		}
	})
}

// effects is how often the effect was checked.
func (n *node) effects() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.looks
}
