package services

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/trackless-dns/trackless/internal/logger"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/failover"
)

// Failover maintains the standing table, which sends queries to a Service while no process
// untracks them. Its methods are safe for concurrent use.
type Failover struct {
	Services *Services
	Log      logger.Logger

	own atomic.Pointer[[]failover.Pair] // our own addresses
	all atomic.Pointer[[]failover.Pair] // all pairs of the table, as last seen
}

// Values of the option failover besides an address.
const (
	FailoverAuto = "auto"
	FailoverOff  = "off"
)

// Pairs returns the pairs of the table, with those of other instances.
func (f *Failover) Pairs() []failover.Pair { return pairsIn(&f.all) }

// Choose selects the Service that gets the queries to each listen address while we are
// down.
func (f *Failover) Choose(setting string, plan iptables.Plan, targets []netip.Addr) {
	pairs, missing := failoverPairs(setting, plan, f.Services, targets)
	if missing != nil {
		f.Log.Warningf("%v", missing)
	}
	f.own.Store(&pairs)
}

// Forget drops all pairs. It is for kernels that cannot have the table.
func (f *Failover) Forget() {
	f.own.Store(nil)
	f.all.Store(nil)
}

// Install installs the table. The table has no effect on untracked queries.
func (f *Failover) Install(r iptables.Rules) error {
	own := pairsIn(&f.own)
	if len(own) == 0 {
		return nil // if there is a table, another instance owns it
	}
	table, err := failover.Read(failover.Config{})
	if err != nil {
		return err
	}
	pairs := standing(own, table, f.Pairs())
	f.all.Store(&pairs)
	return failover.Install(failover.Config{}, pairs, failover.Outside{Uplinks: r.Uplinks, Sources: r.Plan.Sources})
}

func pairsIn(pairs *atomic.Pointer[[]failover.Pair]) []failover.Pair {
	if p := pairs.Load(); p != nil {
		return *p
	}
	return nil
}

// failoverPairs returns the Service for each listen address that no Service owns. With
// `failover auto` it is another listen address that a Service owns: such a Service stays
// when Trackless is uninstalled. Otherwise it is the forward target of a notrack block, if
// a Service owns that. The error names the addresses without a Service.
func failoverPairs(setting string, plan iptables.Plan, s *Services, targets []netip.Addr) (pairs []failover.Pair, missing error) {
	if setting == FailoverOff {
		return nil, nil
	}
	if setting != FailoverAuto {
		target, err := netip.ParseAddr(setting)
		if err != nil {
			return nil, err // the parser has checked it
		}
		targets = []netip.Addr{target}
	} else {
		targets = slices.DeleteFunc(slices.Clone(targets), func(a netip.Addr) bool { return !s.names(a) })
		owned := slices.DeleteFunc(plan.Addresses(), func(a netip.Addr) bool { return !s.owns(a) })
		targets = append(owned, targets...)
	}
	var without []string
	for _, listen := range s.Unowned(plan.Addresses()) {
		if listen.IsLoopback() {
			continue
		}
		i := slices.IndexFunc(targets, func(a netip.Addr) bool { return a.Is4() == listen.Is4() })
		if i < 0 {
			without = append(without, listen.String())
			continue
		}
		pair := failover.Pair{Listen: listen, Service: targets[i]}
		for _, e := range plan.Listen {
			if e.Addr == listen && !slices.Contains(pair.Ports, e.Port) {
				pair.Ports = append(pair.Ports, e.Port)
			}
		}
		pairs = append(pairs, pair)
	}
	if len(without) > 0 {
		missing = fmt.Errorf("no failover for %s: no forward target of the same address family is a Service, so queries there get no answer while this process is down; set a Service with `failover ADDRESS`, or `failover off`", strings.Join(without, ", "))
	}
	return pairs, missing
}

// standing returns the pairs that the table shall have: our own, and the present ones for
// other addresses. Another instance may serve those, or pods may still ask there after an
// earlier instance has ended; `trackless rules remove` removes them. If another program
// has removed the table, last has its pairs.
func standing(own []failover.Pair, table failover.State, last []failover.Pair) []failover.Pair {
	others := table.Pairs
	if !table.Present {
		others = last
	}
	out := slices.Clone(own)
	for _, p := range others {
		// A former listen address may be a Service by now, and the other way round.
		// The table cannot have both.
		if !slices.ContainsFunc(own, func(o failover.Pair) bool {
			return p.Listen == o.Listen || p.Listen == o.Service || p.Service == o.Listen
		}) {
			out = append(out, p)
		}
	}
	return out
}

// To returns the Service that answers for a listen address after a failover: the Service
// that owns it, or the one that the failover table sends queries to.
func (f *Failover) To(a netip.Addr) netip.Addr {
	if f.Services.owns(a) {
		return a
	}
	for _, pair := range pairsIn(&f.own) {
		if pair.Listen == a {
			return pair.Service
		}
	}
	return netip.Addr{}
}
