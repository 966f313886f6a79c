package agent

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"github.com/trackless-dns/trackless/conntrack/ledger"
	"github.com/trackless-dns/trackless/handover"
)

// State is a part of the state of this process that another process can go on with.
type State interface {
	Offers() []handover.Offer
	Wants() []handover.Want
}

// Sections are the names of all sections of the state.
var Sections = []string{"answers", ledger.StateName}

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
	if p.State != nil {
		offers = p.State.Offers()
	}
	return append(offers, handover.Offer{Section: p.flows(), Send: p.Ledger.WriteState, Last: true})
}

func (p *Agent) wants() []handover.Want {
	var wants []handover.Want
	if p.State != nil {
		wants = p.State.Wants()
	}
	return append(wants, handover.Want{Section: p.flows(), Receive: p.Ledger.ReadState})
}

// Succeed takes the state of the instance that this one replaces, if this is the first load,
// and gives the state of this process to the next one. It runs when the load's caches are
// open and its listeners are not.
func (p *Agent) Succeed(load *Load) { p.Succession.Follow(p.inForce(), load.Warm) }
