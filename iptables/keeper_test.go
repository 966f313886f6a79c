package iptables

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// node is a fake of what a Keeper works on: kernel, links and listeners. It
// records every change in order.
type node struct {
	mu        sync.Mutex
	log       []string
	answers   map[Endpoint]bool
	fail      map[string]error // by the first word of the change
	others    int
	installed Plan
	logged    []string
}

func (n *node) do(format string, args ...any) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	entry := fmt.Sprintf(format, args...)
	what, _, _ := strings.Cut(entry, " ")
	if err := n.fail[what]; err != nil {
		return err
	}
	n.log = append(n.log, entry)
	return nil
}

func (n *node) Name() string { return "fake" }
func (n *node) Install(p Plan, checks []Check) error {
	n.installed = p
	return n.do("install %s checks=%d", addressList(p.Addresses()), len(checks))
}
func (n *node) Attach() error               { return n.do("attach") }
func (n *node) Detach() error               { return n.do("detach") }
func (n *node) Counters() (Counters, error) { return nil, nil }
func (n *node) Others() (int, error)        { return n.others, nil }

type backend struct{ *node }

func (b backend) Remove() error { return b.do("remove-rules") }

type addresses struct{ *node }

func (a addresses) Ensure(addrs []netip.Addr) error { return a.do("ensure %s", addressList(addrs)) }
func (a addresses) Release(keep []netip.Addr) error { return a.do("keep %s", addressList(keep)) }
func (a addresses) Remove() error                   { return a.do("remove-addresses") }

type checker struct{ *node }

func (c checker) Reserve(addrs []netip.Addr) ([]Check, error) {
	return make([]Check, len(addrs)), c.do("reserve %s", addressList(addrs))
}

func (c checker) Check(_ context.Context, e Endpoint) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.answers[e] {
		return nil
	}
	return errors.New("no answer")
}
func (c checker) Close() error { return c.do("close-checks") }

func (n *node) Infof(string, ...any) {}
func (n *node) Warningf(format string, args ...any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.logged = append(n.logged, fmt.Sprintf(format, args...))
}

func (n *node) answer(p Plan) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, e := range p.Listen {
		n.answers[e] = true
	}
}

// takeLog returns what happened since it was last called.
func (n *node) takeLog() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	log := n.log
	n.log = nil
	return log
}

func newNode() (*node, *Keeper) {
	n := &node{answers: map[Endpoint]bool{}, fail: map[string]error{}}
	return n, NewKeeper(Config{Backend: backend{n}, Addresses: addresses{n}, Log: n})
}

func planFor(addrs ...string) Plan {
	p := Plan{Link: "nodelocaldns"}
	for _, a := range addrs {
		for _, proto := range []Proto{UDP, TCP} {
			p.Listen = append(p.Listen, Endpoint{Addr: netip.MustParseAddr(a), Port: 53, Proto: proto})
		}
	}
	return p.Normalize()
}

func (n *node) expect(t *testing.T, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, n.takeLog()); diff != "" {
		t.Errorf("changes to the node (-want +got):\n%s", diff)
	}
}

func attached(t *testing.T, k *Keeper, p Plan, n *node) {
	t.Helper()
	if err := k.Prepare(p, checker{n}); err != nil {
		t.Fatal(err)
	}
	k.Commit()
	n.answer(p)
	time.Sleep(2 * pollInterval)
	synctest.Wait()
	if k.State() != Attached {
		t.Fatalf("state %s after the listeners answered", k.State())
	}
	n.takeLog()
}

func TestRulesComeAfterTheListeners(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, k := newNode()
		p := planFor("10.96.0.10")
		if err := k.Prepare(p, checker{n}); err != nil {
			t.Fatal(err)
		}
		n.expect(t, "ensure 10.96.0.10", "reserve 10.96.0.10", "install 10.96.0.10 checks=1")
		k.Commit()

		// UDP answers, TCP does not: no rules, however long it takes, and one
		// line in the log.
		n.mu.Lock()
		n.answers[p.Listen[1]] = true
		n.mu.Unlock()
		time.Sleep(time.Minute)
		synctest.Wait()
		n.expect(t)
		if k.State() != Detached || k.Covers(netip.MustParseAddr("10.96.0.10")) {
			t.Error("attached without a listener")
		}
		if len(n.logged) != 1 || !strings.Contains(n.logged[0], "tcp 10.96.0.10:53 does not answer") {
			t.Errorf("log: %q", n.logged)
		}

		answered := time.Now()
		n.answer(p)
		for k.State() != Attached {
			time.Sleep(time.Millisecond)
		}
		if d := time.Since(answered); d > time.Second {
			t.Errorf("attached %s after the listeners answered", d)
		}
		n.expect(t, "install 10.96.0.10 checks=0", "attach", "close-checks", "keep 10.96.0.10")
		if !k.Covers(netip.MustParseAddr("10.96.0.10")) || k.Covers(netip.MustParseAddr("10.96.0.11")) {
			t.Error("Covers does not tell attached addresses from others")
		}
	})
}

func TestStop(t *testing.T) {
	for _, tc := range []struct {
		name   string
		others int
		want   []string
	}{
		{"alone on the node", 0, []string{"detach", "remove-rules", "remove-addresses"}},
		{"another instance needs the addresses", 1, []string{"detach", "remove-rules"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n, k := newNode()
				attached(t, k, planFor("10.96.0.10"), n)
				n.others = tc.others
				if err := errors.Join(k.Detach(), k.Close(), k.Close()); err != nil {
					t.Fatal(err)
				}
				n.expect(t, tc.want...)
				if k.State() != Detached {
					t.Errorf("state %s", k.State())
				}
				if err := k.Prepare(planFor("10.96.0.10"), checker{n}); err == nil {
					t.Error("prepared after the stop")
				}
			})
		})
	}
}

func TestDrainEndsEarlyAndIsBounded(t *testing.T) {
	for _, tc := range []struct {
		name    string
		pending func() int64
		atLeast time.Duration
		atMost  time.Duration
	}{
		{"nothing pending", func() int64 { return 0 }, 0, time.Millisecond},
		{"one answer outstanding for a second", func() func() int64 {
			var since time.Time
			return func() int64 {
				if since.IsZero() {
					since = time.Now()
				}
				if time.Since(since) < time.Second {
					return 1
				}
				return 0
			}
		}(), time.Second, 1100 * time.Millisecond},
		{"an answer that never comes", func() int64 { return 1 }, 5 * time.Second, 5 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n, k := newNode()
				k.cfg.Pending = tc.pending
				attached(t, k, planFor("10.96.0.10"), n)
				begin := time.Now()
				if err := k.Detach(); err != nil {
					t.Fatal(err)
				}
				if d := time.Since(begin); d < tc.atLeast || d > tc.atMost {
					t.Errorf("drained for %s, want %s to %s", d, tc.atLeast, tc.atMost)
				}
				n.expect(t, "detach")
				if k.State() != Draining {
					t.Errorf("state %s", k.State())
				}
			})
		})
	}
}

func TestReload(t *testing.T) {
	old, next := planFor("10.96.0.10"), planFor("10.96.0.10", "169.254.20.10")

	t.Run("to more addresses", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			n, k := newNode()
			attached(t, k, old, n)
			if err := k.Prepare(next, checker{n}); err != nil {
				t.Fatal(err)
			}
			if !k.Covers(netip.MustParseAddr("10.96.0.10")) {
				t.Error("what was attached must stay so during a reload")
			}
			k.Commit()
			n.answer(next)
			time.Sleep(2 * pollInterval)
			synctest.Wait()
			n.expect(t, "ensure 10.96.0.10 169.254.20.10", "reserve 10.96.0.10 169.254.20.10",
				"install 10.96.0.10 169.254.20.10 checks=2",
				"install 10.96.0.10 169.254.20.10 checks=0", "attach", "close-checks", "keep 10.96.0.10 169.254.20.10")
		})
	})
	t.Run("to other addresses: the old ones go last", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			n, k := newNode()
			attached(t, k, old, n)
			other := planFor("169.254.20.10")
			if err := k.Prepare(other, checker{n}); err != nil {
				t.Fatal(err)
			}
			n.expect(t, "ensure 169.254.20.10", "reserve 169.254.20.10", "install 10.96.0.10 169.254.20.10 checks=1")
			k.Commit()
			n.answer(other)
			time.Sleep(2 * pollInterval)
			synctest.Wait()
			n.expect(t, "install 169.254.20.10 checks=0", "attach", "close-checks", "keep 169.254.20.10")
		})
	})
	t.Run("whose listeners cannot be opened", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			n, k := newNode()
			attached(t, k, old, n)
			if err := k.Prepare(next, checker{n}); err != nil {
				t.Fatal(err)
			}
			n.takeLog()
			if err := errors.Join(k.Rollback(), k.Rollback()); err != nil {
				t.Fatal(err)
			}
			n.expect(t, "close-checks", "install 10.96.0.10 checks=0", "keep 10.96.0.10")
			if k.State() != Attached {
				t.Errorf("state %s", k.State())
			}
		})
	})
	t.Run("rolled back while its listeners are awaited", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			n, k := newNode()
			attached(t, k, old, n)
			if err := k.Prepare(next, checker{n}); err != nil {
				t.Fatal(err)
			}
			k.Commit()
			time.Sleep(time.Second)
			if err := k.Rollback(); err != nil {
				t.Fatal(err)
			}
			n.answer(next)
			time.Sleep(time.Minute)
			if k.Covers(netip.MustParseAddr("169.254.20.10")) || !slices.Equal(k.plan.Listen, old.Listen) {
				t.Error("a change that was rolled back was committed")
			}
		})
	})
	t.Run("to another interface is refused", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			n, k := newNode()
			attached(t, k, old, n)
			moved := old
			moved.Link = "dns0"
			err := k.Prepare(moved, checker{n})
			if err == nil || !strings.Contains(err.Error(), "restart") {
				t.Errorf("error %v", err)
			}
			n.expect(t)
		})
	})
}

func TestAFailedPrepareLeavesNothing(t *testing.T) {
	for _, tc := range []struct {
		fails string
		want  []string
	}{
		{"ensure", nil},
		{"reserve", []string{"ensure 10.96.0.10", "close-checks", "remove-rules", "remove-addresses"}},
		{"install", []string{"ensure 10.96.0.10", "reserve 10.96.0.10", "close-checks", "remove-rules", "remove-addresses"}},
	} {
		t.Run(tc.fails, func(t *testing.T) {
			n, k := newNode()
			n.fail[tc.fails] = errors.New("refused")
			if err := k.Prepare(planFor("10.96.0.10"), checker{n}); err == nil {
				t.Fatal("no error")
			}
			n.expect(t, tc.want...)
		})
	}
}

func TestAttachIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, k := newNode()
		p := planFor("10.96.0.10")
		n.fail["attach"] = errors.New("device or resource busy")
		if err := k.Prepare(p, checker{n}); err != nil {
			t.Fatal(err)
		}
		k.Commit()
		n.answer(p)
		time.Sleep(complainAfter + time.Second)
		if k.State() != Detached {
			t.Fatal("attached although the kernel refused")
		}
		if len(n.logged) != 1 || !strings.Contains(n.logged[0], "busy") {
			t.Errorf("log: %q", n.logged)
		}
		n.mu.Lock()
		delete(n.fail, "attach")
		n.mu.Unlock()
		time.Sleep(2 * pollInterval)
		synctest.Wait()
		if k.State() != Attached {
			t.Error("not attached after the kernel took the rules")
		}
	})
}

func TestCoversAllocatesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, k := newNode()
		attached(t, k, planFor("10.96.0.10", "fd00::a"), n)
		a := netip.MustParseAddr("fd00::a")
		if got := testing.AllocsPerRun(100, func() { k.Covers(a) }); got != 0 {
			t.Errorf("%v allocations", got)
		}
	})
}
