package reconcile

import (
	"errors"
	"strings"
	"testing"
	"time"
)

var errNoUpstream = errors.New("the upstream is gone")

func TestGiveBack(t *testing.T) {
	inBubble(t, "until it is taken back", func(t *testing.T, n *node, k *Reconciler) {
		attached(t, k, planFor("10.96.0.10"), n)
		if err := errors.Join(k.FailOver(errNoUpstream), k.FailOver(errNoUpstream)); err != nil {
			t.Fatal(err)
		}
		n.expect(t, "detach")
		before := n.renewals(clusterIP)
		settle(25 * time.Second)
		if n.renewals(clusterIP) != before || k.Covers(clusterIP) || k.State() != Detached || !k.Released() {
			t.Error("queries are still taken")
		}
		if s := k.Standing(); s.ByHand || !errors.Is(s.Reason, errNoUpstream) {
			t.Errorf("standing %+v", s)
		}
		if n := strings.Count(n.logs(), errNoUpstream.Error()); n != 1 {
			t.Errorf("said %d times", n)
		}
		n.takeLog()
		if err := errors.Join(k.FailBack(), k.FailBack()); err != nil {
			t.Fatal(err)
		}
		n.expect(t, "install 10.96.0.10 leases=1")
		settle(time.Second)
		if !k.Covers(clusterIP) || k.State() != Attached || k.Released() || k.Standing().Reason != nil {
			t.Errorf("not attached again: %+v", k.Standing())
		}
		if lapses := k.Stats().Lapses; lapses != 0 {
			t.Errorf("%d lapses, the lease was given up", lapses)
		}
	})
	inBubble(t, "both reasons must end", func(t *testing.T, n *node, k *Reconciler) {
		attached(t, k, planFor("10.96.0.10"), n)
		if err := errors.Join(k.FailOver(errNoUpstream), k.DetachByHand(), k.FailBack()); err != nil {
			t.Fatal(err)
		}
		n.expect(t, "detach")
		settle(2 * time.Second)
		if k.State() != Detached || !k.Standing().ByHand {
			t.Errorf("standing %+v", k.Standing())
		}
		if err := k.AttachByHand(t.Context()); err != nil {
			t.Fatal(err)
		}
		n.expect(t, "install 10.96.0.10 leases=1")
	})
	inBubble(t, "lasts over a change of plan", func(t *testing.T, n *node, k *Reconciler) {
		attached(t, k, planFor("10.96.0.10"), n)
		if err := k.FailOver(errNoUpstream); err != nil {
			t.Fatal(err)
		}
		p := planFor("10.96.0.10", "169.254.20.10")
		n.answer(p)
		if err := k.Prepare(p, checker{n}); err != nil {
			t.Fatal(err)
		}
		k.Commit()
		settle(2 * time.Second)
		if k.Covers(clusterIP) || k.Covers(linkLocal) || k.State() != Detached {
			t.Errorf("%v", k.Status())
		}
		if err := k.FailBack(); err != nil {
			t.Fatal(err)
		}
		settle(time.Second)
		if !k.Covers(clusterIP) || !k.Covers(linkLocal) {
			t.Errorf("not attached again: %v %v", k.Status(), k.Standing().Reason)
		}
	})
	inBubble(t, "does not hinder the end", func(t *testing.T, n *node, k *Reconciler) {
		attached(t, k, planFor("10.96.0.10"), n)
		if err := errors.Join(k.FailOver(errNoUpstream), k.Detach(), k.Close(), k.FailBack()); err != nil {
			t.Fatal(err)
		}
		n.expect(t, "detach", "close-checks", "remove-rules", "remove-addresses")
	})
}
