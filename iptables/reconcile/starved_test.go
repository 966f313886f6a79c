package reconcile

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/iptables/reconcile/lease"
)

// A process that others keep from running answers late, and is not to lose its leases
// by its own clock.
func TestStarved(t *testing.T) {
	two := planFor("10.96.0.10", "169.254.20.10")
	for _, tc := range []struct {
		name    string
		late    time.Duration // each pulse of a round
		lapses  uint64
		renewed bool // meanwhile
	}{
		{"punctual, leases wait for checks that take long", 0, 2, false},
		{"late, they do not", lease.Pulse, 0, true},
	} {
		inBubble(t, tc.name, func(t *testing.T, n *node, k *Reconciler) {
			k.pulse = func(time.Duration) time.Duration { return tc.late }
			attached(t, k, two, n)
			n.set(func() { n.slowCheck = 3 * time.Second })
			before := n.renewals(clusterIP)
			settle(2500 * time.Millisecond)
			if got := n.renewals(clusterIP) - before; got > 2 != tc.renewed {
				t.Errorf("%d renewals while the checks are under way", got)
			}
			settle(12 * time.Second) // until two such rounds are over
			if got := k.Stats().Lapses; got != tc.lapses {
				t.Errorf("%d lapses, want %d: %s", got, tc.lapses, n.logs())
			}
		})
	}
	inBubble(t, "a check that says nothing changes nothing", func(t *testing.T, n *node, k *Reconciler) {
		attached(t, k, two, n)
		n.set(func() { n.fail["check"] = fmt.Errorf("%w: it ran for a moment", ErrStarved) })
		settle(5 * time.Second)
		if got := k.Stats().Lapses; got != 0 {
			t.Errorf("%d lapses: %s", got, n.logs())
		}
		settle(5 * time.Second)
		if k.State() != Detached {
			t.Error("still attached after checks that said nothing for ten seconds")
		}
		n.set(func() { delete(n.fail, "check") })
		settle(time.Minute)
		if k.State() != Attached {
			t.Errorf("%s once the checks are answered", k.State())
		}
		n.set(func() { clear(n.answers) })
		settle(2 * time.Second)
		if k.State() != Detached {
			t.Error("a hang was not found after it")
		}
	})
	inBubble(t, "an address does not wait for the probe to another", func(t *testing.T, n *node, k *Reconciler) {
		k.pulse = func(time.Duration) time.Duration { return lease.Pulse }
		attached(t, k, two, n)
		n.set(func() { n.slow, n.slowTo = 3*time.Second, linkLocal })
		before := n.renewals(clusterIP)
		settle(2500 * time.Millisecond)
		if got := n.renewals(clusterIP) - before; got < 8 {
			t.Errorf("%d renewals while the other address is probed", got)
		}
	})
}

func TestAnEpisodeIsOneLine(t *testing.T) {
	two := planFor("10.96.0.10", "169.254.20.10")
	inBubble(t, "of addresses that lapse one after the other", func(t *testing.T, n *node, k *Reconciler) {
		attached(t, k, two, n)
		silence := func(a netip.Addr) {
			n.set(func() {
				for e := range n.answers {
					if e.Addr == a {
						delete(n.answers, e)
					}
				}
			})
		}
		n.set(func() { n.told = nil })
		silence(clusterIP)
		settle(400 * time.Millisecond)
		silence(linkLocal)
		settle(1100 * time.Millisecond)
		n.answer(two)
		settle(3 * time.Second)
		if got := n.logs(); strings.Count(got, "the lease ran out") != 1 || strings.Contains(got, "\n") {
			t.Errorf("warned with %q, want one line", got)
		}
		var got string
		n.set(func() { got = strings.Join(n.told, "\n") })
		if want := "10.96.0.10 169.254.20.10: attached again, after "; strings.Count(got, "attached again") != 1 || !strings.Contains(got, want) || !strings.Contains(got, "ran out 2 times") {
			t.Errorf("told %q, want one line with %q", got, want)
		}
	})
}
