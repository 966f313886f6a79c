package health

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// What an instance would have to wait for goes on to the one that replaces it:
//
//   - which upstreams were Services. One that is deleted is in no rules any more, and
//     the new instance would take it for a server outside of the cluster that does not answer.
//   - the questions of blocks that have failed over. The new instance would have to wait
//     until several misses have failed. It asks the cluster's DNS these questions at once, as
//     if they had failed here, and fails over only if they are answered.
//
// Neither needs an age: the first is a fact, and the second is tried again.
const (
	// StateName is the name of the section.
	StateName = "services"
	// StateFormat changes when the bytes mean something else.
	StateFormat = 1

	maxServices  = 256
	maxSuspected = 64
)

// handed is the content of the section.
type handed struct {
	Services []netip.Addr `json:"services,omitempty"`
	Failing  []suspected  `json:"failing,omitempty"`
}

// suspected is a block that has failed over.
type suspected struct {
	Block     string         `json:"block"`
	Questions []dns.Question `json:"questions"`
}

// WriteState writes what another process would have to wait for.
func (m *Monitor) WriteState(_ time.Time, put func([]byte) error) error {
	h := handed{Services: m.known(), Failing: m.failing.suspected()}
	h.Services = h.Services[:min(len(h.Services), maxServices)]
	h.Failing = h.Failing[:min(len(h.Failing), maxSuspected)]
	piece, err := json.Marshal(h)
	if err != nil {
		return err
	}
	return put(piece)
}

var errState = errors.New("what is known of Services is damaged")

// ReadState takes what another process has written, for these blocks. It returns how many
// Services and blocks it took.
func (m *Monitor) ReadState(blocks []Block, piece []byte) (taken int, err error) {
	var h handed
	if err := json.Unmarshal(piece, &h); err != nil {
		return 0, fmt.Errorf("%w: %w", errState, err)
	}
	if len(h.Services) > maxServices || len(h.Failing) > maxSuspected {
		return 0, fmt.Errorf("%w: too much of it", errState)
	}
	for _, s := range h.Failing {
		if len(s.Questions) != failedNames || slices.ContainsFunc(s.Questions, isNone) {
			return 0, errState
		}
	}
	for _, a := range h.Services {
		if a.IsValid() && a.Zone() == "" {
			m.see(a)
			taken++
		}
	}
	for _, s := range h.Failing {
		i := slices.IndexFunc(blocks, func(b Block) bool { return b.Label() == s.Block })
		if i >= 0 && m.failing.suspect(blocks[i], s.Questions) {
			taken++
		}
	}
	return taken, nil
}

func isNone(q dns.Question) bool {
	_, ok := dns.IsDomainName(q.Name)
	return !ok || !dns.IsFqdn(q.Name) || len(q.Name) > 4*255
}

// see records that an address was in kube-proxy's rules.
func (m *Monitor) see(a netip.Addr) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.seen == nil {
		m.seen = map[netip.Addr]bool{}
	}
	m.seen[a] = true
}

// saw reports whether an address was in kube-proxy's rules.
func (m *Monitor) saw(a netip.Addr) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.seen[a]
}

// known returns the addresses that were in kube-proxy's rules.
func (m *Monitor) known() (out []netip.Addr) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for a := range m.seen {
		out = append(out, a)
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// suspected returns the blocks that have failed over, with the questions that failed.
func (f *failing) suspected() (out []suspected) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for block, s := range f.blocks {
		if !s.over {
			continue
		}
		of := suspected{Block: block.Label()}
		for _, m := range s.asked {
			of.Questions = append(of.Questions, m.question)
		}
		out = append(out, of)
	}
	slices.SortFunc(out, func(a, b suspected) int { return strings.Compare(a.Block, b.Block) })
	return out
}

// suspect has the cluster's DNS asked whether it answers the questions, as if they had failed
// here. It returns false if misses of the block are known already.
func (f *failing) suspect(block Block, questions []dns.Question) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.recheck == nil || f.blocks[block] != nil {
		return false
	}
	s := &failures{since: time.Now().Add(-failedFor)}
	for _, q := range questions {
		s.asked = append(s.asked, failedMiss{block.Pass, q})
	}
	f.blocks[block] = s
	f.suspects.Add(1)
	f.recheck()
	return true
}
