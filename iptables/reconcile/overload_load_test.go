//go:build load

package reconcile

import (
	"strings"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/reconcile/lease"
)

// losing is a second in which a third of all queries is lost to a CPU limit.
var losing = second{throttled: time.Second, arrived: 1400, dropped: 600}

func TestOverload(t *testing.T) {
	two := planFor("10.96.0.10", "169.254.20.10")
	inBubble(t, "the load is looked at before the first query comes", func(t *testing.T, n *node, k *Reconciler) {
		first := -1 // the number of renewals at the first look
		k.cfg.Kernel.Load = func([]iptables.Endpoint) Load {
			n.mu.Lock()
			defer n.mu.Unlock()
			if first < 0 {
				first = n.renewed[clusterIP]
			}
			return Load{Limit: 0.1}
		}
		attached(t, k, two, n)
		if first != 0 {
			t.Errorf("%d renewals before the first look", first)
		}
	})
	inBubble(t, "a query that waits among many gives them away", func(t *testing.T, n *node, k *Reconciler) {
		l := underLimit(k)
		attached(t, k, two, n)
		lastLook := func() time.Duration {
			l.mu.Lock()
			defer l.mu.Unlock()
			return time.Since(l.last)
		}
		for lastLook() > time.Millisecond {
			time.Sleep(time.Millisecond)
		}
		l.set(second{throttled: time.Second, arrived: 1000, queued: 2000})
		time.Sleep(lease.SampleInterval * 3 / 4) // the keeper's own look comes later
		k.Crowded()
		if k.Stats().Overloads != 1 || k.Covers(clusterIP) {
			t.Error("not given away")
		}
		k.Crowded()
		if n := k.Stats().Overloads; n != 1 {
			t.Errorf("given away %d times", n)
		}
	})
	inBubble(t, "queries are given to the cluster's DNS before the lease runs out", func(t *testing.T, n *node, k *Reconciler) {
		l := underLimit(k)
		attached(t, k, two, n)
		settle(2 * time.Second)
		l.set(losing)
		settle(2 * time.Second)
		if k.State() != Detached || k.Covers(clusterIP) || k.Covers(linkLocal) {
			t.Fatal("still attached")
		}
		n.expect(t, "end lease 10.96.0.10 169.254.20.10")
		if s := k.Stats(); s.Lapses != 0 || s.Overloads != 1 {
			t.Errorf("%d lapses and %d overloads, want none and one", s.Lapses, s.Overloads)
		}
		got := n.logs()
		for _, want := range []string{"10.96.0.10 169.254.20.10: detached, DNS goes to the cluster for 1m0s", "30 % of the queries", "CPU limit of 100m", "resources.limits.cpu"} {
			if !strings.Contains(got, want) {
				t.Errorf("the log lacks %q: %q", want, got)
			}
		}
		if strings.Contains(got, "\n") {
			t.Errorf("more than a line: %q", got)
		}
		s := k.Standing()
		if s.Wait.Cause != lease.Throttled || time.Until(s.Wait.Until) > throttledWait || time.Until(s.Wait.Until) < throttledWait-3*time.Second {
			t.Errorf("wait %+v", s.Wait)
		}
		if s.Reason == nil || !strings.Contains(s.Reason.Error(), "left to the cluster's DNS until") || !strings.Contains(s.Reason.Error(), "CPU limit of 100m") {
			t.Errorf("reason %v", s.Reason)
		}
	})
	inBubble(t, "and taken again after waits that get longer", func(t *testing.T, n *node, k *Reconciler) {
		l := underLimit(k)
		attached(t, k, two, n)
		for began := time.Now(); time.Since(began) < time.Hour; settle(time.Second) {
			now := second{}
			if k.Covers(clusterIP) {
				now = losing
			}
			l.set(now)
		}
		if s := k.Stats(); s.Overloads < 5 || s.Overloads > 7 || s.Lapses != 0 {
			t.Errorf("%d overloads and %d lapses in an hour, want 1 + 2 + 4 + 8 + 16 + 16 minutes apart", s.Overloads, s.Lapses)
		}
		l.set(second{throttled: time.Second, arrived: 200})
		settle(longestWait)
		if s := k.Standing(); k.State() != Attached || s.Reason != nil || !s.Wait.Until.IsZero() {
			t.Errorf("not attached when the load was less: %+v", s)
		}
	})
	inBubble(t, "slow is not lost", func(t *testing.T, n *node, k *Reconciler) {
		l := underLimit(k)
		attached(t, k, two, n)
		l.set(second{throttled: time.Second, arrived: 1000, waiting: 100})
		settle(time.Minute)
		if s := k.Stats(); s.Overloads != 0 || k.State() != Attached {
			t.Errorf("given away %d times", s.Overloads)
		}
	})
	inBubble(t, "a reload forgets nothing", func(t *testing.T, n *node, k *Reconciler) {
		l := underLimit(k)
		attached(t, k, two, n)
		l.set(losing)
		settle(2 * time.Second)
		l.set(second{})
		p := planFor("10.96.0.10")
		if err := k.Prepare(p, checker{n}); err != nil {
			t.Fatal(err)
		}
		k.Commit()
		settle(throttledWait / 2)
		if k.State() != Detached || k.Covers(clusterIP) {
			t.Error("attached in the midst of the wait")
		}
		if s := k.Standing(); s.Wait.Until.IsZero() {
			t.Errorf("standing %+v", s)
		}
		settle(throttledWait)
		if k.State() != Attached || !k.Covers(clusterIP) {
			t.Error("not attached after it")
		}
	})
	inBubble(t, "nor does one without a lease attach", func(t *testing.T, n *node, k *Reconciler) {
		l := underLimit(k)
		p := planFor("10.96.0.10")
		p.Lease = 0
		attached(t, k, p, n)
		l.set(losing)
		settle(2 * time.Second)
		l.set(second{})
		n.expect(t, "detach")
		settle(throttledWait / 2)
		n.expect(t)
		settle(throttledWait)
		n.expect(t, "attach")
	})
	for _, end := range []struct {
		name string
		by   func(t *testing.T, k *Reconciler, l *limited)
	}{
		{"another limit ends the wait", func(_ *testing.T, _ *Reconciler, l *limited) {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.load.Limit = 0.5
		}},
		{"so does a hand", func(t *testing.T, k *Reconciler, _ *limited) {
			if err := k.AttachByHand(t.Context()); err != nil {
				t.Error(err)
			}
		}},
	} {
		inBubble(t, end.name, func(t *testing.T, n *node, k *Reconciler) {
			l := underLimit(k)
			attached(t, k, two, n)
			l.set(losing)
			settle(2 * time.Second)
			l.set(second{})
			if k.State() != Detached {
				t.Fatal("still attached")
			}
			end.by(t, k, l)
			settle(2 * time.Second)
			if k.State() != Attached || !k.Covers(linkLocal) {
				t.Error("not attached")
			}
		})
	}
}
