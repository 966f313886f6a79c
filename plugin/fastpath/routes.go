package fastpath

import (
	"errors"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/fastpath/socket"
	"github.com/trackless-dns/trackless/plugin/cache/wire"
	"github.com/trackless-dns/trackless/plugin/querymetrics"
)

var (
	errUnknownServer = errors.New("CoreDNS's server has other fields than this program knows: its zones cannot be read")
	errOpcodes       = errors.New("a plugin takes messages that are no queries")
)

// zonesOf returns the server blocks of a server by their zones. Blocks without our
// directive are among them, and CoreDNS tells of them nowhere else.
func zonesOf(s *dnsserver.Server) (map[string][]*dnsserver.Config, error) {
	v := reflect.ValueOf(s).Elem()
	zones, opcodes := v.FieldByName("zones"), v.FieldByName("allowedOpcodes")
	if !zones.IsValid() || zones.Type() != reflect.TypeFor[map[string][]*dnsserver.Config]() || opcodes.Kind() != reflect.Map {
		return nil, errUnknownServer
	}
	if opcodes.Len() > 0 {
		return nil, errOpcodes
	}
	out := make(map[string][]*dnsserver.Config, zones.Len())
	for i := zones.MapRange(); i.Next(); {
		configs := make([]*dnsserver.Config, i.Value().Len())
		for k := range configs {
			configs[k] = (*dnsserver.Config)(i.Value().Index(k).UnsafePointer())
		}
		out[i.Key().String()] = configs
	}
	return out, nil
}

// routes returns the table of a server: for each zone that matters the block that CoreDNS
// asks, and the zone by which queries are counted. The server is at the listen address.
func routes(s *dnsserver.Server, at netip.AddrPort, blocks []*decided) (*socket.Table, error) {
	zones, err := zonesOf(s)
	if err != nil {
		return nil, err
	}
	known := map[*dnsserver.Config]*decided{}
	names := slices.Collect(maps.Keys(zones))
	served := plugin.Zones(slices.Clone(names))
	for _, d := range blocks {
		for _, config := range d.configs {
			known[config] = d
		}
		if d.metrics != nil {
			names = append(names, d.metrics.ZoneNames()...)
		}
	}
	entries := map[string]*socket.Entry{}
	made := map[*decided]*socket.Block{}
	for _, name := range names {
		name = strings.ToLower(dns.Fqdn(name))
		packed := make([]byte, len(name)+1)
		n, err := dns.PackDomainName(name, packed, 0, nil, false)
		if err != nil {
			continue // no query has it
		}
		e := &socket.Entry{}
		entries[string(packed[:n])] = e
		configs := zones[served.Matches(name)]
		if len(configs) != 1 {
			continue // no block, or views of one
		}
		d := known[configs[0]]
		if d == nil || !d.policy.Eligible() {
			continue
		}
		if made[d] == nil {
			made[d] = &socket.Block{
				Engine: d.cache.Engine(), Size: d.policy.Size, Denials: d.policy.Denials, Counter: d.counterAt(s.Addr),
				Hit: func(key wire.Key) { d.cache.HitAt(at, key) },
			}
		}
		e.Block = made[d]
		if d.metrics != nil {
			e.Zone = querymetrics.Zone(d.metrics, name)
		}
	}
	if len(made) == 0 {
		return nil, nil
	}
	return socket.NewTable(entries), nil
}

// counterAt returns what counts queries at a server.
func (d *decided) counterAt(server string) func(socket.Kind) socket.Counter {
	return func(k socket.Kind) socket.Counter {
		c := &counter{
			cache: d.cache.Counters(server), denial: k.Denial, hits: requestsTotal.WithLabelValues(server, "socket"),
		}
		if d.metrics != nil {
			c.queries = querymetrics.NewCounter(d.metrics, querymetrics.Kind{
				Server: server, Zone: k.Zone, Type: k.Type, Rcode: k.Rcode, DO: k.DO,
			}, k.IPv6)
		}
		return c
	}
}
