package measure

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/hostrules"
	"github.com/trackless-dns/trackless/node/advice"
)

// Notrack finds out what rules do to the DNS of the addresses on which a DNS server
// listens: the rules of Trackless and those of others, in nf_tables and in the tables
// of iptables-legacy.
func (r Rules) Notrack(listeners []netip.Addr) ([]advice.Notrack, error) {
	if len(listeners) == 0 {
		return nil, nil
	}
	endpoints := make([]iptables.Endpoint, len(listeners))
	for i, a := range listeners {
		endpoints[i] = iptables.Endpoint{Addr: a, Port: 53, Proto: iptables.UDP}
	}
	instances, err := r.Instances()
	var unsupported *iptables.UnsupportedError
	if err != nil && !errors.As(err, &unsupported) { // without nf_tables there are none in it
		return nil, err
	}
	foreign, err := hostrules.ConflictingRules(hostrules.Config{}, endpoints)
	if err != nil {
		return nil, err
	}
	var list []advice.Notrack
	for _, e := range endpoints {
		n := advice.Notrack{Address: e.Addr}
		for _, i := range instances {
			if slices.Contains(i.Listen, e) {
				n.Responses = true
				n.Queries = n.Queries || slices.Contains(i.Live, e)
				n.Detached = !n.Queries
			}
		}
		for _, f := range foreign {
			if !slices.Contains(f.Concerns, e) {
				continue
			}
			if slices.Contains(f.Effects, hostrules.EffectZone) && slices.Contains(f.Directions, iptables.Query) {
				n.Zone = fmt.Sprintf("chain %s of table %s %s (%s)", f.Chain, f.Family, f.Table, f.Text)
			}
			if slices.Contains(f.Effects, "notrack") {
				n.Queries = n.Queries || slices.Contains(f.Directions, iptables.Query)
				n.Responses = n.Responses || slices.Contains(f.Directions, iptables.Response)
			}
		}
		list = append(list, n)
	}
	return list, nil
}
