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

// Failover keeps the standing table that sends queries to a Service while nobody
// untracks them. Its methods are safe for concurrent use.
type Failover struct {
	Services *Services
	Log      logger.Logger

	own atomic.Pointer[[]failover.Pair] // of our own addresses
	all atomic.Pointer[[]failover.Pair] // that the table holds, as far as known
}

// What the option failover may say besides an address.
const (
	FailoverAuto = "auto"
	FailoverOff  = "off"
)

// Pairs are those of the table, other instances' among them.
func (f *Failover) Pairs() []failover.Pair { return pairsIn(&f.all) }

// Choose decides where queries to the plan's listen addresses go while we are down.
func (f *Failover) Choose(setting string, plan iptables.Plan, targets []netip.Addr) {
	pairs, missing := failoverPairs(setting, plan, f.Services, targets)
	if missing != nil {
		f.Log.Warningf("%v", missing)
	}
	f.own.Store(&pairs)
}

// Forget ends it on a kernel that cannot have the table.
func (f *Failover) Forget() {
	f.own.Store(nil)
	f.all.Store(nil)
}

// Install puts the table in place. It stands back as soon as queries are untracked.
func (f *Failover) Install(r iptables.Rules) error {
	own := pairsIn(&f.own)
	if len(own) == 0 {
		return nil // the table, if there is one, is another's
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

// failoverPairs says where queries to the listen addresses that no Service owns
// go while we are down. With `failover auto` that is another listen address,
// which a Service owns: it stays when Trackless is uninstalled. Without one it is
// the forward target of a notrack block, if that is a Service address. The second
// result says why an address has none.
func failoverPairs(setting string, plan iptables.Plan, s *Services, targets []netip.Addr) (pairs []failover.Pair, missing error) {
	if setting == FailoverOff {
		return nil, nil
	}
	if setting != FailoverAuto {
		target, err := netip.ParseAddr(setting)
		if err != nil {
			return nil, err // parse has refused it before
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
		missing = fmt.Errorf("no failover for %s: no forward target of that family is known to be a Service address; while this process is down nobody answers there (name one with `failover ADDRESS`, or say `failover off`)", strings.Join(without, ", "))
	}
	return pairs, missing
}

// standing are the pairs that the table is to have: our own, and those that it has
// for addresses of others. These may be served by an instance beside us, or by one
// before us whose pods still ask there; `trackless rules remove` ends that. Where
// somebody has taken the whole table away, last is what it had.
func standing(own []failover.Pair, table failover.State, last []failover.Pair) []failover.Pair {
	others := table.Pairs
	if !table.Present {
		others = last
	}
	out := slices.Clone(own)
	for _, p := range others {
		// What was a listen address may be that of a Service by now, and the other
		// way round: no table can have both.
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
