package reconcile

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/trackless-dns/trackless/iptables"
)

// obstructedNode gives the keeper's node a way that is blocked for some addresses.
type obstructedNode struct {
	*node
	blocked map[netip.Addr]error
	looks   int
}

func newObstructed(addrs ...string) (*obstructedNode, *Reconciler) {
	n, k := newNode()
	o := &obstructedNode{node: n}
	o.block(addrs...)
	k.cfg.Kernel.Unblock = func(iptables.Rules) (map[netip.Addr]error, bool) {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.looks++
		return o.blocked, false
	}
	return o, k
}

func (o *obstructedNode) block(addrs ...string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.blocked = map[netip.Addr]error{}
	for _, a := range addrs {
		o.blocked[netip.MustParseAddr(a)] = errors.New("chain filter_INPUT drops")
	}
}

func (o *obstructedNode) renewals(a string) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.renewed[netip.MustParseAddr(a)]
}

func TestAttachWaitsForTheWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, k := newObstructed("10.96.0.10")
		p := planFor("10.96.0.10")
		n.answer(p)
		if err := k.Prepare(p, checker{n.node}); err != nil {
			t.Fatal(err)
		}
		k.Commit()
		t.Cleanup(func() { _ = k.Close() })
		settle(complainAfter + attachInterval)
		if k.State() != Detached || n.renewals("10.96.0.10") > 0 {
			t.Errorf("state %s after %d renewals, the way is blocked", k.State(), n.renewals("10.96.0.10"))
		}
		if reason := k.Standing().Reason; reason == nil || !strings.Contains(reason.Error(), "filter_INPUT drops") {
			t.Errorf("reason %v", reason)
		}
		if !strings.Contains(n.logs(), "filter_INPUT drops") {
			t.Errorf("log %s", n.logs())
		}
		if limit := int(complainAfter/pathInterval) + 2; n.looks > limit {
			t.Errorf("%d looks in %s", n.looks, complainAfter)
		}
		n.block()
		settle(pathInterval + 2*attachInterval)
		if k.State() != Attached {
			t.Errorf("state %s with the way free: %v", k.State(), k.Standing().Reason)
		}
	})
}

func TestAttachWhereTheWayIsFree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, k := newObstructed("fd00::a")
		p := planFor("10.96.0.10", "fd00::a")
		attached(t, k, p, n.node)
		settle(3 * time.Second)
		if !k.Covers(netip.MustParseAddr("10.96.0.10")) || k.Covers(netip.MustParseAddr("fd00::a")) || n.renewals("fd00::a") > 0 {
			t.Errorf("covered: %v", k.Status())
		}
		if s := k.Stats(); s.Lapses > 0 {
			t.Errorf("%d lapses: what was never held did not run out", s.Lapses)
		}
		n.block()
		settle(k.cfg.Sync + time.Second)
		if !k.Covers(netip.MustParseAddr("fd00::a")) {
			t.Errorf("covered: %v", k.Status())
		}
	})
}

func TestStandBackWhenTheWayIsBlocked(t *testing.T) {
	for _, tc := range []struct {
		name    string
		lease   time.Duration
		blocked string
		does    string
	}{
		{name: "with a lease", lease: time.Second, blocked: "10.96.0.10", does: "end lease 10.96.0.10"},
		{name: "without, another address", blocked: "10.96.0.11", does: "detach"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n, k := newObstructed()
				changes := make(chan iptables.Change)
				k.cfg.Changes = changes
				var reset []iptables.Endpoint
				k.cfg.Reset = func(listen []iptables.Endpoint, devices []string) error {
					if devices != nil {
						t.Errorf("only what is behind %v was reset", devices)
					}
					n.set(func() { reset = append(reset, listen...) })
					return nil
				}
				p := planFor("10.96.0.10", "10.96.0.11")
				p.Lease = tc.lease
				attached(t, k, p, n.node)
				n.block(tc.blocked)
				before := n.renewals(tc.blocked)
				changes <- iptables.Change{Who: "somebody"}
				synctest.Wait() // at once, not when the lease has run out
				if log := n.takeLog(); !slices.Equal(log, []string{tc.does}) {
					t.Errorf("it does %q, want %q", log, tc.does)
				}
				n.set(func() {
					if want := planFor(tc.blocked).Listen; !slices.Equal(reset, want) {
						t.Errorf("connections at %v are reset, want %v", reset, want)
					}
				})
				if after := n.renewals(tc.blocked); after != before {
					t.Error("renewed after it was blocked")
				}
				settle(time.Second + 100*time.Millisecond)
				before = n.renewals("10.96.0.10")
				settle(2 * time.Second)
				if k.Covers(netip.MustParseAddr("10.96.0.10")) || n.renewals("10.96.0.10") != before {
					t.Errorf("covered: %v, %d renewals since", k.Status(), n.renewals("10.96.0.10")-before)
				}
				if log := n.takeLog(); len(log) > 0 {
					t.Errorf("and then it does %q", log)
				}
				if said := strings.Count(n.logs(), "10.96.0.10: detached, DNS goes to the cluster: chain filter_INPUT drops"); said != 1 {
					t.Errorf("said %d times in %s", said, n.logs())
				}
				n.block()
				changes <- iptables.Change{}
				settle(time.Second + 100*time.Millisecond)
				if !k.Covers(netip.MustParseAddr("10.96.0.10")) {
					t.Errorf("not attached again: %v", k.Standing().Reason)
				}
			})
		})
	}
}

// The answer to a lease probe that left before the way was blocked must not come
// after the lease has been ended.
func TestStandBackWaitsForTheProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, k := newObstructed()
		changes := make(chan iptables.Change)
		k.cfg.Changes = changes
		p := planFor("10.96.0.10")
		attached(t, k, p, n.node)
		const under = 50 * time.Millisecond
		n.set(func() { n.stopped = under })
		settle(p.Lease/5 - 1) // just before the next probe, or within it
		for !k.probes.any() {
			time.Sleep(time.Millisecond)
		}
		n.block("10.96.0.10")
		before := n.renewals("10.96.0.10")
		changes <- iptables.Change{}
		synctest.Wait()
		if log := n.takeLog(); len(log) > 0 {
			t.Errorf("with a probe under way it does %q", log)
		}
		settle(under)
		if log := n.takeLog(); !slices.Equal(log, []string{"end lease 10.96.0.10"}) {
			t.Errorf("once it was answered it does %q", log)
		}
		settle(5 * time.Second)
		if after := n.renewals("10.96.0.10"); after != before+1 {
			t.Errorf("renewed %d times since", after-before)
		}
	})
}

func TestEffectIsExplained(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, k := newNode()
		k.cfg.Kernel.Explain = func(a netip.Addr) string { return "chain x accepts " + a.String() }
		attached(t, k, planFor("10.96.0.10"), n)
		n.set(func() { n.fail["effect"] = errors.New("an entry stands") })
		settle(3 * effectInterval)
		const want = "an entry stands; chain x accepts 10.96.0.10"
		if !strings.Contains(n.logs(), want) {
			t.Errorf("log %s", n.logs())
		}
		if reason := k.Standing().Reason; reason == nil || !strings.Contains(reason.Error(), want) {
			t.Errorf("reason %v", reason)
		}
	})
}

// That others answer our checks has a cause, which is looked for once when it lasts.
func TestDetachedIsExplained(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, k := newNode()
		var asked atomic.Int64
		k.cfg.Kernel.Explain = func(netip.Addr) string {
			asked.Add(1)
			return "chain x sets a zone"
		}
		attached(t, k, planFor("10.96.0.10"), n)
		n.set(func() { clear(n.answers) })
		settle(complainAfter / 2)
		if asked.Load() != 0 {
			t.Errorf("the rules of others were read %d times for a lapse that may be over soon", asked.Load())
		}
		settle(4 * complainAfter)
		if reason := k.Standing().Reason; asked.Load() != 1 || reason == nil || !strings.Contains(reason.Error(), "no answer; chain x sets a zone") {
			t.Errorf("asked %d times, reason %v", asked.Load(), reason)
		}
		if strings.Count(n.logs(), "still detached") != 1 {
			t.Errorf("log %s", n.logs())
		}
		n.answer(planFor("10.96.0.10"))
		settle(complainAfter)
		if reason := k.Standing().Reason; reason != nil {
			t.Errorf("attached again, and the reason is %v", reason)
		}
	})
}

// What is said of DNS while we are detached has to be true.
func TestWhereDNSGoes(t *testing.T) {
	for want, why := range map[string]error{
		"DNS goes to the cluster":     errors.New("a chain drops it"),
		"DNS comes here all the same": fmt.Errorf("10.96.0.10: %w", iptables.ErrUntracked),
	} {
		if got := whereTo(why); got != want {
			t.Errorf("%v: %s, want %s", why, got, want)
		}
	}
}
