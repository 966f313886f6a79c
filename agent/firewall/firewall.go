// Package firewall finds other programs' rules that drop untracked DNS or make it tracked.
// It adds accept rules where it may, and names the other rules.
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
	"github.com/trackless-dns/trackless/iptables/route"
)

// An Opener lets untracked DNS pass the filter chains of the host. One goroutine may use
// it at a time.
type Opener struct {
	Log logger.Logger

	seen    chainFacts
	blocked map[netip.Addr]error
	added   []time.Time // when rules were added
	failure string      // logged last
}

// chainFacts are the inputs of the verdict. Legacy tables change without an announcement.
type chainFacts struct {
	generation uint32
	legacy     bool
	devices    []hostrules.Device
	rules      iptables.Rules
}

// Open implements [reconcile.Kernel.Unblock]. It returns the addresses whose DNS a filter
// chain drops, and those with rules of a predecessor that cannot be removed: queries to
// them could not fail over.
func (m *Opener) Open(r iptables.Rules) (map[netip.Addr]error, bool) {
	out := map[netip.Addr]error{}
	blocked, cleared := m.openChains(r)
	maps.Copy(out, blocked)
	fixed, err := predecessor.FixedByNodeCache(predecessor.Config{}, r.Plan.Addresses())
	if err != nil {
		m.Log.Debugf("search for rules of NodeLocal DNSCache: %v", err)
	}
	maps.Copy(out, fixed)
	return out, cleared
}

// openChains returns by address which chain still drops untracked DNS, and whether accept
// rules were added.
func (m *Opener) openChains(r iptables.Rules) (blocked map[netip.Addr]error, cleared bool) {
	facts, err := readChainFacts(r)
	if err == nil && !facts.legacy && reflect.DeepEqual(facts, m.seen) {
		return m.blocked, false
	}
	var left []hostrules.DroppingChain
	var refused error
	if err == nil {
		left, cleared, refused, err = m.clear(&facts)
	}
	if err != nil {
		// Unreadable rules may let DNS pass. Checks and packet counts find out.
		if m.failure != err.Error() {
			m.Log.Warningf("cannot check whether the host's filter rules drop untracked DNS: %v", err)
		}
		m.failure = err.Error()
		return m.blocked, cleared
	}
	m.failure, m.blocked = "", map[netip.Addr]error{}
	for _, o := range left {
		if m.blocked[o.Endpoint.Addr] == nil {
			m.blocked[o.Endpoint.Addr] = droppingChainError(o, refused)
		}
	}
	m.seen = facts
	if refused != nil {
		m.seen = chainFacts{} // try again at the next call
	}
	return m.blocked, cleared
}

// droppingChainError names the chain that drops DNS, and the remedy.
func droppingChainError(o hostrules.DroppingChain, refused error) error {
	if o.Amendable() && refused != nil {
		return fmt.Errorf("%s; an accept rule could not be added: %w; add one with `%s`", o, refused, o.Remedy())
	}
	if o.Owned {
		return fmt.Errorf("%s; only the process that owns the table can change it (`nft list ruleset` names it): let that process add the rule of `%s`, and rules for the other endpoints, protocols and directions", o, o.Remedy())
	}
	return fmt.Errorf("%s; we do not change that chain: let DNS pass with `%s`, and add rules for the other endpoints, protocols and directions", o, o.Remedy())
}

// clear adds the accept rules that DNS needs. It returns the chains that still drop DNS,
// whether rules were added, and why one could not be added. Other programs may change
// their rules meanwhile, so it repeats until there is nothing to add.
func (m *Opener) clear(facts *chainFacts) (left []hostrules.DroppingChain, added bool, refused, err error) {
	for {
		// The generation is read first, so that a later change is noticed.
		if facts.generation, err = hostrules.Generation(hostrules.Config{}); err != nil {
			return nil, added, refused, err
		}
		if left, err = dropping(*facts); err != nil {
			return nil, added, refused, err
		}
		ours := slices.DeleteFunc(slices.Clone(left), func(o hostrules.DroppingChain) bool { return !o.Amendable() })
		if len(ours) == 0 || refused != nil {
			return left, added, refused, nil
		}
		if refused = m.mayAdd(); refused != nil {
			return left, added, refused, nil
		}
		if refused = accept(ours); refused == nil {
			added = true
			m.Log.Infof("%s: added %d accept rules for untracked DNS to the host's filter chains (`trackless rules remove` removes them)", ours[0], len(ours))
		}
	}
}

// accept adds a rule to each chain of iptables.
func accept(dropping []hostrules.DroppingChain) error {
	var errs []error
	var native []hostrules.DroppingChain
	for _, o := range dropping {
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

// attempts bounds how often rules are added in a minute, so that we do not fight a program
// that removes them.
const attempts = 3

func (m *Opener) mayAdd() error {
	m.added = slices.DeleteFunc(m.added, func(t time.Time) bool { return time.Since(t) > time.Minute })
	if len(m.added) >= attempts {
		return errors.New("accept rules were added three times within a minute, and another program removes them or inserts its own before them")
	}
	m.added = append(m.added, time.Now())
	return nil
}

// dropping returns the chains that drop DNS of clients at the endpoints that we serve, and
// DNS of the node at the others.
func dropping(facts chainFacts) ([]hostrules.DroppingChain, error) {
	served, err := hostrules.DroppingChains(hostrules.Config{}, facts.rules.Plan.Listen, facts.devices)
	if err != nil || len(facts.rules.Plan.Untrack) == 0 {
		return served, err
	}
	lo := slices.DeleteFunc(slices.Clone(facts.devices), func(d hostrules.Device) bool { return d.Name != "lo" })
	other, err := hostrules.DroppingChains(hostrules.Config{}, facts.rules.Plan.Untrack, lo)
	return append(served, other...), err
}

func readChainFacts(r iptables.Rules) (facts chainFacts, err error) {
	// Checks and leases do not affect the verdict.
	facts.rules = iptables.Rules{Plan: r.Plan, Uplinks: r.Uplinks}
	if facts.devices, err = clientDevices(r); err != nil {
		return facts, err
	}
	if facts.legacy, err = legacy.HasTables(legacy.Config{}); err != nil {
		return facts, err
	}
	facts.generation, err = hostrules.Generation(hostrules.Config{})
	return facts, err
}

// clientDevices returns lo and the devices of pods: devices that are up, are no uplinks and
// no ports of another device, and are of a kind that pods have.
func clientDevices(r iptables.Rules) ([]hostrules.Device, error) {
	links, err := route.Links()
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
			// Of the clients behind an uplink we serve only the plan's sources.
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
