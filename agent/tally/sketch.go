package tally

import (
	"cmp"
	"hash/maphash"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/trackless-dns/trackless/iptables/control"
)

const (
	shards     = 8 // a client's queries are in one of them
	maxClients = 512
	maxNames   = 2048 // in each shard
	otherType  = 260  // types from here on are rare, and counted together
	otherRcode = 24
	maxRows    = 1000
)

// count is a number of queries, and how many of them the cache had no answer for.
type count struct{ queries, misses uint64 }

func (c *count) add(other count) {
	c.queries += other.queries
	c.misses += other.misses
}

func (c count) row() control.QueryCount {
	return control.QueryCount{Queries: c.queries, Misses: c.misses}
}

// row returns queries that a tier answered.
func (t Tier) row(queries uint64) control.QueryCount {
	if t == Kernel {
		return control.QueryCount{Queries: queries, Kernel: queries}
	}
	return control.QueryCount{Queries: queries, Socket: queries}
}

// A sketch is what has been counted since somebody asked. It takes 7 MB at most.
type sketch struct {
	seed maphash.Seed // of names
	hasher
	shards [shards]shard
}

type shard struct {
	mu         sync.Mutex
	clients    bounded[netip.Addr]
	names      bounded[string]
	types      [otherType + 1]uint64
	rcodes     [otherRcode + 1]uint64
	transports [2]uint64
	early      [tiers]bounded[netip.Addr] // beside clients, which every query in CoreDNS passes
	_          [64]byte                   // the next shard's mutex is in another cache line
}

func newSketch() *sketch {
	s := &sketch{seed: maphash.MakeSeed(), hasher: newHasher()}
	for i := range s.shards {
		s.shards[i].clients = newBounded(maxClients, func(a netip.Addr) netip.Addr { return a })
		s.shards[i].names = newBounded(maxNames, strings.Clone)
		for tier := range s.shards[i].early {
			s.shards[i].early[tier] = newBounded(maxClients, func(a netip.Addr) netip.Addr { return a })
		}
	}
	return s
}

// hashes returns the hashes of a client and a name, and the shard of the client. Hashes are
// odd.
func (s *sketch) hashes(client netip.Addr, name string) (ofClient, ofName uint64, sh *shard) {
	ofClient = s.of(client)
	return ofClient, maphash.String(s.seed, name) | 1, &s.shards[shardOf(ofClient)]
}

func (s *sketch) answered(q *Query) {
	ofClient, ofName, sh := s.hashes(q.Client, q.Name)
	transport := 0
	if q.TCP {
		transport = 1
	}
	one := count{queries: 1}
	sh.mu.Lock()
	sh.clients.add(ofClient, q.Client, one)
	sh.names.add(ofName, q.Name, one)
	sh.types[min(int(q.Type), otherType)]++
	sh.rcodes[min(uint(q.Rcode), otherRcode)]++
	sh.transports[transport]++
	sh.mu.Unlock()
}

func (s *sketch) early(tier Tier, client netip.Addr) {
	ofClient, _, sh := s.hashes(client, "")
	sh.mu.Lock()
	sh.early[tier].add(ofClient, client, count{queries: 1})
	sh.mu.Unlock()
}

func (s *sketch) missed(client netip.Addr, name string) {
	ofClient, ofName, sh := s.hashes(client, name)
	sh.mu.Lock()
	sh.clients.addMiss(ofClient, client)
	sh.names.addMiss(ofName, name)
	sh.mu.Unlock()
}

// counts adds the shards up. The misses of a query may be counted without the query, when it
// was answered after the end.
func (s *sketch) counts() control.QueryCounts {
	type counted map[string]control.QueryCount
	clients, names, zones, types, rcodes, transports := counted{}, counted{}, counted{}, counted{}, counted{}, counted{}
	var otherClients, otherNames, early, total control.QueryCount
	for i := range s.shards {
		sh := &s.shards[i]
		sh.mu.Lock()
		sh.clients.each(func(a netip.Addr, c count) { increase(clients, a.String(), c.row()) })
		for tier := range tiers {
			sh.early[tier].each(func(a netip.Addr, c count) {
				increase(clients, a.String(), tier.row(c.queries))
				early = early.Plus(tier.row(c.queries))
			})
			rest := tier.row(sh.early[tier].rest.queries)
			otherClients, early = otherClients.Plus(rest), early.Plus(rest)
		}
		sh.names.each(func(name string, c count) {
			name = strings.ToLower(name) // clients may mix cases (draft-vixie-dnsext-dns0x20)
			increase(names, name, c.row())
			increase(zones, zoneOf(name), c.row())
		})
		otherClients = otherClients.Plus(sh.clients.rest.row())
		otherNames = otherNames.Plus(sh.names.rest.row())
		for t, n := range sh.types {
			increase(types, typeName(t), count{queries: n}.row())
		}
		for r, n := range sh.rcodes {
			increase(rcodes, rcodeName(r), count{queries: n}.row())
		}
		increase(transports, "udp", count{queries: sh.transports[0]}.row())
		increase(transports, "tcp", count{queries: sh.transports[1]}.row())
		sh.mu.Unlock()
	}
	for _, m := range []counted{names, zones, types, rcodes} {
		increase(m, control.Early, early)
	}
	increase(transports, "udp", early)
	for _, c := range clients {
		total = total.Plus(c)
	}
	none := control.QueryCount{}
	return control.QueryCounts{
		Total:   bound(total.Plus(otherClients)),
		Clients: rows(clients, otherClients), Names: rows(names, otherNames), Zones: rows(zones, otherNames),
		Types: rows(types, none), Rcodes: rows(rcodes, none), Transports: rows(transports, none),
	}
}

func increase(m map[string]control.QueryCount, key string, by control.QueryCount) {
	if by == (control.QueryCount{}) {
		return
	}
	m[key] = m[key].Plus(by)
}

// bound leaves out misses whose query is not answered yet.
func bound(c control.QueryCount) control.QueryCount {
	c.Misses = min(c.Misses, c.Queries)
	return c
}

// rows returns the counts, the most queries first. Those that are too many are in the last
// row, which has no key.
func rows(counts map[string]control.QueryCount, rest control.QueryCount) []control.QueryCount {
	out := make([]control.QueryCount, 0, len(counts)+1)
	for key, c := range counts {
		if c.Queries == 0 {
			continue // a miss whose query is not answered yet, or was asked by us
		}
		c.Key = key
		out = append(out, bound(c))
	}
	slices.SortFunc(out, func(a, b control.QueryCount) int {
		return cmp.Or(cmp.Compare(b.Queries, a.Queries), cmp.Compare(a.Key, b.Key))
	})
	for _, r := range out[min(len(out), maxRows):] {
		rest = rest.Plus(r)
	}
	out = out[:min(len(out), maxRows)]
	if rest.Queries > 0 {
		out = append(out, bound(rest))
	}
	return out
}

// zoneOf returns what stands for the zone of a name, as nobody knows the cuts of zones here:
// a namespace of the cluster, such as shop.svc.cluster.local., else the last two labels.
func zoneOf(name string) string {
	labels := strings.Split(strings.TrimSuffix(name, "."), ".")
	if i := slices.Index(labels, "svc"); i > 0 {
		return strings.Join(labels[i-1:], ".") + "."
	}
	return strings.Join(labels[max(len(labels)-2, 0):], ".") + "."
}
