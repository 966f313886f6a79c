package binaries

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/trackless-dns/trackless/iptables"
)

// Present implements [iptables.Backend]: the chains are as after the last change, and no
// rules of other programs are before ours.
func (b *Backend) Present() (bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.setup {
		return false, nil
	}
	for _, f := range b.families {
		table, err := b.programs[f].table()
		if err != nil {
			return false, b.counted(err)
		}
		if !slices.Equal(table.own(b.rs.id), b.own[f]) {
			return false, nil
		}
		for _, base := range []string{preroutingChain, outputChain} {
			if _, inPlace := table.position(base, b.rs.id, nil); !inPlace {
				return false, nil
			}
		}
	}
	return true, nil
}

// Live implements [iptables.Backend].
func (b *Backend) Live() ([]netip.Addr, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.setup {
		return nil, nil
	}
	if !b.rs.features.leases() {
		if !b.rs.attached {
			return nil, nil
		}
		return b.rs.rules.Plan.Addresses(), nil
	}
	var out []netip.Addr
	for _, f := range b.families {
		live, err := liveIn(b.rs.liveSet(f), f, b.rs.features.recent, b.rs.lease)
		if err != nil {
			return nil, err
		}
		out = append(out, live...)
	}
	return out, nil
}

// liveIn reads the addresses whose lease has not run out.
func liveIn(name string, f iptables.Family, recent bool, lease time.Duration) (out []netip.Addr, err error) {
	if recent {
		return liveInRecent(name, f == iptables.IPv6, lease)
	}
	err = withSets(func(s *sets) error {
		elements, err := s.list(name)
		for _, e := range elements {
			out = append(out, e.addr)
		}
		return err
	})
	return out, err
}

// Counters implements [iptables.Backend].
func (b *Backend) Counters() (iptables.Counters, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.counters()
}

func (b *Backend) counters() (iptables.Counters, error) {
	now := iptables.Counters{}
	for _, f := range b.families {
		table, err := b.programs[f].table()
		if err != nil {
			return nil, b.counted(err)
		}
		table.count(b.rs.id, f, now)
	}
	out := iptables.Counters{}
	for _, k := range iptables.CounterKeys() {
		if now[k] < b.last[k] {
			b.total[k] += b.last[k] // another program has emptied the chains
		}
		out[k] = b.total[k] + now[k]
	}
	b.last = now
	return out, nil
}

// count adds the counts of an instance's counting chains.
func (t savedTable) count(id string, f iptables.Family, out iptables.Counters) {
	for chain, d := range map[string]iptables.Direction{queriesChain: iptables.Query, responsesChain: iptables.Response} {
		for _, r := range t.rules[chainPrefix+id+"-"+chain] {
			for _, p := range []iptables.Proto{iptables.UDP, iptables.TCP} {
				if strings.HasPrefix(r.text+" ", "-p "+p.String()+" ") {
					out[iptables.CounterKey{Direction: d, Family: f, Proto: p}] += r.packets
				}
			}
		}
	}
}
