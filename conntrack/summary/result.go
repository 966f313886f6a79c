package summary

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"github.com/trackless-dns/trackless/conntrack"
)

// A Summary has the counts of a table. Its JSON field names are part of the interface and
// do not change.
type Summary struct {
	Entries uint64 `json:"entries"`
	IPv4    uint64 `json:"ipv4"`
	IPv6    uint64 `json:"ipv6"`

	// Unreplied entries saw packets in one direction only. The kernel drops them first
	// when the table is full, and keeps Assured ones.
	Unreplied uint64 `json:"unreplied"`
	Assured   uint64 `json:"assured"`
	Helpers   uint64 `json:"with_helper"`
	Offloaded uint64 `json:"offloaded"`

	States           []StateCount `json:"states"`
	DestinationPorts []PortCount  `json:"destination_ports"`
	NAT              NATCounts    `json:"nat"`
	DNS              DNS          `json:"dns"`
	Established      Established  `json:"tcp_established"`

	// UDPUnreplied counts UDP entries without replies. UDPUnrepliedSources are the
	// addresses that make them.
	UDPUnreplied        uint64    `json:"udp_unreplied"`
	UDPUnrepliedSources []Counted `json:"udp_unreplied_sources,omitempty"`

	// The addresses in the original direction with the most entries, sorted by their
	// number. Services are the destinations of entries with destination NAT.
	Sources      []Counted         `json:"top_sources"`
	Destinations []Counted         `json:"top_destinations"`
	Services     []CountedEndpoint `json:"top_services"`
	// Uncertainty is by how much the counts of the top lists may be too low. It is 0
	// unless there were too many addresses to count exactly.
	Uncertainty uint64 `json:"top_uncertainty"`
}

// StateCount counts the entries of a protocol in one state.
type StateCount struct {
	Protocol string `json:"protocol"`
	State    string `json:"state"`
	Entries  uint64 `json:"entries"`
}

// PortCount counts the entries to one destination port.
type PortCount struct {
	Protocol string `json:"protocol"`
	Port     uint16 `json:"port"`
	Entries  uint64 `json:"entries"`
}

// NATCounts counts entries by what is rewritten on their packets.
type NATCounts struct {
	None uint64 `json:"none"`
	SNAT uint64 `json:"snat"`
	DNAT uint64 `json:"dnat"`
	Both uint64 `json:"both"`
}

func (n *NATCounts) add(k conntrack.NATKind) {
	switch k {
	case conntrack.NATNone:
		n.None++
	case conntrack.NATSource:
		n.SNAT++
	case conntrack.NATDestination:
		n.DNAT++
	default:
		n.Both++
	}
}

// DNS counts the entries of DNS over port 53.
type DNS struct {
	Entries   uint64 `json:"entries"`
	UDP       uint64 `json:"udp"`
	TCP       uint64 `json:"tcp"`
	Unreplied uint64 `json:"unreplied"`
	// Reversed entries have a response as their first packet: the response was
	// tracked, but not the query. ReversedSources are the servers.
	Reversed        uint64    `json:"reversed"`
	ReversedSources []Counted `json:"reversed_sources,omitempty"`
	// Servers are the DNS servers with the most entries.
	Servers []Server `json:"servers"`
}

// A Server is a DNS server in the table.
type Server struct {
	// Asked is the address to which clients sent their queries. Address is the one that
	// should answer. They differ for a Service.
	Asked     netip.Addr `json:"asked"`
	Address   netip.Addr `json:"address"`
	Entries   uint64     `json:"entries"`
	Unreplied uint64     `json:"unreplied"`
}

// Established counts established TCP connections by how long they were idle.
type Established struct {
	Entries  uint64 `json:"entries"`
	IdleHour uint64 `json:"idle_1h"`
	IdleDay  uint64 `json:"idle_24h"`
}

// An Endpoint is a transport address.
type Endpoint struct {
	Protocol conntrack.Protocol
	Address  netip.AddrPort
}

// String returns the endpoint as "udp 10.96.0.10:53".
func (e Endpoint) String() string { return e.Protocol.String() + " " + e.Address.String() }

// Counted is an address with its number of entries.
type Counted struct {
	Address netip.Addr `json:"address"`
	Entries uint64     `json:"entries"`
}

// CountedEndpoint is a Service with its number of entries.
type CountedEndpoint struct {
	Protocol string         `json:"protocol"`
	Address  netip.AddrPort `json:"address"`
	Entries  uint64         `json:"entries"`
}

// Summary returns the counts so far, with at most n items in every list.
func (c *Collector) Summary(n int) *Summary {
	s := c.s
	s.States = c.stateCounts()
	s.DestinationPorts = c.portCounts(n)
	s.Sources = addresses(c.sources, n)
	s.Destinations = addresses(c.destinations, n)
	s.UDPUnrepliedSources = addresses(c.udpSources, n)
	s.DNS.ReversedSources = addresses(c.orphans, n)
	s.Services = make([]CountedEndpoint, 0, n)
	for _, kv := range c.services.largest(n, func(a, b Endpoint) int { return strings.Compare(a.String(), b.String()) }) {
		s.Services = append(s.Services, CountedEndpoint{kv.key.Protocol.String(), kv.key.Address, kv.count})
	}
	s.DNS.Servers = make([]Server, 0, n)
	for _, kv := range c.servers.largest(n, func(a, b serverKey) int {
		return cmp.Or(a.asked.Compare(b.asked), a.server.Compare(b.server))
	}) {
		s.DNS.Servers = append(s.DNS.Servers, Server{kv.key.asked, kv.key.server, kv.count, c.serverUnreplied[kv.key]})
	}
	s.Uncertainty = max(c.sources.lost, c.destinations.lost, c.services.lost, c.servers.lost, c.udpSources.lost, c.orphans.lost)
	return &s
}

func (c *Collector) stateCounts() []StateCount {
	counts := make([]StateCount, 0, len(c.states))
	for k, n := range c.states {
		counts = append(counts, StateCount{k.protocol.String(), k.state, n})
	}
	slices.SortFunc(counts, func(a, b StateCount) int {
		return cmp.Or(cmp.Compare(b.Entries, a.Entries), strings.Compare(a.Protocol, b.Protocol), strings.Compare(a.State, b.State))
	})
	return counts
}

func (c *Collector) portCounts(n int) []PortCount {
	counts := make([]PortCount, 0, n)
	for protocol, ports := range c.ports {
		for port, entries := range ports {
			if entries > 0 {
				counts = append(counts, PortCount{protocol.String(), uint16(port), uint64(entries)})
			}
		}
	}
	slices.SortFunc(counts, func(a, b PortCount) int {
		return cmp.Or(cmp.Compare(b.Entries, a.Entries), cmp.Compare(a.Port, b.Port), strings.Compare(a.Protocol, b.Protocol))
	})
	return slices.Clip(counts[:min(n, len(counts))])
}

func addresses(t *top[netip.Addr], n int) []Counted {
	list := make([]Counted, 0, n)
	for _, kv := range t.largest(n, netip.Addr.Compare) {
		list = append(list, Counted{kv.key, kv.count})
	}
	return list
}

// State returns how many entries of a protocol are in a state.
func (s *Summary) State(protocol, state string) uint64 {
	for _, c := range s.States {
		if c.Protocol == protocol && c.State == state {
			return c.Entries
		}
	}
	return 0
}

// Protocol returns how many entries a protocol has.
func (s *Summary) Protocol(protocol string) uint64 {
	var n uint64
	for _, c := range s.States {
		if c.Protocol == protocol {
			n += c.Entries
		}
	}
	return n
}
