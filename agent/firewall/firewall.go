// Package firewall is about other programs' rules that keep untracked DNS from us or
// have it tracked: chains of the host that drop it, and rules and programs that meet
// it before ours do. Where it may it lets DNS pass, and names the others.
package firewall

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/agent/devices"
	"github.com/trackless-dns/trackless/internal/logger"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/binaries"
	"github.com/trackless-dns/trackless/iptables/hostrules"
	"github.com/trackless-dns/trackless/iptables/legacy"
	"github.com/trackless-dns/trackless/iptables/predecessor"
)

// An Opener lets untracked DNS pass the filter chains of the host. It is used by
// one goroutine at a time.
type Opener struct {
	Log logger.Logger

	seen    chainFacts
	blocked map[netip.Addr]error
	added   []time.Time // when rules were put in place
	failure string      // said last
}

// chainFacts are what the verdict depends on. Legacy tables change without a sign.
type chainFacts struct {
	generation uint32
	legacy     bool
	devices    []hostrules.Device
	rules      iptables.Rules
}

// Open implements [reconcile.Kernel.MakeWay]. To what the filter chains of others drop
// it adds what a predecessor left and cannot be taken away: to say that queries can
// be given back would not be true.
func (m *Opener) Open(r iptables.Rules) (map[netip.Addr]error, bool) {
	out := map[netip.Addr]error{}
	blocked, cleared := m.openChains(r)
	maps.Copy(out, blocked)
	fixed, err := predecessor.FixedByNodeCache(predecessor.Config{}, r.Plan.Addresses())
	if err != nil {
		m.Log.Debugf("what NodeLocal DNSCache left: %v", err)
	}
	maps.Copy(out, fixed)
	return out, cleared
}

// openChains returns by address what still drops untracked DNS, and whether accept
// rules were added.
func (m *Opener) openChains(r iptables.Rules) (blocked map[netip.Addr]error, cleared bool) {
	facts, err := readChainFacts(r)
	if err == nil && !facts.legacy && reflect.DeepEqual(facts, m.seen) {
		return m.blocked, false
	}
	var left []hostrules.Obstacle
	var refused error
	if err == nil {
		left, cleared, refused, err = m.clear(&facts)
	}
	if err != nil {
		// What cannot be read may let everything pass; the checks and the
		// packet counts tell.
		if m.failure != err.Error() {
			m.Log.Warningf("whether the host's filter rules drop untracked DNS could not be found out: %v", err)
		}
		m.failure = err.Error()
		return m.blocked, cleared
	}
	m.failure, m.blocked = "", map[netip.Addr]error{}
	for _, o := range left {
		if m.blocked[o.Endpoint.Addr] == nil {
			m.blocked[o.Endpoint.Addr] = obstacleError(o, refused)
		}
	}
	m.seen = facts
	if refused != nil {
		m.seen = chainFacts{} // to be tried again
	}
	return m.blocked, cleared
}

// obstacleError names what is in the way and what can be done.
func obstacleError(o hostrules.Obstacle, refused error) error {
	if o.Amendable() && refused != nil {
		return fmt.Errorf("%s; no rule of ours could be added: %w; let it pass with `%s`", o, refused, o.Remedy())
	}
	if o.Owned {
		return fmt.Errorf("%s; the table belongs to a process that alone can change it (`nft list ruleset` names it): have that process add what `%s` would, and likewise for the other endpoints, protocols and directions", o, o.Remedy())
	}
	return fmt.Errorf("%s; that chain is not ours to change: let it pass with `%s`, and likewise the other endpoints, protocols and directions", o, o.Remedy())
}

// clear adds the rules that DNS needs to pass and returns what is in the way still,
// whether rules were added, and why one could not be. Somebody may change his rules meanwhile, as
// those who write them for one family after the other do: it looks again until
// there is nothing left to add.
func (m *Opener) clear(facts *chainFacts) (left []hostrules.Obstacle, added bool, refused, err error) {
	for {
		// Before the look: what is changed after it is not seen yet.
		if facts.generation, err = hostrules.Generation(hostrules.Config{}); err != nil {
			return nil, added, refused, err
		}
		if left, err = obstacles(*facts); err != nil {
			return nil, added, refused, err
		}
		ours := slices.DeleteFunc(slices.Clone(left), func(o hostrules.Obstacle) bool { return !o.Amendable() })
		if len(ours) == 0 || refused != nil {
			return left, added, refused, nil
		}
		if refused = m.mayAdd(); refused != nil {
			return left, added, refused, nil
		}
		if refused = accept(ours); refused == nil {
			added = true
			m.Log.Infof("%s: %d accept rules for untracked DNS stand in the host's filter chains now (`trackless rules remove` takes them away)", ours[0], len(ours))
		}
	}
}

// accept puts a rule into each chain of iptables.
func accept(obstacles []hostrules.Obstacle) error {
	var errs []error
	var native []hostrules.Obstacle
	for _, o := range obstacles {
		if !o.Legacy {
			native = append(native, o)
			continue
		}
		errs = append(errs, binaries.AcceptLegacy(o.Endpoint.Addr.Is6(), o.Chain, o.Arguments()))
	}
	errs = append(errs, hostrules.Accept(hostrules.Config{}, native))
	errs = slices.DeleteFunc(errs, func(err error) bool { return err == nil })
	if len(errs) == 0 {
		return nil
	}
	return errs[0]
}

// Three times a minute, and whoever takes our rules away is left alone for the
// rest of it.
const attempts = 3

func (m *Opener) mayAdd() error {
	m.added = slices.DeleteFunc(m.added, func(t time.Time) bool { return time.Since(t) > time.Minute })
	if len(m.added) >= attempts {
		return errors.New("rules of ours were added three times within a minute, and somebody takes them away or puts his own above them")
	}
	m.added = append(m.added, time.Now())
	return nil
}

// obstacles are those of clients at the endpoints that we serve, and of the node
// at the others.
func obstacles(facts chainFacts) ([]hostrules.Obstacle, error) {
	served, err := hostrules.Obstacles(hostrules.Config{}, facts.rules.Plan.Listen, facts.devices)
	if err != nil || len(facts.rules.Plan.Untrack) == 0 {
		return served, err
	}
	lo := slices.DeleteFunc(slices.Clone(facts.devices), func(d hostrules.Device) bool { return d.Name != "lo" })
	other, err := hostrules.Obstacles(hostrules.Config{}, facts.rules.Plan.Untrack, lo)
	return append(served, other...), err
}

func readChainFacts(r iptables.Rules) (facts chainFacts, err error) {
	// Which checks and leases there are makes no difference.
	facts.rules = iptables.Rules{Plan: r.Plan, Uplinks: r.Uplinks}
	if facts.devices, err = clientDevices(r); err != nil {
		return facts, err
	}
	for _, f := range []iptables.Family{iptables.IPv4, iptables.IPv6} {
		names, err := legacy.Names(legacy.Config{}, f)
		if err != nil {
			return facts, err
		}
		facts.legacy = facts.legacy || len(names) > 0
	}
	facts.generation, err = hostrules.Generation(hostrules.Config{})
	return facts, err
}

// clientDevices are lo and the devices by which pods are reached: those that are
// no uplinks, are up, are no port of another device, and are of a kind behind
// which pods are.
func clientDevices(r iptables.Rules) ([]hostrules.Device, error) {
	links, err := devices.List()
	if err != nil {
		return nil, err
	}
	clients, err := devices.ClientsByDevice()
	if err != nil {
		return nil, err
	}
	var out []hostrules.Device
	for _, l := range links {
		a := l.Attributes
		d := hostrules.Device{Name: a.Name, Index: l.Index, Clients: clients[l.Index]}
		switch {
		case a.Name == "lo":
			d.Clients = nil
		case l.Flags&unix.IFF_UP == 0 || a.Master != nil || !devices.HasPods(l):
			continue
		case slices.Contains(r.Uplinks, a.Name):
			// Of those that it brings only these are served.
			d.Clients = nil
			for _, s := range r.Plan.Sources {
				d.Clients = append(d.Clients, devices.Inside(s))
			}
			if len(d.Clients) == 0 {
				continue
			}
		}
		out = append(out, d)
	}
	slices.SortFunc(out, func(a, b hostrules.Device) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}
