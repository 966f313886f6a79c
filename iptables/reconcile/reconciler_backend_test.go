package reconcile

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/internal/figure"
	"github.com/trackless-dns/trackless/iptables"
)

// other is a second backend of the same node.
type other struct{ backend }

func (o other) Name() string { return "other" }
func (o other) Install(r iptables.Rules) error {
	return o.do("other-install %s", figure.Joined(r.Plan.Addresses()))
}
func (o other) Exempt(c []iptables.Connection) error     { return o.do("other-exempt %d", len(c)) }
func (o other) ExemptOnly(c []iptables.Connection) error { return o.do("other-exempt-only %d", len(c)) }
func (o other) Attach() error                            { return o.do("other-attach") }
func (o other) Remove() error                            { return o.do("other-remove-rules") }

func TestAnotherBackendTakesOver(t *testing.T) {
	inBubble(t, "its rules attach before the former's go", func(t *testing.T, n *node, k *Reconciler) {
		k.cfg.Kernel.Connections = func([]iptables.Endpoint) ([]iptables.Connection, error) { return make([]iptables.Connection, 2), nil }
		p := planFor("10.96.0.10")
		attached(t, k, p, n)
		renewed := n.renewals(clusterIP)
		if err := k.PrepareOn(other{backend{n}}, p, checker{n}); err != nil {
			t.Fatal(err)
		}
		if got := k.Backend().Name(); got != "fake" {
			t.Errorf("before the attach %s is in force", got)
		}
		k.Commit()
		settle(2 * attachInterval)
		n.expect(t,
			"ensure 10.96.0.10", "reserve 10.96.0.10", "other-install 10.96.0.10",
			"other-install 10.96.0.10", "other-exempt 2", "other-exempt-only 2",
			"close-checks", "remove-rules", "keep 10.96.0.10")
		if n.renewals(clusterIP) == renewed {
			t.Error("no lease was taken before the former backend's rules went")
		}
		if got := k.Backend().Name(); got != "other" || k.State() != Attached {
			t.Errorf("%s, backend %s", k.State(), got)
		}
	})
	inBubble(t, "one that is given up leaves the former's rules", func(t *testing.T, n *node, k *Reconciler) {
		p := planFor("10.96.0.10")
		attached(t, k, p, n)
		if err := k.PrepareOn(other{backend{n}}, p, checker{n}); err != nil {
			t.Fatal(err)
		}
		n.takeLog()
		if err := k.Rollback(); err != nil {
			t.Fatal(err)
		}
		n.expect(t, "close-checks", "other-remove-rules", "install 10.96.0.10 leases=1", "keep 10.96.0.10")
		if k.State() != Attached || !k.Covers(clusterIP) {
			t.Errorf("%s", k.State())
		}
	})
	inBubble(t, "the end removes the rules of the one in force", func(t *testing.T, n *node, k *Reconciler) {
		p := planFor("10.96.0.10")
		attached(t, k, p, n)
		if err := k.PrepareOn(other{backend{n}}, p, checker{n}); err != nil {
			t.Fatal(err)
		}
		k.Commit()
		settle(2 * attachInterval)
		n.takeLog()
		if err := k.Close(); err != nil {
			t.Fatal(err)
		}
		n.expect(t, "close-checks", "other-remove-rules", "remove-addresses")
	})
}

func TestAnotherProgramHoldsTheRules(t *testing.T) {
	inBubble(t, "the start goes on, the rules come later", func(t *testing.T, n *node, k *Reconciler) {
		p := planFor("10.96.0.10")
		n.answer(p)
		n.set(func() { n.fail["install"] = fmt.Errorf("lock: %w", iptables.ErrBusy) })
		if err := k.Prepare(p, checker{n}); err != nil {
			t.Fatalf("the start fails: %v", err)
		}
		k.Commit()
		defer func() { _ = k.Close() }()
		settle(30 * time.Second)
		if k.State() != Detached {
			t.Errorf("%s without rules", k.State())
		}
		if slices.ContainsFunc(n.takeLog(), func(s string) bool { return strings.HasPrefix(s, "remove") }) {
			t.Error("something was removed")
		}
		n.set(func() { delete(n.fail, "install") })
		settle(2 * attachInterval)
		if k.State() != Attached {
			t.Errorf("%s after the lock was given back", k.State())
		}
	})
	inBubble(t, "any other failure ends the start", func(t *testing.T, n *node, k *Reconciler) {
		n.set(func() { n.fail["install"] = fmt.Errorf("no raw table") })
		if err := k.Prepare(planFor("10.96.0.10"), checker{n}); err == nil {
			t.Error("no error")
		}
	})
}

func TestWhatAPredecessorLeft(t *testing.T) {
	inBubble(t, "goes once our own rules are in force, and the way is looked at again", func(t *testing.T, n *node, k *Reconciler) {
		var left, ways atomic.Int64
		k.cfg.Kernel.Adopt = func(addrs []netip.Addr) (bool, error) {
			if k.State() != Attached || len(addrs) != 1 {
				t.Errorf("asked while %s about %v", k.State(), addrs)
			}
			return left.Add(-1) == 0, nil
		}
		k.cfg.Kernel.Unblock = func(iptables.Rules) (map[netip.Addr]error, bool) {
			ways.Add(1)
			return nil, false
		}
		left.Store(1)
		p := planFor("10.96.0.10")
		if err := k.Prepare(p, checker{n}); err != nil {
			t.Fatal(err)
		}
		k.Commit()
		defer func() { _ = k.Close() }()
		settle(10 * time.Second)
		if left.Load() != 1 {
			t.Fatal("it was taken away before our listeners answered")
		}
		n.answer(p)
		before := ways.Load()
		settle(2 * attachInterval)
		if left.Load() != 0 || ways.Load() == before {
			t.Errorf("left %d, the way was looked at %d times", left.Load(), ways.Load()-before)
		}
		settle(25 * time.Second)
		if left.Load() != -2 {
			t.Errorf("after two more syncs it was looked for %d times", -left.Load())
		}
	})
	inBubble(t, "may be so much that to take it away lasts longer than the lease", func(t *testing.T, n *node, k *Reconciler) {
		k.cfg.Kernel.Adopt = func([]netip.Addr) (bool, error) {
			time.Sleep(5 * time.Second)
			return true, nil
		}
		p := planFor("10.96.0.10")
		n.answer(p)
		if err := k.Prepare(p, checker{n}); err != nil {
			t.Fatal(err)
		}
		k.Commit()
		defer func() { _ = k.Close() }()
		settle(4 * time.Second)
		if lapses := k.Stats().Lapses; k.State() != Attached || n.renewals(netip.MustParseAddr("10.96.0.10")) < 10 || lapses > 0 {
			t.Errorf("%s, %d lapses", k.State(), lapses)
		}
		settle(4 * time.Second)
		if lapses := k.Stats().Lapses; lapses > 0 {
			t.Errorf("%d lapses", lapses)
		}
	})
	inBubble(t, "stays for a dry run", func(t *testing.T, n *node, k *Reconciler) {
		k.cfg.Kernel.Adopt = func([]netip.Addr) (bool, error) {
			t.Error("it was taken away")
			return false, nil
		}
		p := planFor("10.96.0.10")
		p.DryRun = true
		n.answer(p)
		if err := k.Prepare(p, checker{n}); err != nil {
			t.Fatal(err)
		}
		k.Commit()
		defer func() { _ = k.Close() }()
		settle(time.Minute)
	})
}
