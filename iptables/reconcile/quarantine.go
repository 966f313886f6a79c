package reconcile

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/reconcile/lease"
)

const (
	// deviceInterval is the time between two checks of the devices. What the
	// checks compare lives for a few of them, see package nftables.
	deviceInterval = 100 * time.Millisecond

	// throttledChecks is of how many intervals two have a check while a CPU limit is
	// used up: one to suspect, one to confirm.
	throttledChecks = 10

	// quarantineWait is how long a device is quarantined at first. Its queries are
	// lost for less than a second each time that it is tried again.
	quarantineWait    = time.Minute
	quarantineMaxWait = 16 * time.Minute
)

// quarantine remembers which devices lost their queries, and for how long these are
// left to the cluster's DNS. It does nothing itself.
type quarantine struct {
	suspect []string // of the last check
	wait    map[string]time.Duration
	until   map[string]time.Time
}

func newQuarantine() *quarantine {
	return &quarantine{wait: map[string]time.Duration{}, until: map[string]time.Time{}}
}

// unknown reports whether a device is among the lost ones that was not suspected.
func (q *quarantine) unknown(lost []string) bool {
	return slices.ContainsFunc(lost, func(d string) bool { return !slices.Contains(q.suspect, d) })
}

// checked notes which devices lost their queries. Those that did so in two checks, and
// are not quarantined, are due to be.
func (q *quarantine) checked(now time.Time, lost []string) (due []string) {
	for _, d := range lost {
		if slices.Contains(q.suspect, d) && !now.Before(q.until[d]) {
			due = append(due, d)
		}
	}
	q.suspect = lost
	return due
}

// next is for how long a device is to be quarantined now: twice as long each time
// that it is soon after the last.
func (q *quarantine) next(now time.Time, device string) time.Duration {
	if last := q.wait[device]; last > 0 && now.Sub(q.until[device]) < last {
		return min(2*last, quarantineMaxWait)
	}
	return quarantineWait
}

// add notes that a device is quarantined from now on.
func (q *quarantine) add(now time.Time, device string, wait time.Duration) {
	q.wait[device], q.until[device] = wait, now.Add(wait)
}

// devices are those quarantined at the moment, in order.
func (q *quarantine) devices(now time.Time) (devices []string) {
	for d, until := range q.until {
		if now.Before(until) {
			devices = append(devices, d)
		}
	}
	slices.Sort(devices)
	return devices
}

// watchDevices checks the devices until the context ends, if the backend sees them.
func (s *serving) watchDevices(ctx context.Context) {
	can, _ := s.backend.Capabilities() // Devices takes no probe
	if can.Devices == nil || s.plan.DryRun {
		return
	}
	q := newQuarantine()
	n := 0
	every(ctx, deviceInterval, nil, func(iptables.Change) {
		// Checks read sets of the kernel, for which a CPU limit leaves no time.
		if n++; n%throttledChecks < 2 || !s.r.load.throttled() {
			s.checkDevices(ctx, can.Devices, q)
		}
	})
}

// checkDevices quarantines those whose queries in two checks did not arrive. What
// the chains are read to do may be wrong, or nothing that can be read: this is
// what becomes of the packets. Whoever forbids a single pod to ask forbids it
// kube-dns as well, so that it is nobody's loss.
func (s *serving) checkDevices(ctx context.Context, b iptables.Devices, q *quarantine) {
	lost, err := b.Lost()
	if err != nil || ctx.Err() != nil {
		return
	}
	if q.unknown(lost) && !s.r.pathIsNew(s.plan) {
		// What drops them may be something that we can do something about, and
		// are about to.
		s.checkPathOf(ctx)
	}
	if s.r.pathIsNew(s.plan) {
		lost = nil
	}
	s.quarantine(b, q, q.checked(time.Now(), lost))
	var why error
	if devices := q.devices(time.Now()); len(devices) > 0 {
		why = fmt.Errorf("queries from %s do not reach our listeners, because rules of other programs drop or track them; the cluster's DNS answers them", strings.Join(devices, " "))
	}
	s.r.leases.tell(func(m *lease.Machine) { m.Quarantined(why) })
}

// pathIsNew reports whether that queries are lost is about to end: the reason is
// known, or was a moment ago.
func (r *Reconciler) pathIsNew(p iptables.Plan) bool {
	return asked(&r.leases, func(m *lease.Machine) bool { return m.PathIsNew(time.Now(), p, iptables.LostFor) })
}

// quarantine leaves the queries of the devices to the cluster's DNS.
func (s *serving) quarantine(b iptables.Devices, q *quarantine, devices []string) {
	var done []string
	for _, d := range devices {
		now := time.Now()
		wait := q.next(now, d)
		if err := b.Quarantine(d, wait); err != nil {
			s.r.cfg.Log.Warningf("leave the queries of %s to the cluster: %v", d, err)
			continue
		}
		q.add(now, d, wait)
		done = append(done, d)
	}
	if len(done) == 0 {
		return
	}
	if err := s.r.cfg.Reset(s.plan.Listen, done); err != nil {
		s.r.cfg.Log.Warningf("end the connections of clients behind %s: %v", strings.Join(done, " "), err)
	}
	// Last, since it reads all rules of the host.
	why := s.r.cfg.Kernel.Explain(s.plan.Listen[0].Addr)
	if why != "" {
		why = "; " + why
	}
	for _, d := range done {
		s.r.cfg.Log.Warningf("device %s: its untracked queries do not reach our listeners, because rules of other programs drop or track them. The cluster's DNS answers them for %s%s", d, q.wait[d], why)
	}
}
