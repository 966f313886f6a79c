package reconcile

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/trackless-dns/trackless/iptables"
)

const (
	// deviceInterval is the time between two looks at the devices. What the
	// looks compare lives for a few of them, see package nftables.
	deviceInterval = 100 * time.Millisecond

	// throttledLooks is of how many intervals two have a look while a CPU limit is used
	// up: one to suspect, one to confirm.
	throttledLooks = 10

	// asideWait is how long a device is set aside at first. Its queries are
	// lost for less than a second each time that it is tried again.
	asideWait    = time.Minute
	asideMaxWait = 16 * time.Minute
)

// asides remembers which devices lost their queries.
type asides struct {
	suspect []string // of the last look
	wait    map[string]time.Duration
	until   map[string]time.Time
}

// lookAtDevices sets those aside whose queries in two looks did not arrive. What
// the chains are read to do may be wrong, or nothing that can be read: this is
// what becomes of the packets. Whoever forbids a single pod to ask forbids it
// kube-dns as well, so that it is nobody's loss.
func (k *Reconciler) lookAtDevices(ctx context.Context, w *watch, s iptables.DeviceBackend, a *asides) {
	lost, err := s.Lost()
	if err != nil || ctx.Err() != nil {
		return
	}
	isNew := func(d string) bool { return !slices.Contains(a.suspect, d) }
	if slices.ContainsFunc(lost, isNew) && !k.wayIsNew(w.plan) {
		// What drops them may be something that we can do something about, and
		// are about to.
		k.lookAtWayOf(ctx, w)
	}
	if k.wayIsNew(w.plan) {
		lost = nil
	}
	confirmed := slices.DeleteFunc(slices.Clone(lost), isNew)
	a.suspect = lost
	k.setAside(w, s, a, confirmed)
	k.noteAside(a)
}

// wayIsNew reports whether that queries are lost is about to end: the reason is
// known, or was a moment ago.
func (k *Reconciler) wayIsNew(p iptables.Plan) bool {
	if len(k.blockedOf(p)) > 0 {
		return true
	}
	k.facts.Lock()
	defer k.facts.Unlock()
	return time.Since(k.cleared) < iptables.LostFor
}

// setAside gives the queries of the devices back to the cluster.
func (k *Reconciler) setAside(w *watch, s iptables.DeviceBackend, a *asides, devices []string) {
	now := time.Now()
	var done []string
	for _, d := range devices {
		if now.Before(a.until[d]) {
			continue
		}
		wait := asideWait
		if last := a.wait[d]; last > 0 && now.Sub(a.until[d]) < last {
			wait = min(2*last, asideMaxWait)
		}
		if err := s.SetAside(d, wait); err != nil {
			k.cfg.Log.Warningf("leave the queries of %s to the cluster: %v", d, err)
			continue
		}
		a.wait[d], a.until[d] = wait, now.Add(wait)
		done = append(done, d)
	}
	if len(done) == 0 {
		return
	}
	if err := k.reset(w.plan.Listen, done); err != nil {
		k.cfg.Log.Warningf("end the connections of clients behind %s: %v", strings.Join(done, " "), err)
	}
	// Last, since it reads all rules of the host.
	why := ""
	if addrs := w.plan.Addresses(); k.cfg.Kernel.Explain != nil && len(addrs) > 0 {
		if why = k.cfg.Kernel.Explain(addrs[0]); why != "" {
			why = "; " + why
		}
	}
	for _, d := range done {
		k.cfg.Log.Warningf("queries from %s are untracked and do not arrive here, dropped or tracked again by rules of others: they go to the cluster's DNS for %s%s", d, a.wait[d], why)
	}
}

// noteAside shows readers which devices are set aside at the moment.
func (k *Reconciler) noteAside(a *asides) {
	now := time.Now()
	var aside []string
	for d, until := range a.until {
		if now.Before(until) {
			aside = append(aside, d)
		}
	}
	slices.Sort(aside)
	k.facts.Lock()
	defer k.facts.Unlock()
	k.aside = nil
	if len(aside) > 0 {
		k.aside = fmt.Errorf("queries from %s do not arrive here, dropped or tracked again by rules of others, and go to the cluster's DNS", strings.Join(aside, " "))
	}
}

// watchDevices looks at the devices until the context ends, if the backend can.
func (k *Reconciler) watchDevices(ctx context.Context, w *watch) {
	s, can := w.backend.(iptables.DeviceBackend)
	if !can || w.plan.DryRun {
		return
	}
	a := &asides{wait: map[string]time.Duration{}, until: map[string]time.Time{}}
	n := 0
	every(ctx, deviceInterval, nil, func(iptables.Change) {
		// Looks read sets of the kernel, for which a CPU limit leaves no time.
		if n++; n%throttledLooks < 2 || !k.throttled() {
			k.lookAtDevices(ctx, w, s, a)
		}
	})
}
