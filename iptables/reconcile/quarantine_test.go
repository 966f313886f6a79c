package reconcile

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/reconcile/lease"
)

// busyRound is the time between two rounds while many queries come.
const busyRound = 200 * time.Millisecond

// lossy is a backend whose devices lose their queries as told.
type lossy struct {
	backend
	lost  []string
	aside []string
	asked int // for the lost ones
}

func (l *lossy) Capabilities() (iptables.Capabilities, error) {
	return iptables.Capabilities{Devices: l}, nil
}

func (l *lossy) Lost(after time.Time) ([]string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked++
	if !after.Before(time.Now()) {
		return nil, nil // a query is lost every now and then, and none was since
	}
	return l.lost, nil
}

// looked is how often somebody asked for devices that lose their queries.
func (l *lossy) looked() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.asked
}

func (l *lossy) Quarantine(device string, d time.Duration) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.aside = append(l.aside, fmt.Sprintf("%s for %s", device, d))
	return nil
}

// newLossy returns an attached keeper, and what lets devices lose their queries
// and looks at what was done about it since.
func newLossy(t *testing.T) (l *lossy, k *Reconciler, lose, expect func(...string)) {
	t.Helper()
	n, k := newNode()
	l = &lossy{backend: backend{n}}
	k.cfg.Backend = l
	k.cfg.Reset = func(listen []iptables.Endpoint, devices []string) error {
		n.set(func() { l.aside = append(l.aside, fmt.Sprintf("reset %v at %s", devices, listen[0].Addr)) })
		return nil
	}
	attached(t, k, planFor("10.96.0.10"), n)
	lose = func(devices ...string) { n.set(func() { l.lost = devices }) }
	expect = func(want ...string) {
		t.Helper()
		var got []string
		n.set(func() { got, l.aside = l.aside, nil })
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("set aside (-want +got):\n%s", diff)
		}
	}
	return l, k, lose, expect
}

func TestDeviceIsSetAside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, k, lose, expect := newLossy(t)
		for _, once := range []string{"veth1", "veth2"} {
			lose(once)
			for before := n.looked(); n.looked() == before; {
				settle(time.Millisecond)
			}
			lose()
			settle(3 * busyRound)
		}
		expect()

		lose("veth1")
		block := func(blocked map[netip.Addr]error) {
			k.leases.Tell(func(m *lease.Machine) { m.PathChecked(time.Now(), blocked, false) })
		}
		block(map[netip.Addr]error{netip.MustParseAddr("10.96.0.10"): errors.New("a chain drops")})
		settle(3 * busyRound)
		expect() // it is known why, and the lease runs out
		block(nil)

		lose()
		settle(3 * busyRound)
		lose("veth1", "veth3")
		settle(3 * busyRound)
		expect("veth1 for 1m0s", "veth3 for 1m0s", "reset [veth1 veth3] at 10.96.0.10")
		if reason := k.Standing().Reason; reason == nil || !strings.Contains(reason.Error(), "queries from veth1 veth3 do not reach our listeners") {
			t.Errorf("reason %v", reason)
		}
		if !strings.Contains(n.logs(), "device veth1: its untracked queries do not reach our listeners") {
			t.Errorf("log %s", n.logs())
		}
		lose()
		settle(quarantineWait)
		if reason := k.Standing().Reason; reason != nil {
			t.Errorf("reason %v", reason)
		}
		lose("veth1") // tried again, and lost again
		settle(3 * busyRound)
		expect("veth1 for 2m0s", "reset [veth1] at 10.96.0.10")
		lose()
		settle(10 * time.Minute) // long well
		lose("veth1")
		settle(3 * busyRound)
		expect("veth1 for 1m0s", "reset [veth1] at 10.96.0.10")
	})
}

// What drops the queries may be a rule that came just now, and beside which ours
// is about to be put.
func TestDeviceIsNotSetAsideWhileTheWayIsMade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, k, lose, expect := newLossy(t)
		cleared := 0 // times that something passes anew
		var blocked map[netip.Addr]error
		k.mu.Lock()
		k.cfg.Kernel.Unblock = func(iptables.Rules) (b map[netip.Addr]error, anew bool) {
			n.set(func() { b, anew, cleared = blocked, cleared > 0, max(cleared-1, 0) })
			return b, anew
		}
		k.mu.Unlock()
		n.set(func() { cleared = 1 })
		lose("veth1")
		settle(busyRound) // what was lost before tells nothing
		expect()
		n.set(func() {
			if cleared != 0 {
				t.Error("the way was not looked at")
			}
		})
		settle(3 * busyRound) // that was not it
		expect("veth1 for 1m0s", "reset [veth1] at 10.96.0.10")
		lose()
		settle(deviceInterval)

		n.set(func() { blocked = map[netip.Addr]error{clusterIP: errors.New("a chain drops")} })
		lose("veth2")
		settle(3 * busyRound)
		expect("reset [] at 10.96.0.10") // all of them, with the lease
		if k.Covers(clusterIP) || !strings.Contains(n.logs(), "10.96.0.10: detached, DNS goes to the cluster: a chain drops") {
			t.Errorf("covered: %v, log %s", k.Status(), n.logs())
		}
	})
}

func TestDevicesAreLookedAtLessUnderALimit(t *testing.T) {
	inBubble(t, "and a device that loses its queries is set aside in time", func(t *testing.T, n *node, k *Reconciler) {
		b, l := &lossy{backend: backend{n}}, underLimit(k)
		k.cfg.Backend = b
		attached(t, k, planFor("10.96.0.10"), n)
		asked := func() (looks int) {
			settle(10 * time.Second)
			n.set(func() { looks, b.asked = b.asked, 0 })
			return looks
		}
		asked()
		if got := asked(); got < 45 {
			t.Errorf("%d looks in 10 s", got)
		}
		l.set(second{throttled: time.Second, arrived: 100})
		settle(time.Second)
		asked()
		if got := asked(); got < 8 || got > 12 {
			t.Errorf("%d looks in 10 s under a limit, want 10", got)
		}
		n.set(func() { b.lost = []string{"veth1"} })
		settle(1500 * time.Millisecond)
		n.set(func() {
			if len(b.aside) != 1 || b.aside[0] != "veth1 for 1m0s" {
				t.Errorf("set aside: %q", b.aside)
			}
		})
	})
}

// TestQuarantine plays checks to what remembers them: which devices lost their
// queries at a time, and which are to be quarantined then.
func TestQuarantine(t *testing.T) {
	type check struct {
		after     time.Duration // the check before
		lost, due string
		wait      time.Duration // of those due
	}
	const s, m = time.Second, time.Minute
	for _, tc := range []struct {
		name   string
		checks []check
	}{
		{"once is a suspicion", []check{{s, "a", "", 0}, {s, "", "", 0}, {s, "a", "", 0}}},
		{"twice is a loss", []check{{s, "a", "", 0}, {s, "a", "a", m}}},
		{"each device for itself", []check{{s, "a", "", 0}, {s, "a b", "a", m}, {s, "b", "b", m}}},
		{"not while it is quarantined", []check{{s, "a", "", 0}, {s, "a", "a", m}, {s, "a", "", 0}, {s, "a", "", 0}}},
		{"twice as long soon after", []check{{s, "a", "", 0}, {s, "a", "a", m}, {m + s, "a", "a", 2 * m}, {2*m + s, "a", "a", 4 * m}}},
		{"up to a limit", []check{{s, "a", "", 0}, {s, "a", "a", m}, {m, "a", "a", 2 * m}, {2 * m, "a", "a", 4 * m}, {4 * m, "a", "a", 8 * m}, {8 * m, "a", "a", 16 * m}, {16 * m, "a", "a", 16 * m}}},
		{"as at first when it was well for as long", []check{{s, "a", "", 0}, {s, "a", "a", m}, {2 * m, "a", "a", m}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			q, now := newQuarantine(), time.Unix(1_000_000, 0)
			for i, c := range tc.checks {
				now = now.Add(c.after)
				due := q.checked(now, strings.Fields(c.lost))
				if got := strings.Join(due, " "); got != c.due {
					t.Fatalf("check %d: %q are to be quarantined, want %q", i+1, got, c.due)
				}
				for _, d := range due {
					wait := q.next(now, d)
					if wait != c.wait {
						t.Fatalf("check %d: %s for %s, want %s", i+1, d, wait, c.wait)
					}
					q.add(now, d, wait)
				}
				if len(due) > 0 && (len(q.devices(now.Add(c.wait-1))) == 0 || len(q.devices(now.Add(c.wait))) > 0) {
					t.Errorf("check %d: not quarantined for %s", i+1, c.wait)
				}
			}
		})
	}
}
