package agent

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"
	"time"

	"github.com/trackless-dns/trackless/agent/health"
	"github.com/trackless-dns/trackless/agent/names"
	"github.com/trackless-dns/trackless/conntrack/ledger"
	"github.com/trackless-dns/trackless/handover"
)

// State is a part of the state of this process that another process can go on with.
type State interface {
	Offers() []handover.Offer
	Wants() []handover.Want
}

// Caches are the caches of this process.
type Caches interface {
	// Hottest returns the names that are asked most, hottest first, at most so many.
	Hottest(limit int) []names.Name
	// An instance without a predecessor asks for the names of one that is gone.
	names.Asker
}

// answers is the section of each cache.
const answers = "answers"

// Sections are the names of all sections of the state.
var Sections = []string{answers, "upstreams", ledger.StateName, health.StateName}

// monitored is the section of the monitor. It fits everywhere: who takes it checks what it
// needs of it.
var monitored = handover.Section{Name: health.StateName, Fingerprint: strconv.Itoa(health.StateFormat)}

// flows is the section of the ledger. It fits where the same endpoints are served: another
// instance beside this one, for other endpoints, goes on counting its flows itself.
func (p *Agent) flows() handover.Section {
	section := handover.Section{Name: ledger.StateName}
	if load := p.serving.Load(); load != nil {
		sum := sha256.Sum256(fmt.Append(nil, ledger.StateFormat, load.Plan.Normalize().Listen))
		section.Fingerprint = hex.EncodeToString(sum[:])
	}
	return section
}

// offers returns what this process gives to the one that replaces it. It goes on noting
// flows until it ends, so it gives them again then.
func (p *Agent) offers() []handover.Offer {
	var offers []handover.Offer
	for _, s := range p.States {
		offers = append(offers, s.Offers()...)
	}
	return append(offers,
		handover.Offer{Section: p.flows(), Send: p.Ledger.WriteState, Last: true},
		handover.Offer{Section: monitored, Send: p.Health.WriteState})
}

func (p *Agent) wants() []handover.Want {
	var wants []handover.Want
	for _, s := range p.States {
		wants = append(wants, s.Wants()...)
	}
	return append(wants,
		handover.Want{Section: p.flows(), Receive: p.Ledger.ReadState},
		handover.Want{Section: monitored, Receive: func(_ time.Time, piece []byte) (int, error) {
			load := p.serving.Load()
			if load == nil {
				return 0, nil
			}
			return p.Health.ReadState(load.Server.Blocks(), piece)
		}})
}

// Succeed takes the state of the instance that this one replaces, if this is the first load,
// and gives the state of this process to the next one. It runs when all plugins of the load have
// started, and its listeners are not open.
func (p *Agent) Succeed(load *Load) { p.Succession.Follow(p.inForce(), load.Warm) }

// Recall asks for the names that the instance before asked most, if this is the first load and
// there was no predecessor to take all answers from. From then on the names are written. It
// runs after Succeed.
func (p *Agent) Recall(load *Load) {
	if !p.recallBegun.Swap(true) && load.Names != "" && p.Caches != nil && !p.tookAnswers() {
		f := names.Recall(load.Names, p.Caches, p.log)
		p.recalled.Store(&f)
	}
	p.names.Follow(load.Names)
}

// Recalled returns what became of the names of the instance before.
func (p *Agent) Recalled() names.Figures {
	if f := p.recalled.Load(); f != nil {
		return *f
	}
	return names.Figures{}
}

// tookAnswers reports whether this process has all answers of a predecessor.
func (p *Agent) tookAnswers() bool {
	took := false
	for _, o := range p.Succession.Stats().Sections {
		if o.Name != answers {
			continue
		}
		if o.Result != handover.Taken {
			return false
		}
		took = true
	}
	return took
}

// hottest returns the names that are asked most.
func (p *Agent) hottest(limit int) []names.Name {
	if p.Caches == nil {
		return nil
	}
	return p.Caches.Hottest(limit)
}
