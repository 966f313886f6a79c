package notrack

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/coredns/caddy"
	"github.com/coredns/caddy/caddyfile"
	hostparse "github.com/coredns/coredns/plugin/pkg/parse"

	"github.com/trackless-dns/trackless/iptables/failover"
)

// failoverPairs says where queries to the listen addresses that no Service owns
// go while we are down. With `failover auto` that is another listen address,
// which a Service owns: it stays when Trackless is uninstalled. Without one it is
// the forward target of a notrack block, if that is a Service address. The second
// result says why an address has none.
func failoverPairs(config *configuration, s *services, targets []netip.Addr) (pairs []failover.Pair, missing error) {
	if config.failover == failoverOff {
		return nil, nil
	}
	if config.failover != failoverAuto {
		target, err := netip.ParseAddr(config.failover)
		if err != nil {
			return nil, err // parse has refused it before
		}
		targets = []netip.Addr{target}
	} else {
		targets = slices.DeleteFunc(slices.Clone(targets), func(a netip.Addr) bool { return !s.names(a) })
		owned := slices.DeleteFunc(config.plan.Addresses(), func(a netip.Addr) bool { return !s.owns(a) })
		targets = append(owned, targets...)
	}
	var without []string
	for _, listen := range s.unowned(config.plan.Addresses()) {
		if listen.IsLoopback() {
			continue
		}
		i := slices.IndexFunc(targets, func(a netip.Addr) bool { return a.Is4() == listen.Is4() })
		if i < 0 {
			without = append(without, listen.String())
			continue
		}
		pair := failover.Pair{Listen: listen, Service: targets[i]}
		for _, e := range config.plan.Listen {
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

// forwardTargets are the addresses to which the notrack blocks of the running
// load forward, in the order of the Corefile: those of `forward`, and those that
// `upstream` falls back to.
func forwardTargets(config *configuration) []netip.Addr {
	var out []netip.Addr
	for _, ap := range forwardEndpoints(config) {
		if !slices.Contains(out, ap.Addr()) {
			out = append(out, ap.Addr())
		}
	}
	return out
}

// forwardEndpoints are the same with their ports.
func forwardEndpoints(config *configuration) []netip.AddrPort {
	var input caddy.Input
	for _, i := range caddy.Instances() {
		i.StorageMu.RLock()
		found := i.Storage[configurationKey{}] == config
		i.StorageMu.RUnlock()
		if found {
			input = i.Caddyfile()
		}
	}
	if input == nil {
		return nil
	}
	blocks, err := caddyfile.Parse(input.Path(), bytes.NewReader(input.Body()), nil)
	if err != nil {
		return nil // caddy has parsed it before
	}
	var out []netip.AddrPort
	for _, b := range blocks {
		if len(b.Tokens[directive]) == 0 {
			continue
		}
		for _, token := range b.Tokens["forward"] {
			out = append(out, endpointsOf(token.Text)...)
		}
		for i, token := range b.Tokens["upstream"] {
			out = append(out, endpointsOf(token.Text)...)
			if i == 2 { // the Service
				name := strings.ToUpper(strings.ReplaceAll(path.Base(token.Text), "-", "_"))
				for _, variable := range []string{name + "_UPSTREAM_SERVICE_HOST", name + "_SERVICE_HOST"} {
					out = append(out, endpointsOf(os.Getenv(variable))...)
				}
			}
		}
	}
	return out
}

// endpointsOf returns the servers that a word of a forward directive names: as
// ADDRESS, TRANSPORT://ADDRESS:PORT, or in a file such as /etc/resolv.conf; none
// for its other words.
func endpointsOf(word string) []netip.AddrPort {
	servers, err := hostparse.HostPortOrFile(word)
	if err != nil {
		return nil
	}
	var out []netip.AddrPort
	for _, s := range servers {
		_, s = hostparse.Transport(s)
		if ap, err := netip.ParseAddrPort(s); err == nil {
			out = append(out, netip.AddrPortFrom(ap.Addr().WithZone(""), ap.Port()))
		}
	}
	return out
}
