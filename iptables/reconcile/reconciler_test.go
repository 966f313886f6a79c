package reconcile

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/trackless-dns/trackless/internal/figure"
	"github.com/trackless-dns/trackless/internal/wakeup"
	"github.com/trackless-dns/trackless/iptables"
)

// node is a fake of what a Reconciler works on: kernel, links and listeners. It
// records every change in order.
type node struct {
	mu             sync.Mutex
	log            []string
	answers        map[iptables.Endpoint]bool
	fail           map[string]error // by the change, or the first word of it
	others         []string         // what another instance listens on
	left           []netip.Addr     // what others left on the node
	renewed        map[netip.Addr]int
	looks          int
	stopped        time.Duration // how long the next renewal takes
	slow           time.Duration // how long each renewal takes
	slowCheck      time.Duration // how long each check takes
	slowTo         netip.Addr    // the only address whose renewals are slow, if it is valid
	installed      iptables.Rules
	missing        []netip.Addr
	takenAtInstall []netip.Addr // missing from then on
	down           bool
	absent         bool
	logged         []string // warnings
	told           []string // the rest
}

func (n *node) do(format string, args ...any) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	entry := fmt.Sprintf(format, args...)
	what, _, _ := strings.Cut(entry, " ")
	for _, key := range []string{what, entry} {
		if err := n.fail[key]; err != nil {
			return err
		}
	}
	n.log = append(n.log, entry)
	return nil
}

func (n *node) Name() string  { return "fake" }
func (n *node) Table() string { return "fake" }
func (n *node) Owned() bool   { return true }
func (n *node) Capabilities() (iptables.Capabilities, error) {
	return iptables.Capabilities{}, nil
}
func (n *node) Install(r iptables.Rules) error {
	err := n.do("install %s leases=%d", figure.Joined(r.Plan.Addresses()), len(r.Leases))
	n.mu.Lock()
	defer n.mu.Unlock()
	n.installed, n.absent = r, false
	n.missing, n.takenAtInstall = append(n.missing, n.takenAtInstall...), nil
	return err
}
func (n *node) Exempt(c []iptables.Connection) error {
	if len(c) == 0 {
		return nil
	}
	return n.do("exempt %d", len(c))
}
func (n *node) ExemptOnly(c []iptables.Connection) error {
	return n.do("exempt only %d", len(c))
}
func (n *node) Present() (bool, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return !n.absent, nil
}
func (n *node) Live() ([]netip.Addr, error)        { return nil, nil }
func (n *node) Attach() error                      { return n.do("attach") }
func (n *node) Detach([]iptables.Connection) error { return n.do("detach") }
func (n *node) EndLease(addrs []netip.Addr) error {
	return n.do("end lease %s", figure.Joined(addrs))
}
func (n *node) Counters() (iptables.Counters, error) { return nil, nil }

type backend struct{ *node }

func (b backend) Remove() error { return b.do("remove-rules") }

type addresses struct{ *node }

func (a addresses) Ensure(addrs []netip.Addr) error {
	err := a.do("ensure %s", figure.Joined(addrs))
	a.mu.Lock()
	defer a.mu.Unlock()
	if err == nil {
		a.missing = slices.DeleteFunc(slices.Clone(a.missing), func(m netip.Addr) bool { return slices.Contains(addrs, m) })
	}
	return err
}
func (a addresses) Missing([]netip.Addr) ([]netip.Addr, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	missing := a.missing
	return missing, nil
}
func (a addresses) Release(keep []netip.Addr) error { return a.do("keep %s", figure.Joined(keep)) }
func (a addresses) PreferSource() error             { return nil }
func (a addresses) Left([]netip.Addr) ([]netip.Addr, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.left), nil
}
func (a addresses) Clear(addrs []netip.Addr) error {
	err := a.do("clear %s", figure.Joined(addrs))
	a.set(func() {
		a.left = slices.DeleteFunc(a.left, func(l netip.Addr) bool { return slices.Contains(addrs, l) })
	})
	return err
}
func (a addresses) Down() (bool, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.down, nil
}
func (a addresses) SetUp() error {
	err := a.do("set up")
	a.set(func() { a.down = err != nil })
	return err
}
func (a addresses) Remove() error { return a.do("remove-addresses") }

type checker struct{ *node }

func (c checker) Reserve(addrs []netip.Addr) ([]iptables.Check, []iptables.Lease, error) {
	return make([]iptables.Check, len(addrs)), make([]iptables.Lease, len(addrs)), c.do("reserve %s", figure.Joined(addrs))
}

func (c checker) IsDue(iptables.Endpoint) bool { return true }

func (c checker) Void() {}

// any reports whether lease probes are under way.
func (p *prober) any() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.under) > 0
}

func (c checker) Renew(_ context.Context, addrs []netip.Addr, result func(netip.Addr, time.Time, error)) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, a := range addrs {
		wg.Go(func() {
			at, err := c.renew(a)
			mu.Lock()
			defer mu.Unlock()
			result(a, at, err)
		})
	}
	wg.Wait()
}

func (c checker) renew(a netip.Addr) (time.Time, error) {
	c.mu.Lock()
	stopped := c.stopped + c.slow
	if c.slowTo.IsValid() && c.slowTo != a {
		stopped = 0
	}
	c.stopped = 0
	c.mu.Unlock()
	time.Sleep(stopped)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.fail["renew"]; err != nil {
		return time.Now(), err
	}
	c.renewed[a]++
	return time.Now(), nil
}

func (c checker) Effect(context.Context, netip.Addr) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.looks++
	return c.fail["effect"]
}

func (c checker) Check(_ context.Context, e iptables.Endpoint) error {
	c.mu.Lock()
	slow := c.slowCheck
	c.mu.Unlock()
	time.Sleep(slow)
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.fail["check"] != nil:
		return c.fail["check"]
	case c.answers[e]:
		return nil
	}
	return errors.New("no answer")
}
func (c checker) Close() error { return c.do("close-checks") }

func (n *node) Infof(format string, args ...any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.told = append(n.told, fmt.Sprintf(format, args...))
}
func (n *node) Warningf(format string, args ...any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.logged = append(n.logged, fmt.Sprintf(format, args...))
}

func (n *node) answer(p iptables.Plan) {
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

func newNode() (*node, *Reconciler) {
	n := &node{answers: map[iptables.Endpoint]bool{}, fail: map[string]error{}, renewed: map[netip.Addr]int{}}
	var asked atomic.Uint64 // very often: the node is busy
	return n, New(Config{
		Backend: backend{n}, Addresses: addresses{n}, Log: n, Kernel: n.kernel(),
		Queries: func() uint64 { return asked.Add(1 << 20) }, NewTimer: wakeup.NewRuntime,
		Yield:  func([]iptables.Endpoint) error { return nil },
		Reset:  func([]iptables.Endpoint, []string) error { return nil },
		Served: func([]iptables.Endpoint) Served { return Served{} },
	})
}

// kernel is one in which there is nothing but what the node claims.
func (n *node) kernel() Kernel {
	return Kernel{
		Connections: func([]iptables.Endpoint) ([]iptables.Connection, error) { return nil, nil },
		Held:        func([]iptables.Endpoint) []iptables.Connection { return nil },
		Purge:       func([]iptables.Endpoint) error { return nil },
		Uplinks:     func(iptables.Plan) ([]string, error) { return nil, nil },
		Unowned:     func([]netip.Addr) []netip.Addr { return nil },
		Refresh:     func(iptables.Rules) error { return nil },
		Unblock:     func(iptables.Rules) (map[netip.Addr]error, bool) { return nil, false },
		Adopt:       func([]netip.Addr) (bool, error) { return false, nil },
		Claims:      n.claims,
		Unannounced: func() bool { return false },
		Changed:     func() {},
		Explain:     func(netip.Addr) string { return "" },
		Load:        func([]iptables.Endpoint) Load { return Load{} },
	}
}

func (n *node) claims() (iptables.Claims, error) {
	if len(n.others) == 0 {
		return iptables.Claims{}, nil
	}
	return iptables.NewClaims([]iptables.Instance{{Listen: planFor(n.others...).Listen}}, nil), nil
}

func planFor(addrs ...string) iptables.Plan {
	p := iptables.Plan{Link: "nodelocaldns", Lease: time.Second}
	for _, a := range addrs {
		for _, proto := range []iptables.Proto{iptables.UDP, iptables.TCP} {
			p.Listen = append(p.Listen, iptables.Endpoint{Addr: netip.MustParseAddr(a), Port: 53, Proto: proto})
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

// attached brings a keeper to Attached and forgets how. The keeper is closed
// at the end of the test.
func attached(t *testing.T, k *Reconciler, p iptables.Plan, n *node) {
	t.Helper()
	n.answer(p)
	if err := k.Prepare(p, checker{n}); err != nil {
		t.Fatal(err)
	}
	k.Commit()
	t.Cleanup(func() { _ = k.Close() })
	settle(2 * attachInterval)
	if k.State() != Attached {
		t.Fatalf("state %s after the listeners answered", k.State())
	}
	n.takeLog()
}

// settle lets time pass.
func settle(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (n *node) set(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f()
}

func (n *node) logs() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return strings.Join(n.logged, "\n")
}

// renewals is how often the lease of an address was renewed.
func (n *node) renewals(a netip.Addr) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.renewed[a]
}

func inBubble(t *testing.T, name string, f func(t *testing.T, n *node, k *Reconciler)) {
	t.Run(name, func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			n, k := newNode()
			f(t, n, k)
		})
	})
}

var (
	clusterIP = netip.MustParseAddr("10.96.0.10")
	linkLocal = netip.MustParseAddr("169.254.20.10")
)

func TestAttach(t *testing.T) {
	inBubble(t, "rules come after the listeners", func(t *testing.T, n *node, k *Reconciler) {
		p := planFor("10.96.0.10")
		if err := k.Prepare(p, checker{n}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = k.Close() })
		n.expect(t, "ensure 10.96.0.10", "reserve 10.96.0.10", "install 10.96.0.10 leases=1")
		k.Commit()

		// UDP answers, TCP does not: no rules, however long it takes, and one
		// line in the log.
		n.set(func() { n.answers[p.Listen[1]] = true })
		settle(time.Minute)
		n.expect(t)
		if k.State() != Detached || k.Covers(clusterIP) || n.renewals(clusterIP) > 0 {
			t.Error("attached without a listener")
		}
		if got := n.logs(); strings.Count(got, "does not answer") != 1 || !strings.Contains(got, "tcp 10.96.0.10:53 does not answer") {
			t.Errorf("log: %q", got)
		}

		answered := time.Now()
		n.answer(p)
		for k.State() != Attached {
			time.Sleep(time.Millisecond)
		}
		if d := time.Since(answered); d > time.Second {
			t.Errorf("attached %s after the listeners answered", d)
		}
		synctest.Wait()
		n.expect(t, "install 10.96.0.10 leases=1", "keep 10.96.0.10")
		if n.renewals(clusterIP) != 1 {
			t.Errorf("%d lease probes, want 1", n.renewals(clusterIP))
		}
		if !k.Covers(clusterIP) || k.Covers(linkLocal) {
			t.Error("Covers does not tell attached addresses from others")
		}
	})
	inBubble(t, "connections that are tracked are exempted before", func(t *testing.T, n *node, k *Reconciler) {
		k.cfg.Kernel.Connections = func(es []iptables.Endpoint) ([]iptables.Connection, error) {
			return make([]iptables.Connection, len(es)), nil
		}
		p := planFor("10.96.0.10")
		n.answer(p)
		if err := k.Prepare(p, checker{n}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = k.Close() })
		k.Commit()
		settle(2 * attachInterval)
		n.expect(t, "ensure 10.96.0.10", "reserve 10.96.0.10", "install 10.96.0.10 leases=1",
			"install 10.96.0.10 leases=1", "exempt 2", "keep 10.96.0.10")
	})
	inBubble(t, "without a lease the backend attaches", func(t *testing.T, n *node, k *Reconciler) {
		p := planFor("10.96.0.10")
		p.Lease = 0
		n.answer(p)
		if err := k.Prepare(p, checker{n}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = k.Close() })
		k.Commit()
		settle(10 * time.Second)
		n.expect(t, "ensure 10.96.0.10", "reserve 10.96.0.10", "install 10.96.0.10 leases=1",
			"install 10.96.0.10 leases=1", "attach", "keep 10.96.0.10")
		if n.renewals(clusterIP) != 0 {
			t.Error("lease probes without a lease")
		}
	})
	inBubble(t, "dry-run never attaches", func(t *testing.T, n *node, k *Reconciler) {
		p := planFor("10.96.0.10")
		p.DryRun = true
		n.answer(p)
		if err := k.Prepare(p, checker{n}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = k.Close() })
		k.Commit()
		settle(10 * time.Second)
		if k.State() != Detached || k.Covers(clusterIP) || n.renewals(clusterIP) > 0 {
			t.Error("attached in dry-run")
		}
	})
	inBubble(t, "a dry run ends what was attached before", func(t *testing.T, n *node, k *Reconciler) {
		p := planFor("10.96.0.10")
		attached(t, k, p, n)
		p.DryRun = true
		if err := k.Prepare(p, checker{n}); err != nil {
			t.Fatal(err)
		}
		n.takeLog()
		k.Commit()
		settle(10 * time.Second)
		if k.State() != Detached || k.Covers(clusterIP) {
			t.Errorf("%s, covered %t; want detached", k.State(), k.Covers(clusterIP))
		}
		if !slices.Contains(n.takeLog(), "detach") {
			t.Error("the addresses stayed live, to be attached again as soon as the dry run is over")
		}
	})
	inBubble(t, "is tried again when it fails", func(t *testing.T, n *node, k *Reconciler) {
		p := planFor("10.96.0.10")
		n.answer(p)
		n.set(func() { n.fail["renew"] = errors.New("no answer to the probe") })
		if err := k.Prepare(p, checker{n}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = k.Close() })
		k.Commit()
		settle(complainAfter + time.Second)
		if k.State() != Detached || !strings.Contains(n.logs(), "no answer to the probe") {
			t.Fatalf("state %s, log %q", k.State(), n.logs())
		}
		n.set(func() { delete(n.fail, "renew") })
		settle(2 * attachInterval)
		if k.State() != Attached {
			t.Error("not attached after the probe was answered")
		}
	})
}

func TestLease(t *testing.T) {
	two := planFor("10.96.0.10", "169.254.20.10")
	silence := func(n *node, a netip.Addr) {
		n.set(func() {
			for _, e := range two.Listen {
				if e.Addr == a {
					delete(n.answers, e)
				}
			}
		})
	}
	inBubble(t, "is renewed five times in its length", func(t *testing.T, n *node, k *Reconciler) {
		attached(t, k, two, n)
		before := n.renewals(clusterIP)
		settle(10 * time.Second)
		if got := n.renewals(clusterIP) - before; got != 50 {
			t.Errorf("%d renewals in 10 s, want 50", got)
		}
		if k.Stats().Lapses != 0 {
			t.Error("lapses although all was well")
		}
	})
	inBubble(t, "one address that hangs loses its own lease only", func(t *testing.T, n *node, k *Reconciler) {
		attached(t, k, two, n)
		silence(n, clusterIP)
		settle(400 * time.Millisecond)
		before := n.renewals(clusterIP)
		settle(2 * time.Second)
		if n.renewals(clusterIP) != before {
			t.Error("the lease of an address that does not answer was renewed")
		}
		if k.Covers(clusterIP) || !k.Covers(linkLocal) {
			t.Errorf("covered: %v", k.Status())
		}
		if k.Stats().Lapses != 1 || strings.Count(n.logs(), "the lease ran out") != 1 {
			t.Errorf("%d lapses, log %q", k.Stats().Lapses, n.logs())
		}
		n.answer(two)
		settle(400 * time.Millisecond)
		if !k.Covers(clusterIP) {
			t.Error("not attached again by itself")
		}
	})
	inBubble(t, "lapsed while the probe was under way", func(t *testing.T, n *node, k *Reconciler) {
		attached(t, k, planFor("10.96.0.10"), n)
		n.set(func() { n.stopped = 3 * time.Second })
		settle(4 * time.Second)
		if got := n.logs(); k.Stats().Lapses != 1 || strings.Count(got, "the lease ran out (3.") != 1 || !k.Covers(clusterIP) {
			t.Errorf("%d lapses, log %q", k.Stats().Lapses, got)
		}
	})
	inBubble(t, "several addresses that lapse at once are one episode", func(t *testing.T, n *node, k *Reconciler) {
		four := planFor("10.96.0.10", "169.254.20.10", "fd00::a", "fd00::b")
		attached(t, k, four, n)
		n.set(func() { clear(n.answers) })
		settle(2 * time.Second)
		n.answer(four)
		settle(time.Second)
		for _, a := range four.Addresses() {
			if !k.Covers(a) {
				t.Errorf("%s was not attached again at once", a)
			}
		}
		if got := k.Stats().Lapses; got != 4 {
			t.Errorf("%d lapses, want one for each address", got)
		}
	})
	inBubble(t, "a probe that takes its time costs the other addresses nothing", func(t *testing.T, n *node, k *Reconciler) {
		eight := planFor("10.96.0.10", "10.96.0.11", "10.96.0.12", "10.96.0.13", "fd00::a", "fd00::b", "fd00::c", "fd00::d")
		attached(t, k, eight, n)
		n.set(func() { n.slow = 200 * time.Millisecond })
		settle(10 * time.Second)
		if k.Stats().Lapses != 0 {
			t.Errorf("%d lapses, log %q", k.Stats().Lapses, n.logs())
		}
	})
	inBubble(t, "checks and probes that take their time do not add up", func(t *testing.T, n *node, k *Reconciler) {
		attached(t, k, two, n)
		n.set(func() { n.slow, n.slowCheck = 800*time.Millisecond, 400*time.Millisecond })
		settle(10 * time.Second)
		if k.Stats().Lapses != 0 {
			t.Errorf("%d lapses, log %q", k.Stats().Lapses, n.logs())
		}
	})
	inBubble(t, "checks of long ago say nothing", func(t *testing.T, n *node, k *Reconciler) {
		attached(t, k, two, n)
		n.set(func() { n.slowCheck = 5 * time.Second })
		settle(time.Second)
		n.set(func() {
			clear(n.answers)
			clear(n.renewed)
		})
		settle(20 * time.Second)
		if got := n.renewals(clusterIP); got != 0 {
			t.Errorf("%d renewals after checks that took longer than a lease and were not answered", got)
		}
	})
	inBubble(t, "flapping that goes on is left alone most of the time", func(t *testing.T, n *node, k *Reconciler) {
		p := planFor("10.96.0.10")
		attached(t, k, p, n)
		// Well whenever nothing is asked of it, out of lease as soon as it is.
		for began := time.Now(); time.Since(began) < time.Hour; settle(attachInterval) {
			covers := k.Covers(clusterIP)
			n.set(func() {
				for _, e := range p.Listen {
					n.answers[e] = !covers
				}
			})
		}
		if got := k.Stats().Lapses; got > 12 {
			t.Errorf("%d lapses in an hour", got)
		}
		n.answer(p)
		settle(longestWait)
		if !k.Covers(clusterIP) {
			t.Error("not attached when it was well again")
		}
		settle(2 * longestWait)
		silence(n, clusterIP)
		settle(2 * time.Second)
		n.answer(p)
		settle(time.Second)
		if !k.Covers(clusterIP) {
			t.Error("one lapse after a long time without counts as flapping")
		}
	})
	inBubble(t, "flapping waits longer each time", func(t *testing.T, n *node, k *Reconciler) {
		attached(t, k, two, n)
		for lapse, wait := range []time.Duration{0, againWait, 2 * againWait, 4 * againWait} {
			silence(n, clusterIP)
			settle(2 * time.Second) // the lease runs out after half of that at the soonest
			n.answer(two)
			settle(wait / 2)
			if wait > 0 && k.Covers(clusterIP) {
				t.Errorf("lapse %d: attached after half of the wait", lapse+1)
			}
			if !k.Covers(linkLocal) {
				t.Errorf("lapse %d: the other address waits as well", lapse+1)
			}
			settle(wait/2 + time.Second)
			if !k.Covers(clusterIP) {
				t.Errorf("lapse %d: not attached after a wait of %s", lapse+1, wait)
			}
		}
	})
}

func TestEffect(t *testing.T) {
	inBubble(t, "attached means that it works", func(t *testing.T, n *node, k *Reconciler) {
		attached(t, k, planFor("10.96.0.10"), n)
		n.set(func() { n.fail["effect"] = errors.New("the query left an entry") })
		settle(10 * time.Second)
		if k.Status()[clusterIP] || k.Untracks(clusterIP) || !k.Covers(clusterIP) {
			t.Error("shown as attached without effect")
		}
		if got := n.logs(); strings.Count(got, "left an entry") != 1 {
			t.Errorf("log: %q", got)
		}
		n.set(func() { delete(n.fail, "effect") })
		settle(2 * effectInterval)
		if !k.Status()[clusterIP] || !k.Untracks(clusterIP) {
			t.Error("not shown as attached when it works again")
		}
	})
}

func TestEffectOfALapse(t *testing.T) {
	inBubble(t, "is nobody else's fault", func(t *testing.T, n *node, k *Reconciler) {
		attached(t, k, planFor("10.96.0.10"), n)
		// What renews the lease does not run, and so does not know yet.
		n.set(func() { n.stopped = 4 * time.Second })
		settle(1500 * time.Millisecond)
		looks := 0
		n.set(func() { n.fail["effect"], looks = errors.New("the query left an entry"), n.looks })
		settle(2 * time.Second)
		n.set(func() {
			clear(n.fail)
			if n.looks != looks {
				t.Errorf("%d queries that left entries", n.looks-looks)
			}
		})
		settle(5 * time.Second)
		if got := n.logs(); k.Stats().Lapses != 1 || strings.Contains(got, "without effect") {
			t.Errorf("%d lapses, log %q", k.Stats().Lapses, got)
		}
		n.set(func() { n.fail["effect"] = errors.New("the query left an entry") })
		settle(3 * effectInterval)
		if got := n.logs(); strings.Count(got, "without effect") != 1 {
			t.Errorf("not told of foreign rules after a lapse: log %q", got)
		}
	})
	inBubble(t, "nor is that we hang", func(t *testing.T, n *node, k *Reconciler) {
		p := planFor("10.96.0.10")
		p.Lease = 5 * time.Second
		attached(t, k, p, n)
		n.set(func() { clear(n.answers); n.fail["effect"] = errors.New("the query was not answered") })
		settle(10 * time.Second)
		n.answer(p)
		n.set(func() { clear(n.fail) })
		settle(10 * time.Second)
		if got := n.logs(); k.Stats().Lapses != 1 || strings.Contains(got, "without effect") {
			t.Errorf("%d lapses, log %q", k.Stats().Lapses, got)
		}
	})
	inBubble(t, "and what is not attached has none", func(t *testing.T, n *node, k *Reconciler) {
		attached(t, k, planFor("10.96.0.10"), n)
		n.set(func() { n.fail["effect"] = errors.New("the query left an entry") })
		settle(3 * effectInterval)
		if k.Standing().Reason == nil {
			t.Fatal("no reason")
		}
		if err := k.DetachByHand(); err != nil {
			t.Fatal(err)
		}
		settle(2 * effectInterval)
		if s := k.Standing(); s.Reason != nil {
			t.Errorf("reason while detached: %v", s.Reason)
		}
	})
	inBubble(t, "nor what is served no longer", func(t *testing.T, n *node, k *Reconciler) {
		attached(t, k, planFor("10.96.0.10"), n)
		n.set(func() { n.fail["effect"] = errors.New("the query left an entry") })
		settle(3 * effectInterval)
		n.set(func() { clear(n.fail) })
		p := planFor("169.254.20.10")
		n.answer(p)
		if err := k.Prepare(p, checker{n}); err != nil {
			t.Fatal(err)
		}
		k.Commit()
		settle(5 * time.Second)
		if s := k.Standing(); s.Reason != nil {
			t.Errorf("the reason is that of an address that is gone: %v", s.Reason)
		}
	})
}

func TestSyncsAreTimed(t *testing.T) {
	inBubble(t, "each of them", func(t *testing.T, n *node, k *Reconciler) {
		k.cfg.Sync = 10 * time.Second
		k.cfg.Kernel.Refresh = func(iptables.Rules) error {
			time.Sleep(300 * time.Millisecond)
			return nil
		}
		attached(t, k, planFor("10.96.0.10"), n)
		before := k.Stats()
		settle(31 * time.Second) // no sync is under way then
		if s := k.Stats(); s.Syncs-before.Syncs != 3 || s.SyncTime-before.SyncTime != 900*time.Millisecond {
			t.Errorf("%d syncs took %s, before it was %d and %s", s.Syncs, s.SyncTime, before.Syncs, before.SyncTime)
		}
	})
}

func TestByHand(t *testing.T) {
	inBubble(t, "detached until attached", func(t *testing.T, n *node, k *Reconciler) {
		p := planFor("10.96.0.10")
		attached(t, k, p, n)
		if err := errors.Join(k.DetachByHand(), k.DetachByHand()); err != nil {
			t.Fatal(err)
		}
		n.expect(t, "detach")
		before := n.renewals(clusterIP)
		settle(25 * time.Second)
		if n.renewals(clusterIP) != before || k.Covers(clusterIP) || k.State() != Detached {
			t.Error("renewed while detached by hand")
		}
		if k.Stats().Lapses != 0 {
			t.Error("a lease given up counts as lapsed")
		}
		n.takeLog()
		if s := k.Standing(); !s.ByHand || s.Reason != nil {
			t.Errorf("standing %+v", s)
		}
		if err := k.AttachByHand(t.Context()); err != nil {
			t.Fatal(err)
		}
		n.expect(t, "install 10.96.0.10 leases=1")
		if !k.Covers(clusterIP) || k.State() != Attached {
			t.Error("not attached again")
		}
		settle(time.Second)
		if k.Stats().Lapses != 0 || n.logs() != "" {
			t.Errorf("a lease given up and taken again counts as lapsed: %d, log %q", k.Stats().Lapses, n.logs())
		}
	})
	inBubble(t, "to and fro is no flapping", func(t *testing.T, n *node, k *Reconciler) {
		attached(t, k, planFor("10.96.0.10"), n)
		for range 6 {
			if err := k.DetachByHand(); err != nil {
				t.Fatal(err)
			}
			settle(2 * time.Second)
			began := time.Now()
			if err := k.AttachByHand(t.Context()); err != nil {
				t.Fatal(err)
			}
			if d := time.Since(began); d > time.Second {
				t.Errorf("attached after %s", d)
			}
		}
	})
	inBubble(t, "attached only when the listeners answer", func(t *testing.T, n *node, k *Reconciler) {
		p := planFor("10.96.0.10")
		attached(t, k, p, n)
		if err := k.DetachByHand(); err != nil {
			t.Fatal(err)
		}
		n.set(func() { clear(n.answers) })
		settle(2 * time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := k.AttachByHand(ctx); err == nil || !strings.Contains(err.Error(), "does not answer") {
			t.Errorf("attached without an answer: %v", err)
		}
		n.answer(p)
		settle(time.Second)
		if !k.Covers(clusterIP) {
			t.Error("the keeper did not go on trying")
		}
	})
	inBubble(t, "what the kernel refuses changes nothing", func(t *testing.T, n *node, k *Reconciler) {
		p := planFor("10.96.0.10")
		attached(t, k, p, n)
		n.set(func() { n.fail["detach"] = errors.New("no memory") })
		if err := k.DetachByHand(); err == nil {
			t.Error("no error from a refused detach")
		}
		settle(time.Second)
		if k.State() != Attached || !k.Covers(clusterIP) || k.Standing().ByHand {
			t.Errorf("after a refused detach: %+v", k.Standing())
		}
		n.set(func() { clear(n.fail) })
		if err := k.DetachByHand(); err != nil || k.State() != Detached {
			t.Errorf("%s after another try: %v", k.State(), err)
		}
		n.set(func() { n.fail["install"] = errors.New("no memory") })
		if err := k.AttachByHand(t.Context()); err == nil {
			t.Error("no error from a refused attach")
		}
		settle(time.Second)
		if k.State() != Detached || !k.Standing().ByHand {
			t.Errorf("after a refused attach: %+v", k.Standing())
		}
		n.set(func() { clear(n.fail) })
		n.takeLog()
		if err := k.AttachByHand(t.Context()); err != nil {
			t.Error(err)
		}
		n.expect(t, "install 10.96.0.10 leases=1")
	})
	inBubble(t, "a reload leaves it so, and says so", func(t *testing.T, n *node, k *Reconciler) {
		p := planFor("10.96.0.10")
		attached(t, k, p, n)
		if err := k.DetachByHand(); err != nil {
			t.Fatal(err)
		}
		n.set(func() { n.told = nil })
		if err := k.Prepare(p, checker{n}); err != nil {
			t.Fatal(err)
		}
		k.Commit()
		settle(3 * time.Second)
		n.set(func() {
			if got := strings.Join(n.told, "\n"); !strings.Contains(got, "still detached by hand") || strings.Contains(got, "attached: DNS") {
				t.Errorf("log after the reload: %q", got)
			}
		})
		if k.State() != Detached || k.Covers(clusterIP) {
			t.Error("attached by the reload")
		}
		if err := k.AttachByHand(t.Context()); err != nil {
			t.Error(err)
		}
		if k.Stats().Lapses != 0 {
			t.Errorf("%d lapses", k.Stats().Lapses)
		}
	})
	inBubble(t, "not in a dry run", func(t *testing.T, n *node, k *Reconciler) {
		p := planFor("10.96.0.10")
		p.DryRun = true
		n.answer(p)
		if err := k.Prepare(p, checker{n}); err != nil {
			t.Fatal(err)
		}
		k.Commit()
		t.Cleanup(func() { _ = k.Close() })
		settle(time.Second)
		if err := k.AttachByHand(t.Context()); err == nil || !strings.Contains(err.Error(), "dry-run") {
			t.Errorf("attach in a dry run: %v", err)
		}
	})
	inBubble(t, "not while it stops", func(t *testing.T, n *node, k *Reconciler) {
		attached(t, k, planFor("10.96.0.10"), n)
		if err := k.DetachByHand(); err != nil {
			t.Fatal(err)
		}
		if err := k.Detach(); err != nil {
			t.Fatal(err)
		}
		n.takeLog()
		for _, err := range []error{k.AttachByHand(t.Context()), k.DetachByHand()} {
			if !errors.Is(err, errLeaving) {
				t.Errorf("by hand while it stops: %v", err)
			}
		}
		n.expect(t)
		if !k.Released() {
			t.Error("TCP connections are kept for ever while it stops")
		}
	})
}

func TestRepairs(t *testing.T) {
	inBubble(t, "within a second of the announcement", func(t *testing.T, n *node, k *Reconciler) {
		changes := make(chan iptables.Change, 1)
		k.cfg.Changes = changes
		attached(t, k, planFor("10.96.0.10"), n)
		n.set(func() { n.missing = []netip.Addr{clusterIP} })
		changes <- iptables.Change{}
		settle(time.Millisecond)
		n.expect(t, "ensure 10.96.0.10")
		n.set(func() { n.absent = true })
		changes <- iptables.Change{Who: "nft (pid 17)"}
		settle(time.Millisecond)
		n.expect(t, "install 10.96.0.10 leases=1")
		if diff := cmp.Diff(map[string]uint64{RepairAddress: 1, RepairRules: 1}, k.Stats().Repairs); diff != "" {
			t.Errorf("repairs (-want +got):\n%s", diff)
		}
	})
	inBubble(t, "of a link that is set down, before its addresses", func(t *testing.T, n *node, k *Reconciler) {
		changes := make(chan iptables.Change, 1)
		k.cfg.Changes = changes
		attached(t, k, planFor("10.96.0.10"), n)
		n.set(func() { n.down, n.missing = true, []netip.Addr{clusterIP} })
		changes <- iptables.Change{}
		settle(time.Millisecond)
		n.expect(t, "set up", "ensure 10.96.0.10")
		if diff := cmp.Diff(map[string]uint64{RepairLink: 1, RepairAddress: 1}, k.Stats().Repairs); diff != "" {
			t.Errorf("repairs (-want +got):\n%s", diff)
		}
		for range 10 {
			n.set(func() { n.down = true })
			changes <- iptables.Change{Who: "rival (pid 18)"}
			settle(time.Second)
		}
		if got := k.Stats().Repairs[RepairLink]; got != 3 {
			t.Errorf("set up %d times within ten seconds, want 3", got)
		}
	})
	inBubble(t, "of several addresses that go one after the other", func(t *testing.T, n *node, k *Reconciler) {
		changes := make(chan iptables.Change, 1)
		k.cfg.Changes = changes
		p := planFor("10.96.0.10", "169.254.20.10", "fd00::a", "fd00::b")
		attached(t, k, p, n)
		for _, a := range p.Addresses() {
			n.set(func() { n.missing = []netip.Addr{a} })
			changes <- iptables.Change{}
			settle(time.Millisecond)
			n.expect(t, "ensure "+a.String())
		}
	})
	inBubble(t, "as soon as nobody else holds the address", func(t *testing.T, n *node, k *Reconciler) {
		changes := make(chan iptables.Change, 1)
		k.cfg.Changes = changes
		attached(t, k, planFor("10.96.0.10", "169.254.20.10"), n)
		held := &iptables.HeldError{Prefix: netip.PrefixFrom(clusterIP, 32), Interface: "spare", What: "it is somebody's", Remedy: "ask him"}
		n.set(func() { n.missing, n.fail["ensure 10.96.0.10"] = []netip.Addr{clusterIP, linkLocal}, held })
		for range 10 {
			changes <- iptables.Change{}
			settle(time.Millisecond)
		}
		if got := n.logs(); strings.Count(got, "interface spare") != 1 {
			t.Errorf("log: %q", got)
		}
		if diff := cmp.Diff(map[string]uint64{RepairAddress: 1}, k.Stats().Repairs); diff != "" {
			t.Errorf("repairs, of the other address alone (-want +got):\n%s", diff)
		}
		n.set(func() { delete(n.fail, "ensure 10.96.0.10") })
		changes <- iptables.Change{}
		settle(time.Millisecond)
		if got := k.Stats().Repairs[RepairAddress]; got != 2 {
			t.Errorf("%d repairs after the address was given up, want 2", got)
		}
	})
	inBubble(t, "found at the next sync if nobody says", func(t *testing.T, n *node, k *Reconciler) {
		attached(t, k, planFor("10.96.0.10"), n)
		n.set(func() { n.absent = true })
		settle(11 * time.Second)
		n.expect(t, "install 10.96.0.10 leases=1")
	})
	inBubble(t, "never fights", func(t *testing.T, n *node, k *Reconciler) {
		changes := make(chan iptables.Change, 1)
		k.cfg.Changes = changes
		attached(t, k, planFor("10.96.0.10"), n)
		for range 10 {
			n.set(func() { n.missing = []netip.Addr{clusterIP} })
			changes <- iptables.Change{Who: "rival (pid 18)"}
			settle(time.Second)
		}
		if got := k.Stats().Repairs[RepairAddress]; got != 3 {
			t.Errorf("%d repairs within ten seconds, want 3", got)
		}
		if got := n.logs(); strings.Count(got, "rival (pid 18)") != 1 {
			t.Errorf("log: %q", got)
		}
		settle(2 * time.Minute)
		if got := k.Stats().Repairs[RepairAddress]; got != 4 {
			t.Errorf("%d repairs after the rival has gone, want 4", got)
		}
	})
}

func TestStop(t *testing.T) {
	for _, tc := range []struct {
		name   string
		others []string
		want   []string
	}{
		{"alone on the node", nil, []string{"detach", "close-checks", "remove-rules", "remove-addresses"}},
		{"another instance listens there", []string{"10.96.0.10"}, []string{"detach", "yield 2", "close-checks", "remove-rules", "remove-addresses"}},
		{"another instance listens elsewhere", []string{"169.254.20.10"}, []string{"detach", "close-checks", "remove-rules", "remove-addresses"}},
	} {
		inBubble(t, tc.name, func(t *testing.T, n *node, k *Reconciler) {
			attached(t, k, planFor("10.96.0.10"), n)
			n.others = tc.others
			k.cfg.Yield = func(listen []iptables.Endpoint) error { return n.do("yield %d", len(listen)) }
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
	}
}

// Another instance's rules bring queries to our listeners whatever we have done
// ourselves.
func TestStopInEveryState(t *testing.T) {
	p := planFor("10.96.0.10")
	prepare := func(t *testing.T, n *node, k *Reconciler) {
		if err := k.Prepare(p, checker{n}); err != nil {
			t.Fatal(err)
		}
		k.Commit()
	}
	for _, tc := range []struct {
		name  string
		begin func(t *testing.T, n *node, k *Reconciler)
		want  []string
	}{
		{"before the listeners answer", prepare, []string{"close-checks", "remove-rules", "remove-addresses", "yield 2", "remove-rules", "remove-addresses"}},
		{"detached by hand", func(t *testing.T, n *node, k *Reconciler) {
			attached(t, k, p, n)
			if err := k.DetachByHand(); err != nil {
				t.Fatal(err)
			}
		}, []string{"yield 2", "close-checks", "remove-rules", "remove-addresses"}},
		{"out of lease", func(t *testing.T, n *node, k *Reconciler) {
			attached(t, k, p, n)
			n.set(func() { clear(n.answers) })
			settle(3 * time.Second)
		}, []string{"yield 2", "close-checks", "remove-rules", "remove-addresses"}},
		{"out of lease, with a probe under way", func(t *testing.T, n *node, k *Reconciler) {
			attached(t, k, p, n)
			n.set(func() { clear(n.answers) })
			settle(3 * time.Second)
			n.set(func() { n.slow = 500 * time.Millisecond })
			n.answer(p)
			settle(500 * time.Millisecond)
		}, []string{"detach", "yield 2", "close-checks", "remove-rules", "remove-addresses"}},
		{"dry-run", func(t *testing.T, n *node, k *Reconciler) {
			dry := p
			dry.DryRun = true
			n.answer(p)
			if err := k.Prepare(dry, checker{n}); err != nil {
				t.Fatal(err)
			}
			k.Commit()
			settle(time.Second)
		}, []string{"yield 2", "close-checks", "remove-rules", "remove-addresses"}},
		{"a reload waits for its listeners", func(t *testing.T, n *node, k *Reconciler) {
			attached(t, k, p, n)
			n.set(func() { clear(n.answers) })
			prepare(t, n, k)
		}, []string{"close-checks", "install 10.96.0.10 leases=1", "keep 10.96.0.10", "detach", "yield 4", "close-checks", "remove-rules", "remove-addresses"}},
		{"while it stops already", func(t *testing.T, n *node, k *Reconciler) {
			attached(t, k, p, n)
			if err := k.Detach(); err != nil {
				t.Fatal(err)
			}
		}, []string{"close-checks", "remove-rules", "remove-addresses"}},
	} {
		inBubble(t, tc.name, func(t *testing.T, n *node, k *Reconciler) {
			n.others = []string{"10.96.0.10"}
			k.cfg.Yield = func(listen []iptables.Endpoint) error { return n.do("yield %d", len(listen)) }
			tc.begin(t, n, k)
			n.takeLog()
			if err := errors.Join(k.Detach(), k.Close()); err != nil {
				t.Error(err)
			}
			n.expect(t, tc.want...)
			if !k.Released() || k.State() != Detached {
				t.Errorf("released %t, %s", k.Released(), k.State())
			}
		})
	}
}

// What others left goes when nobody has asked for it for a sync: one that starts puts
// its addresses on the node before its rules ask for them.
func TestWhatOthersLeftGoes(t *testing.T) {
	linkLocal := netip.MustParseAddr("169.254.20.10")
	inBubble(t, "left for good", func(t *testing.T, n *node, k *Reconciler) {
		attached(t, k, planFor("10.96.0.10"), n)
		n.set(func() { n.left = []netip.Addr{linkLocal} })
		settle(k.cfg.Sync + time.Second)
		n.expect(t)
		settle(k.cfg.Sync)
		n.expect(t, "clear 169.254.20.10")
		settle(3 * k.cfg.Sync)
		n.expect(t)
	})
	inBubble(t, "asked for soon after", func(t *testing.T, n *node, k *Reconciler) {
		attached(t, k, planFor("10.96.0.10"), n)
		for range 5 {
			n.set(func() { n.left = []netip.Addr{linkLocal} })
			settle(k.cfg.Sync)
			n.set(func() { n.left = nil })
			settle(k.cfg.Sync)
		}
		n.expect(t)
	})
	inBubble(t, "the next configuration asks for it", func(t *testing.T, n *node, k *Reconciler) {
		attached(t, k, planFor("10.96.0.10"), n)
		n.set(func() { n.left = []netip.Addr{linkLocal} })
		if err := k.Prepare(planFor("10.96.0.10", "169.254.20.10"), checker{n}); err != nil {
			t.Fatal(err)
		}
		n.takeLog()
		settle(3 * k.cfg.Sync)
		n.expect(t)
	})
}

// An instance that ends while another one starts does not see yet that this one asks
// for the addresses, and takes them along.
func TestAddressesThatGoDuringAStart(t *testing.T) {
	inBubble(t, "put back", func(t *testing.T, n *node, k *Reconciler) {
		n.set(func() { n.takenAtInstall = []netip.Addr{netip.MustParseAddr("10.96.0.10")} })
		if err := k.Prepare(planFor("10.96.0.10"), checker{n}); err != nil {
			t.Fatal(err)
		}
		n.expect(t, "ensure 10.96.0.10", "reserve 10.96.0.10", "install 10.96.0.10 leases=1", "ensure 10.96.0.10")
	})
}

func TestDrainEndsEarlyAndIsBounded(t *testing.T) {
	// Each row is what was served by the given time after the detach.
	for _, tc := range []struct {
		name   string
		served func(time.Duration) Served
		want   time.Duration
	}{
		{"nothing under way", func(time.Duration) Served { return Served{Arrived: 9, Answered: 9} }, 50 * time.Millisecond},
		{"one answer outstanding for a second", func(d time.Duration) Served {
			if d < time.Second {
				return Served{Arrived: 9, Answered: 8}
			}
			return Served{Arrived: 9, Answered: 9}
		}, time.Second},
		{"an answer that never comes", func(time.Duration) Served { return Served{Arrived: 9, Answered: 8} }, 5 * time.Second},
		{"idle connections", func(time.Duration) Served { return Served{Connections: 3} }, 500 * time.Millisecond},
		{"a connection closed behind its next answer", func(d time.Duration) Served {
			if d < 300*time.Millisecond {
				return Served{Connections: 1}
			}
			return Served{Arrived: 1, Answered: 1, OverTCP: 1}
		}, 300 * time.Millisecond},
		{"idle after a query of another", func(d time.Duration) Served {
			if d < 300*time.Millisecond {
				return Served{Connections: 2}
			}
			return Served{Arrived: 1, Answered: 1, OverTCP: 1, Connections: 1}
		}, 800 * time.Millisecond},
		{"new connections that come all the time", func(d time.Duration) Served {
			n := uint64(d / (100 * time.Millisecond))
			return Served{Arrived: n, Answered: n, OverTCP: n, Connections: 1}
		}, 2 * time.Second},
	} {
		inBubble(t, tc.name, func(t *testing.T, n *node, k *Reconciler) {
			attached(t, k, planFor("10.96.0.10"), n)
			begin := time.Now()
			k.cfg.Served = func([]iptables.Endpoint) Served { return tc.served(time.Since(begin)) }
			if k.Released() {
				t.Error("released while attached")
			}
			if err := k.Detach(); err != nil {
				t.Fatal(err)
			}
			if d := time.Since(begin); d < tc.want || d > tc.want+20*time.Millisecond {
				t.Errorf("drained for %s, want %s", d, tc.want)
			}
			n.expect(t, "detach")
			if k.State() != Draining || !k.Released() {
				t.Errorf("state %s, released %t", k.State(), k.Released())
			}
		})
	}
	inBubble(t, "what never comes is not waited for twice", func(t *testing.T, n *node, k *Reconciler) {
		attached(t, k, planFor("10.96.0.10"), n)
		k.cfg.Served = func([]iptables.Endpoint) Served { return Served{Arrived: 9, Answered: 8} }
		begin := time.Now()
		if err := errors.Join(k.Detach(), k.Detach()); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(begin); d > 6*time.Second {
			t.Errorf("drained for %s", d)
		}
	})
}

func TestReload(t *testing.T) {
	old, next := planFor("10.96.0.10"), planFor("10.96.0.10", "169.254.20.10")

	inBubble(t, "to more addresses", func(t *testing.T, n *node, k *Reconciler) {
		attached(t, k, old, n)
		if err := k.Prepare(next, checker{n}); err != nil {
			t.Fatal(err)
		}
		if !k.Covers(clusterIP) {
			t.Error("what was attached must stay so during a reload")
		}
		k.Commit()
		n.answer(next)
		settle(2 * attachInterval)
		n.expect(t, "ensure 10.96.0.10 169.254.20.10", "reserve 10.96.0.10 169.254.20.10",
			"install 10.96.0.10 169.254.20.10 leases=3",
			"install 10.96.0.10 169.254.20.10 leases=2", "close-checks", "keep 10.96.0.10 169.254.20.10")
	})
	inBubble(t, "to other addresses: the old ones go last", func(t *testing.T, n *node, k *Reconciler) {
		attached(t, k, old, n)
		other := planFor("169.254.20.10")
		if err := k.Prepare(other, checker{n}); err != nil {
			t.Fatal(err)
		}
		n.expect(t, "ensure 169.254.20.10", "reserve 169.254.20.10", "install 10.96.0.10 169.254.20.10 leases=2")
		k.Commit()
		n.answer(other)
		settle(2 * attachInterval)
		n.expect(t, "install 169.254.20.10 leases=1", "close-checks", "keep 169.254.20.10")
	})
	inBubble(t, "whose listeners cannot be opened", func(t *testing.T, n *node, k *Reconciler) {
		attached(t, k, old, n)
		if err := k.Prepare(next, checker{n}); err != nil {
			t.Fatal(err)
		}
		n.takeLog()
		if err := errors.Join(k.Rollback(), k.Rollback()); err != nil {
			t.Fatal(err)
		}
		n.expect(t, "close-checks", "install 10.96.0.10 leases=1", "keep 10.96.0.10")
		if k.State() != Attached {
			t.Errorf("state %s", k.State())
		}
	})
	inBubble(t, "rolled back while its listeners are awaited", func(t *testing.T, n *node, k *Reconciler) {
		attached(t, k, old, n)
		if err := k.Prepare(next, checker{n}); err != nil {
			t.Fatal(err)
		}
		k.Commit()
		settle(time.Second)
		if err := k.Rollback(); err != nil {
			t.Fatal(err)
		}
		n.answer(next)
		settle(time.Minute)
		if k.Covers(linkLocal) || !k.Covers(clusterIP) {
			t.Error("a change that was rolled back was committed")
		}
	})
	inBubble(t, "to another interface is refused", func(t *testing.T, n *node, k *Reconciler) {
		attached(t, k, old, n)
		moved := old
		moved.Link = "dns0"
		err := k.Prepare(moved, checker{n})
		if err == nil || !strings.Contains(err.Error(), "restart") {
			t.Errorf("error %v", err)
		}
		n.expect(t)
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

func TestCoversAllocatesNothing(t *testing.T) {
	inBubble(t, "", func(t *testing.T, n *node, k *Reconciler) {
		attached(t, k, planFor("10.96.0.10", "fd00::a"), n)
		a := netip.MustParseAddr("fd00::a")
		if got := testing.AllocsPerRun(100, func() { k.Covers(a) }); got != 0 {
			t.Errorf("%v allocations", got)
		}
	})
}
