// Package summary counts the entries of a connection tracking table, in one pass and in
// bounded memory: by address, by state and port, and how many are DNS.
package summary

import (
	"net/netip"
	"time"

	"github.com/trackless-dns/trackless/conntrack"
)

// A Collector counts entries. New makes one, Add adds each entry of a dump, and Summary
// returns the counts. It is not safe for concurrent use.
type Collector struct {
	s Summary

	states map[stateKey]uint64
	ports  map[conntrack.Protocol]*[1 << 16]uint32

	sources, destinations *top[netip.Addr]
	services              *top[Endpoint]
	servers               *top[serverKey]
	serverUnreplied       map[serverKey]uint64
	udpSources            *top[netip.Addr]
	orphans               *top[netip.Addr]

	established time.Duration
}

type stateKey struct {
	protocol conntrack.Protocol
	state    string
}

// serverKey is a DNS server in entries: the address that the client asked, and the address
// that should answer.
type serverKey struct{ asked, server netip.Addr }

// New returns an empty collector. established is the kernel's timeout of established TCP
// connections, from which the idle time of an entry is computed. 0: not known.
func New(established time.Duration) *Collector {
	return &Collector{
		states:          make(map[stateKey]uint64),
		ports:           make(map[conntrack.Protocol]*[1 << 16]uint32),
		sources:         newTop[netip.Addr](),
		destinations:    newTop[netip.Addr](),
		services:        newTop[Endpoint](),
		servers:         newTop[serverKey](),
		serverUnreplied: make(map[serverKey]uint64),
		udpSources:      newTop[netip.Addr](),
		orphans:         newTop[netip.Addr](),
		established:     established,
	}
}

const dnsPort = 53

// Add counts one entry. It does not keep e. It always returns nil, so that it can be the
// callback of a dump.
func (c *Collector) Add(e *conntrack.Entry) error {
	c.s.Entries++
	switch e.Family() {
	case conntrack.FamilyIPv4:
		c.s.IPv4++
	case conntrack.FamilyIPv6:
		c.s.IPv6++
	}
	c.states[stateKey{e.Original.Proto, e.State()}]++
	c.s.NAT.add(e.NAT())
	replied := e.Status&conntrack.StatusSeenReply != 0
	if !replied {
		c.s.Unreplied++
	}
	if e.Status&conntrack.StatusAssured != 0 {
		c.s.Assured++
	}
	if e.Has(conntrack.FieldHelper) {
		c.s.Helpers++
	}
	if e.Status&(conntrack.StatusOffload|conntrack.StatusHWOffload) != 0 {
		c.s.Offloaded++
	}
	c.sources.add(e.Original.Src)
	c.destinations.add(e.Original.Dst)
	if e.NAT()&conntrack.NATDestination != 0 {
		c.services.add(Endpoint{Protocol: e.Original.Proto, Address: e.Original.Destination()})
	}
	c.addPort(&e.Original)
	if e.IsDNS() {
		c.addDNS(e, replied)
	}
	switch e.Original.Proto {
	case conntrack.TCP:
		c.addTCP(e)
	case conntrack.UDP:
		if !replied {
			c.s.UDPUnreplied++
			c.udpSources.add(e.Original.Src)
		}
	}
	return nil
}

func (c *Collector) addPort(t *conntrack.Tuple) {
	if !t.Proto.HasPorts() || t.Proto == conntrack.GRE {
		return
	}
	ports := c.ports[t.Proto]
	if ports == nil {
		ports = new([1 << 16]uint32)
		c.ports[t.Proto] = ports
	}
	ports[t.DstPort]++
}

func (c *Collector) addDNS(e *conntrack.Entry, replied bool) {
	d := &c.s.DNS
	d.Entries++
	if e.Original.Proto == conntrack.TCP {
		d.TCP++
	} else {
		d.UDP++
	}
	if !replied {
		d.Unreplied++
	}
	if e.Original.DstPort != dnsPort && e.Original.SrcPort == dnsPort {
		d.Reversed++
		c.orphans.add(e.Original.Src)
		return
	}
	key := serverKey{e.Original.Dst, e.Reply.Src}
	c.servers.add(key)
	if !replied && (len(c.serverUnreplied) < maxKeys || c.serverUnreplied[key] > 0) {
		c.serverUnreplied[key]++
	}
}

func (c *Collector) addTCP(e *conntrack.Entry) {
	if e.TCP.State != conntrack.TCPEstablished || !e.Has(conntrack.FieldTimeout) {
		return
	}
	c.s.Established.Entries++
	if c.established == 0 {
		return
	}
	// Every packet resets the timeout, so the time that is missing is the idle time. It
	// is negative if the setting was lowered since.
	idle := c.established - e.Timeout
	if idle < 0 {
		return
	}
	if idle >= time.Hour {
		c.s.Established.IdleHour++
	}
	if idle >= 24*time.Hour {
		c.s.Established.IdleDay++
	}
}
