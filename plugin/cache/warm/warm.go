// Package warm writes the answers of an engine as bytes, and fills an engine of another
// process with them. So a process that replaces another one begins with its answers.
//
// An answer is as the store has it: packed, with its age, its uses and its mark. The
// receiver decides as after a reload: it keeps the answers that it would have stored itself,
// for no longer than it would have, and what a denial denies besides its question only if
// both store by the same rules.
//
// The package does not import CoreDNS.
package warm

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/trackless-dns/trackless/handover"
	"github.com/trackless-dns/trackless/plugin/cache/engines"
)

// Name is the name of the sections.
const Name = "answers"

// format changes when the bytes, or the packed answers in them, mean something else.
const format = 1

// pieceSize is about the size of a piece. It is small enough that the successor need not
// wait long for it.
const pieceSize = 128 << 10

// The kinds of pieces, by their first byte.
const (
	pieceRules   = iota + 1 // the rules of the predecessor, first
	pieceLayout             // of the memory of names that exist
	pieceNames              // slots of that memory
	pieceSource             // an upstream, with its number in the records that follow
	pieceRecords            // answers
	pieceFlushed            // answers were flushed meanwhile: none of those given are right
	pieceSince              // what follows came since the first time, to an engine in use
)

// section identifies an engine: it fits where the same queries come to the same plugins.
func section(s engines.State) handover.Section {
	sum := sha256.Sum256(fmt.Appendf(nil, "%d %s", format, s.Fingerprint))
	return handover.Section{Name: Name, Fingerprint: hex.EncodeToString(sum[:])}
}

// Caches are the engines of a process.
type Caches struct {
	// States returns those that are in use.
	States func() []engines.State
}

// Offers returns the engines as sections that can be given.
func (c Caches) Offers() []handover.Offer { return offers(c.States(), time.Now) }

// Wants returns the engines as sections that can be filled. They must not be in use yet.
func (c Caches) Wants() (out []handover.Want) {
	for _, s := range c.States() {
		r := &reader{state: s}
		out = append(out, handover.Want{Section: section(s), Receive: r.receive})
	}
	return out
}

func offers(states []engines.State, now func() time.Time) (out []handover.Offer) {
	for _, s := range states {
		by := func(write func(*writer) error) func(time.Time, func([]byte) error) error {
			return func(asked time.Time, put func([]byte) error) error {
				return write(&writer{state: s, asked: s.Engine.Store().Time(asked), now: now, put: put})
			}
		}
		out = append(out, handover.Offer{Section: section(s), Send: by((*writer).write), Again: by((*writer).writeSince)})
	}
	return out
}
