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
	// deviceInterval is the time between two checks of the devices while some lose
	// their queries: one to suspect, one to confirm.
	deviceInterval = 100 * time.Millisecond

	// seldomInterval is the least time between two looks at the devices while no query
	// comes, or a CPU limit is used up.
	seldomInterval = time.Second

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

// firstEnd is when the next of those quarantined is not any more; zero if none is.
func (q *quarantine) firstEnd(now time.Time) (first time.Time) {
	for _, until := range q.until {
		if now.Before(until) && (first.IsZero() || until.Before(first)) {
			first = until
		}
	}
	return first
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

// deviceWatch is what the rounds and the goroutine that watches devices share.
type deviceWatch struct {
	devices iptables.Devices // nil: the backend does not see them
	lost    chan struct{}    // some seem to lose their queries
	peeked  time.Time
}

func (s *serving) newDeviceWatch(b iptables.Devices) *deviceWatch {
	w := &deviceWatch{devices: b, lost: make(chan struct{}, 1)}
	if s.plan.DryRun {
		w.devices = nil
	}
	return w
}

// peek is called in each round, and told whether the node is idle: it costs next to
// nothing while no queries are lost. Checks read sets of the kernel, for which a CPU limit
// leaves no time.
func (w *deviceWatch) peek(s *serving, now time.Time, idle bool) {
	if w.devices == nil || (idle || s.r.load.throttled()) && now.Sub(w.peeked) < seldomInterval {
		return
	}
	w.peeked = now
	if lost, err := s.lostDevices(w.devices); err == nil && len(lost) > 0 {
		select {
		case w.lost <- struct{}{}:
		default: // it is known
		}
	}
}

// watch checks the devices as long as some lose their queries, until the context ends.
func (w *deviceWatch) watch(ctx context.Context, s *serving) {
	if w.devices == nil {
		return
	}
	q := newQuarantine()
	end := time.NewTimer(0) // of a quarantine
	defer end.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-end.C:
			s.tellQuarantine(q)
		case <-w.lost:
			for checks := 1; s.checkDevices(ctx, w.devices, q) && (checks < 2 || !s.r.load.throttled()); checks++ {
				if !sleep(ctx, deviceInterval) {
					return
				}
			}
		}
		if until := q.firstEnd(time.Now()); !until.IsZero() {
			end.Reset(time.Until(until))
		}
	}
}

// sleep lets a time pass, and reports whether the context goes on.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// checkDevices quarantines those whose queries in two checks did not arrive, and
// reports whether any are lost. What the chains are read to do may be wrong, or
// nothing that can be read: this is what becomes of the packets. Whoever forbids a
// single pod to ask forbids it kube-dns as well, so that it is nobody's loss.
func (s *serving) checkDevices(ctx context.Context, b iptables.Devices, q *quarantine) bool {
	lost, err := s.lostDevices(b)
	if err != nil || ctx.Err() != nil {
		return false
	}
	if q.unknown(lost) {
		// What drops them may be something that we can do something about, and
		// are about to.
		s.checkPathOf(ctx)
		if lost, err = s.lostDevices(b); err != nil {
			return false
		}
	}
	s.quarantine(b, q, q.checked(time.Now(), lost))
	s.tellQuarantine(q)
	return len(lost) > 0
}

// lostDevices returns the devices that lose their queries, none where it is known why.
func (s *serving) lostDevices(b iptables.Devices) (lost []string, err error) {
	var blocked bool
	var cleared time.Time
	s.r.leases.Tell(func(m *lease.Machine) { blocked, cleared = len(m.Blocked(s.plan)) > 0, m.PathCleared() })
	if blocked {
		return nil, nil
	}
	return b.Lost(cleared)
}

// tellQuarantine says which devices are quarantined now.
func (s *serving) tellQuarantine(q *quarantine) {
	var why error
	if devices := q.devices(time.Now()); len(devices) > 0 {
		why = fmt.Errorf("queries from %s do not reach our listeners, because rules of other programs drop or track them; the cluster's DNS answers them", strings.Join(devices, " "))
	}
	s.r.leases.Tell(func(m *lease.Machine) { m.Quarantined(why) })
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
