// Package policies tells behind which devices other programs' rules may treat the DNS of
// pods differently from the rest: network policies, firewalls. A query that is answered
// before netfilter sees it would pass these rules by.
package policies

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/jsimonetti/rtnetlink/v2"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/hostrules"
	"github.com/trackless-dns/trackless/iptables/route"
)

// A Reader reads other programs' rules. Its methods may be called from several
// goroutines at once, on threads of one network namespace.
type Reader struct {
	// Endpoints returns the listen addresses.
	Endpoints func() []iptables.Endpoint
	// Lists are the links and routes.
	Lists *route.Lists

	mu       sync.Mutex
	read     time.Time
	facts    facts
	filters  *hostrules.Filters // read with the facts; nil: not needed yet
	verdicts map[int]verdict    // by device
}

// readAtMost is the least time between two readings: those of all devices at once are one.
const readAtMost = 100 * time.Millisecond

// facts are what all verdicts depend on.
type facts struct {
	generation uint32
	legacy     uint64 // a sum of the legacy tables, which change without a new generation
	lists      int    // the version of the links and routes
	clients    map[uint32][]netip.Addr
	masters    map[uint32]uint32
	links      map[uint32]link
	endpoints  []iptables.Endpoint
}

type link struct{ name, kind string }

// verdict is why a device is to be left to netfilter, and what that was found from.
type verdict struct {
	generation uint32
	legacy     uint64
	device     hostrules.Device
	endpoints  []iptables.Endpoint
	why        string
}

// Why returns which rule may filter the DNS of the clients behind a device, or the empty
// string. Rules that cannot be read may filter.
func (r *Reader) Why(name string, index int) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.verdicts == nil {
		r.verdicts = map[int]verdict{}
	}
	known := r.facts.links[uint32(index)].name == name
	if !known {
		r.Lists.Renew()
	}
	if !known || time.Since(r.read) > readAtMost {
		if err := r.readFacts(); err != nil {
			return fmt.Sprintf("the rules that may filter it cannot be read: %v", err)
		}
	}
	f := &r.facts
	device, port := hostrules.Device{Name: name, Index: uint32(index), Clients: f.clients[uint32(index)]}, ""
	if index := f.masters[uint32(index)]; index != 0 {
		master := f.links[index]
		if master.kind != "bridge" {
			return fmt.Sprintf("it belongs to %s (%s), whose rules are not read", master.name, master.kind)
		}
		// Its packets arrive by the bridge. Which pod is behind which port is not known.
		port, device = name, hostrules.Device{Name: master.name, Index: index}
	}
	if v, ok := r.verdicts[index]; ok && v.generation == f.generation && v.legacy == f.legacy && sameDevice(v.device, device) && slices.Equal(v.endpoints, f.endpoints) {
		return v.why
	}
	why, err := r.before(device, port)
	if err != nil {
		return fmt.Sprintf("the rules that may filter it cannot be read: %v", err)
	}
	r.verdicts[index] = verdict{f.generation, f.legacy, device, f.endpoints, why}
	return why
}

func sameDevice(a, b hostrules.Device) bool {
	return a.Name == b.Name && a.Index == b.Index && slices.Equal(a.Clients, b.Clients)
}

// before returns which rule comes before the device's clients and us.
func (r *Reader) before(device hostrules.Device, port string) (why string, err error) {
	if r.filters == nil {
		if r.filters, err = hostrules.ReadFilters(hostrules.Config{}, r.facts.endpoints); err != nil {
			return "", err
		}
	}
	return r.filters.Before(device, port)
}

// Close ends the reading.
func (r *Reader) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.forget()
}

// forget has the rules read again, if a verdict needs them.
func (r *Reader) forget() {
	if r.filters != nil {
		_ = r.filters.Close()
		r.filters = nil
	}
}

// clientsOf returns the clients behind each device, where all of a family are known: routes to
// single addresses lead there, and none to a network.
func clientsOf(routes []route.Route) map[uint32][]netip.Addr {
	type side struct {
		device uint32
		family iptables.Family
	}
	networks := map[side]bool{}
	out := map[uint32][]netip.Addr{}
	for _, r := range routes {
		if r.To.Addr().IsLinkLocalUnicast() || r.To.Addr().IsMulticast() {
			continue
		}
		for _, h := range r.Hops {
			if a := r.To.Addr(); !r.To.IsSingleIP() {
				networks[side{h.Device, iptables.FamilyOf(a)}] = true
			} else if !slices.Contains(out[h.Device], a) {
				out[h.Device] = append(out[h.Device], a)
			}
		}
	}
	for device, clients := range out {
		out[device] = slices.DeleteFunc(clients, func(a netip.Addr) bool { return networks[side{device, iptables.FamilyOf(a)}] })
		slices.SortFunc(out[device], netip.Addr.Compare)
	}
	return out
}

// readFacts reads what may have changed since the last reading.
func (r *Reader) readFacts() (err error) {
	f := r.facts
	f.endpoints = r.Endpoints()
	// The generation and the sum are read first, so that a later change is noticed.
	if f.generation, err = hostrules.Generation(hostrules.Config{}); err != nil {
		return err
	}
	if f.legacy, err = hostrules.LegacySum(hostrules.Config{}); err != nil {
		return err
	}
	links, routes, version, err := r.Lists.Read()
	if err != nil {
		return err
	}
	if f.lists != version {
		f.lists, f.clients = version, clientsOf(routes)
		f.links, f.masters = linksOf(links)
		for index := range r.verdicts {
			if f.links[uint32(index)].name == "" {
				delete(r.verdicts, index)
			}
		}
	}
	r.forget()
	r.facts, r.read = f, time.Now()
	return nil
}

// linksOf returns the links, and their masters, by index.
func linksOf(list []rtnetlink.LinkMessage) (links map[uint32]link, masters map[uint32]uint32) {
	links, masters = map[uint32]link{}, map[uint32]uint32{}
	for _, l := range list {
		known := link{name: l.Attributes.Name}
		if l.Attributes.Info != nil {
			known.kind = l.Attributes.Info.Kind
		}
		links[l.Index] = known
		if l.Attributes.Master != nil {
			masters[l.Index] = *l.Attributes.Master
		}
	}
	return links, masters
}
