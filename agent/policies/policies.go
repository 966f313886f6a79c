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

	"github.com/trackless-dns/trackless/agent/devices"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/hostrules"
	"github.com/trackless-dns/trackless/iptables/legacy"
)

// A Reader reads other programs' rules. Its methods may be called from several
// goroutines at once, on threads of one network namespace.
type Reader struct {
	// Endpoints returns the listen addresses.
	Endpoints func() []iptables.Endpoint

	mu       sync.Mutex
	read     time.Time
	facts    facts
	verdicts map[int]verdict // by device
}

// readAtMost is the least time between two readings.
const readAtMost = 500 * time.Millisecond

// facts are what all verdicts depend on.
type facts struct {
	generation uint32
	legacy     bool // tables that change without an announcement
	clients    map[uint32][]netip.Addr
	masters    map[uint32]uint32
	names      map[uint32]string
	endpoints  []iptables.Endpoint
}

// verdict is why a device is to be left to netfilter, and what that was found from.
type verdict struct {
	generation uint32
	read       time.Time // zero: it stays until the generation changes
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
	if time.Since(r.read) > readAtMost || r.facts.names[uint32(index)] != name {
		if err := r.readFacts(); err != nil {
			return fmt.Sprintf("the rules that may filter it cannot be read: %v", err)
		}
	}
	f := &r.facts
	device, port := hostrules.Device{Name: name, Index: uint32(index), Clients: f.clients[uint32(index)]}, ""
	if master := f.masters[uint32(index)]; master != 0 {
		port = name
		device = hostrules.Device{Name: f.names[master], Index: master}
	}
	known, ok := r.verdicts[index]
	if ok && known.generation == f.generation && (known.read.IsZero() || known.read.Equal(r.read)) && sameDevice(known.device, device) &&
		slices.Equal(known.endpoints, f.endpoints) {
		return known.why
	}
	why, err := hostrules.Filtering(hostrules.Config{}, f.endpoints, device, port)
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

func (r *Reader) readFacts() (err error) {
	f := facts{endpoints: r.Endpoints(), masters: map[uint32]uint32{}, names: map[uint32]string{}}
	// The generation is read first, so that a later change is noticed.
	if f.generation, err = hostrules.Generation(hostrules.Config{}); err != nil {
		return err
	}
	for _, family := range []iptables.Family{iptables.IPv4, iptables.IPv6} {
		names, err := legacy.Names(legacy.Config{}, family)
		if err != nil {
			return err
		}
		f.legacy = f.legacy || len(names) > 0
	}
	if f.clients, err = devices.ClientsByDevice(); err != nil {
		return err
	}
	links, err := devices.List()
	if err != nil {
		return err
	}
	for _, l := range links {
		f.names[l.Index] = l.Attributes.Name
		if l.Attributes.Master != nil {
			f.masters[l.Index] = *l.Attributes.Master
		}
	}
	for index := range r.verdicts {
		if f.names[uint32(index)] == "" {
			delete(r.verdicts, index)
		}
	}
	r.facts, r.read = f, time.Now()
	return nil
}
