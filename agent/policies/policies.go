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

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/hostrules"
	"github.com/trackless-dns/trackless/iptables/legacy"
	"github.com/trackless-dns/trackless/iptables/route"
)

// A Reader reads other programs' rules. Its methods may be called from several
// goroutines at once, on threads of one network namespace.
type Reader struct {
	// Endpoints returns the listen addresses.
	Endpoints func() []iptables.Endpoint

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
	legacy     bool // tables that change without an announcement
	clients    map[uint32][]netip.Addr
	masters    map[uint32]uint32
	links      map[uint32]link
	endpoints  []iptables.Endpoint
}

type link struct{ name, kind string }

// verdict is why a device is to be left to netfilter, and what that was found from.
type verdict struct {
	generation uint32
	read       time.Time // zero: without legacy tables it stays until the generation changes
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
	if time.Since(r.read) > readAtMost || r.facts.links[uint32(index)].name != name {
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
	known, ok := r.verdicts[index]
	if ok && known.generation == f.generation && (known.read.IsZero() && !f.legacy || known.read.Equal(r.read)) && sameDevice(known.device, device) &&
		slices.Equal(known.endpoints, f.endpoints) {
		return known.why
	}
	why, err := r.before(device, port)
	if err != nil {
		return fmt.Sprintf("the rules that may filter it cannot be read: %v", err)
	}
	v := verdict{generation: f.generation, device: device, endpoints: f.endpoints, why: why}
	if f.legacy {
		v.read = r.read
	}
	r.verdicts[index] = v
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

func (r *Reader) readFacts() (err error) {
	f := facts{endpoints: r.Endpoints(), masters: map[uint32]uint32{}, links: map[uint32]link{}}
	// The generation is read first, so that a later change is noticed.
	if f.generation, err = hostrules.Generation(hostrules.Config{}); err != nil {
		return err
	}
	if f.legacy, err = legacy.HasTables(legacy.Config{}); err != nil {
		return err
	}
	routes, err := route.List(0)
	if err != nil {
		return err
	}
	f.clients = clientsOf(routes)
	links, err := route.Links()
	if err != nil {
		return err
	}
	for _, l := range links {
		known := link{name: l.Attributes.Name}
		if l.Attributes.Info != nil {
			known.kind = l.Attributes.Info.Kind
		}
		f.links[l.Index] = known
		if l.Attributes.Master != nil {
			f.masters[l.Index] = *l.Attributes.Master
		}
	}
	for index := range r.verdicts {
		if f.links[uint32(index)].name == "" {
			delete(r.verdicts, index)
		}
	}
	r.forget()
	r.facts, r.read = f, time.Now()
	return nil
}
