package iptables

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// DeviceBackend is a backend that sees which devices lose their queries on the way from
// the rules to the listeners, and can leave these to the cluster's DNS.
type DeviceBackend interface {
	// Lost returns the devices from which queries were untracked a moment ago,
	// of which none arrived.
	Lost() ([]string, error)
	// SetAside leaves the queries that a device brings tracked for a time.
	SetAside(device string, d time.Duration) error
}

const (
	// deviceInterval is the time between two looks at the devices.
	deviceInterval = 200 * time.Millisecond

	// asideWait is how long a device is set aside at first. Its queries are
	// lost for up to 1.5 s each time that it is tried again.
	asideWait    = time.Minute
	asideMaxWait = 16 * time.Minute
)

// asides remembers which devices lost their queries.
type asides struct {
	suspect []string // of the last look
	wait    map[string]time.Duration
	until   map[string]time.Time
}

// lookAtDevices sets those aside whose queries twice did not arrive. What the
// chains are read to do may be wrong, or nothing that can be read: this is what
// becomes of the packets. Whoever forbids a single pod to ask forbids it kube-dns
// as well, so that it is nobody's loss.
func (k *Keeper) lookAtDevices(ctx context.Context, w *watch, s DeviceBackend, a *asides) {
	lost, err := s.Lost()
	if err != nil || ctx.Err() != nil {
		return
	}
	if len(k.blockedOf(w.plan)) > 0 {
		lost = nil // known, and about to end
	}
	confirmed := slices.DeleteFunc(slices.Clone(lost), func(d string) bool { return !slices.Contains(a.suspect, d) })
	a.suspect = lost
	now := time.Now()
	for _, d := range confirmed {
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
		why := ""
		if addrs := w.plan.Addresses(); k.cfg.Kernel.Explain != nil && len(addrs) > 0 {
			if why = k.cfg.Kernel.Explain(addrs[0]); why != "" {
				why = "; " + why
			}
		}
		k.cfg.Log.Warningf("queries from %s are untracked and dropped before they arrive here: they go to the cluster's DNS for %s%s", d, wait, why)
	}
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
		k.aside = fmt.Errorf("queries from %s are dropped before they arrive here and go to the cluster's DNS", strings.Join(aside, " "))
	}
}

// watchDevices looks at the devices until the context ends, if the backend can.
func (k *Keeper) watchDevices(ctx context.Context, w *watch) {
	s, can := w.backend.(DeviceBackend)
	if !can || w.plan.DryRun {
		return
	}
	a := &asides{wait: map[string]time.Duration{}, until: map[string]time.Time{}}
	every(ctx, deviceInterval, nil, func(Change) { k.lookAtDevices(ctx, w, s, a) })
}
