package iptables

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// lossy is a backend whose devices lose their queries as told.
type lossy struct {
	backend
	lost  []string
	aside []string
}

func (l *lossy) Lost() ([]string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lost, nil
}

func (l *lossy) SetAside(device string, d time.Duration) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.aside = append(l.aside, fmt.Sprintf("%s for %s", device, d))
	return nil
}

func TestDeviceIsSetAside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, k := newNode()
		l := &lossy{backend: backend{n}}
		k.cfg.Backend = l
		attached(t, k, planFor("10.96.0.10"), n)
		lose := func(devices ...string) { n.set(func() { l.lost = devices }) }
		expect := func(want ...string) {
			t.Helper()
			var got []string
			n.set(func() { got, l.aside = l.aside, nil })
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("set aside (-want +got):\n%s", diff)
			}
		}
		lose("veth1")
		settle(deviceInterval)
		lose("veth2") // another one, once each
		settle(deviceInterval)
		lose()
		settle(3 * deviceInterval)
		expect()

		n.set(func() { l.lost = []string{"veth1"} })
		k.facts.Lock()
		k.blocked = map[netip.Addr]error{netip.MustParseAddr("10.96.0.10"): errors.New("a chain drops")}
		k.facts.Unlock()
		settle(3 * deviceInterval)
		expect() // it is known why, and the lease runs out
		k.facts.Lock()
		k.blocked = nil
		k.facts.Unlock()

		lose("veth1")
		settle(3 * deviceInterval)
		expect("veth1 for 1m0s")
		if reason := k.Standing().Reason; reason == nil || !strings.Contains(reason.Error(), "queries from veth1 are dropped") {
			t.Errorf("reason %v", reason)
		}
		if !strings.Contains(n.logs(), "queries from veth1 are untracked and dropped") {
			t.Errorf("log %s", n.logs())
		}
		lose()
		settle(asideWait)
		if reason := k.Standing().Reason; reason != nil {
			t.Errorf("reason %v", reason)
		}
		lose("veth1") // tried again, and lost again
		settle(3 * deviceInterval)
		expect("veth1 for 2m0s")
		lose()
		settle(10 * time.Minute) // long well
		lose("veth1")
		settle(3 * deviceInterval)
		expect("veth1 for 1m0s")
	})
}
