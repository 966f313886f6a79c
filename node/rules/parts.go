package rules

import (
	"cmp"
	"slices"
	"strings"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/failover"
	"github.com/trackless-dns/trackless/iptables/hostaddr"
	"github.com/trackless-dns/trackless/iptables/hostrules"
	"github.com/trackless-dns/trackless/iptables/owner"
	"github.com/trackless-dns/trackless/node/instance"
)

func reportInstance(i iptables.Instance, reached []instance.Reached) Instance {
	r := Instance{
		Table: i.Table, Backend: i.Backend, Variant: i.Variant, Owned: i.Owned,
		Owner: Owner{
			PID: i.Owner.PID, LocalPID: i.Owner.LocalPID, Life: i.Owner.Life, Command: i.Owner.Command,
			AgeSeconds: int64(i.Owner.Age().Seconds()),
		},
		State:     "detached",
		Endpoints: Endpoints(i.Listen, i.Live),
		Packets:   reportPackets(i.Packets),
	}
	switch {
	case i.Attached():
		r.State = "attached"
	case len(i.Live) > 0:
		r.State = "partly attached"
	}
	for _, f := range reached {
		if f.Answer.Table != i.Table {
			continue
		}
		r.Socket, r.ByHand, r.Reason = f.Socket(), f.Answer.ByHand, f.Answer.Reason
		r.FastPath = f.Answer.FastPath
		// The kernel knows best, but it does not show a drain.
		if r.State == "detached" && f.Answer.State == "draining" {
			r.State = "draining"
		}
	}
	return r
}

// Endpoints are those for a report; live ones are untracked.
func Endpoints(endpoints, live []iptables.Endpoint) []Endpoint {
	out := make([]Endpoint, 0, len(endpoints))
	for _, e := range endpoints {
		out = append(out, Endpoint{e.Addr, e.Port, e.Proto.String(), slices.Contains(live, e)})
	}
	return out
}

func reportPackets(c iptables.Counters) []Packets {
	out := []Packets{}
	for _, k := range iptables.CounterKeys() {
		out = append(out, Packets{k.Direction.String(), k.Family.String(), k.Proto.String(), c[k]})
	}
	return out
}

func reportFailover(f failover.State, claims iptables.Claims) *Failover {
	if !f.Present {
		return nil
	}
	r := &Failover{Table: owner.FailoverTable, Intact: f.Intact, Pairs: []Pair{}, Packets: reportPackets(f.Counters)}
	for _, p := range f.Pairs {
		ports := p.Ports
		if len(ports) == 0 {
			ports = []uint16{53}
		}
		r.Pairs = append(r.Pairs, Pair{p.Listen, p.Service, ports, claims.Instance(p.Listen) != ""})
	}
	return r
}

func reportDevice(d hostaddr.Device, claims iptables.Claims) Device {
	r := Device{Name: d.Name, Kind: d.Kind, Link: d.Link, Addresses: []Address{}}
	for _, a := range d.Addresses {
		r.Addresses = append(r.Addresses, Address{a.Addr, a.Marked, claims.Of(a.Addr) != ""})
	}
	return r
}

func reportForeign(f hostrules.ConflictingRule) ConflictingRule {
	r := ConflictingRule{
		Family: f.Family, Table: f.Table, Chain: f.Chain, Legacy: f.Legacy, Hook: f.Hook, Priority: f.Priority, Handle: f.Handle,
		Rule: f.Text, Effects: f.Effects, Meaning: foreignMeaning(f), Certain: f.Certain, NodeCache: f.NodeCache,
		Endpoints: Endpoints(f.Concerns, nil), Directions: []string{},
	}
	for _, d := range f.Directions {
		r.Directions = append(r.Directions, d.String())
	}
	return r
}

// foreignMeaning says what a rule does to DNS, the gravest effect first.
func foreignMeaning(f hostrules.ConflictingRule) string {
	has := func(effect string) bool { return slices.Contains(f.Effects, effect) }
	switch {
	case has("drop"):
		return "these packets are lost"
	case has("queue"):
		return "a program decides about these packets before conntrack"
	case has("notrack") && f.NodeCache:
		return "a leftover of NodeLocal DNSCache: untracked for good, so without an instance nobody answers"
	case has("notrack"):
		return "untracked for good, so that they bypass kube-proxy: where no DNS server of this node listens at the address nobody answers"
	case has(hostrules.EffectZone):
		return "puts these packets into a conntrack zone, which tracks them whatever rules of NOTRACK say"
	case f.NodeCache:
		return "a leftover of NodeLocal DNSCache, harmless by itself"
	case has("accept"):
		return "ends its own chain only: rules of the iptables backend behind it there are not reached, those of nftables are"
	}
	return "changes these packets before conntrack: " + cmp.Or(strings.Join(f.Effects, ", "), "in a way that is not known")
}
