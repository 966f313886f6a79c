package upstream

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/trackless-dns/trackless/handover"
)

// An instance that replaces another one knows the addresses of a name only when the
// Kubernetes API has answered, and learns that an address is dead from queries that wait for
// it. The instance before knows both. The new one takes its addresses for as long as it has
// none, and asks dead ones last until a health check of its own succeeds.
//
// What forward knows of its servers is CoreDNS's own, and stays there.

// StateName is the name of the sections.
const StateName = "upstreams"

// stateFormat changes when the bytes mean something else.
const stateFormat = 1

const (
	// maxAddresses bounds the addresses that are taken of one name.
	maxAddresses = 4096
	// maxAge bounds the age of a failure, which means nothing long before.
	maxAge = int64(time.Hour / time.Millisecond)
)

// handed is the content of the section of a name.
type handed struct {
	Addresses []netip.AddrPort `json:"addresses"` // of the Service, or its endpoints
	Failing   []failure        `json:"failing,omitempty"`
}

// failure is an address that does not answer.
type failure struct {
	Address netip.AddrPort `json:"address"`
	// Age is the time since it failed last, in milliseconds before the state was asked for.
	Age int64 `json:"age"`
}

// Handed are the upstreams of this process, for one that replaces it, or is replaced by it.
var Handed state

type state struct{}

func (n name) section() handover.Section {
	return handover.Section{Name: StateName, Fingerprint: fmt.Sprint(stateFormat, " ", n)}
}

// inUse returns the sources of this process.
func inUse() (all []*source) {
	sources.Lock()
	defer sources.Unlock()
	for _, s := range sources.all {
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b *source) int { return strings.Compare(a.name.String(), b.name.String()) })
	return all
}

// Offers implements agent.State.
func (state) Offers() (out []handover.Offer) {
	for _, s := range inUse() {
		out = append(out, handover.Offer{Section: s.name.section(), Send: s.writeState})
	}
	return out
}

// Wants implements agent.State.
func (state) Wants() (out []handover.Want) {
	for _, s := range inUse() {
		out = append(out, handover.Want{Section: s.name.section(), Receive: s.readState})
	}
	return out
}

func (s *source) writeState(asked time.Time, put func([]byte) error) error {
	s.mu.Lock()
	h := handed{Addresses: slices.Clone(s.addrs)}
	for u := range s.subscribers {
		h.Failing = append(h.Failing, u.failing(asked)...)
	}
	s.mu.Unlock()
	h.Addresses = h.Addresses[:min(len(h.Addresses), maxAddresses)]
	h.Failing = h.Failing[:min(len(h.Failing), maxAddresses)]
	piece, err := json.Marshal(h)
	if err != nil {
		return err
	}
	return put(piece)
}

var errState = errors.New("the addresses of an upstream are damaged")

// readState takes the addresses, unless there are others already, and which of them fail.
func (s *source) readState(asked time.Time, piece []byte) (taken int, err error) {
	var h handed
	if err := json.Unmarshal(piece, &h); err != nil {
		return 0, fmt.Errorf("%w: %w", errState, err)
	}
	if len(h.Addresses) > maxAddresses || len(h.Failing) > maxAddresses || slices.ContainsFunc(h.Addresses, isNone) {
		return 0, errState
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.addrs) == 0 && len(h.Addresses) > 0 {
		s.tell(h.Addresses, byPredecessor)
		taken = len(h.Addresses)
	}
	for _, f := range h.Failing {
		age := time.Duration(min(max(f.Age, 0), maxAge)) * time.Millisecond
		for u := range s.subscribers {
			u.doubt(f.Address, asked.Add(-age))
		}
	}
	return taken, nil
}

func isNone(a netip.AddrPort) bool { return !a.IsValid() || a.Addr().IsUnspecified() || a.Port() == 0 }

// failing returns the addresses that do not answer.
func (u *Upstream) failing(asked time.Time) (out []failure) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for a, t := range u.proxies {
		if at := t.failed.Load(); at != nil && t.doubt(u.maxFails) >= failed {
			out = append(out, failure{a, max(asked.Sub(*at), 0).Milliseconds()})
		}
	}
	return out
}

// doubt records that an address has failed, and checks it at once.
func (u *Upstream) doubt(a netip.AddrPort, at time.Time) {
	u.mu.Lock()
	t := u.proxies[a]
	u.mu.Unlock()
	if t == nil || t.failed.Load() != nil {
		return // it is not asked, or its failure is known
	}
	t.failed.Store(&at)
	t.check()
}
