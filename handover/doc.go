// Package handover gives the state of one process to the next one on the same node, over a
// unix socket with an abstract name.
//
// Two containers that share only the network of the host can reach each other that way, and
// so can every other process there. So both ends must be the same user, and must prove that
// they know a key. The key stands where only CAP_NET_ADMIN can read it (see package nftables).
// Each frame has a code that is made with it, so that nobody between the two can change one.
//
// The state has sections. A section fits if name and fingerprint are equal on both ends:
// the fingerprint stands for the format and for everything on which the content depends. A
// section that does not fit, or that is damaged, is left out, and the others are taken.
//
// The order on the wire:
//
//	successor    hello: magic, version, nonce
//	predecessor  hello: magic, version, nonce
//	successor    frame with the sections that it wants
//	predecessor  for each of them that it has: a frame that begins it, frames with its
//	             content, a frame that ends it; then a frame that ends the state
//	predecessor  with Request.Last, when it is about to end, and when it ends: the same for
//	             the sections that have changed since
//
// Ages need no common clock. The successor notes the time before it asks, and the
// predecessor notes it when the question has arrived, which is later. Each age counts from
// there. So an answer is never younger for the successor than it is for the predecessor,
// and it is older by the time that the question takes.
package handover

import "time"

// Version is the version of the protocol. A successor takes nothing from a predecessor of
// another one.
const Version = 1

const (
	// MaxContent is the largest content of a frame in bytes.
	MaxContent = 1 << 20
	// maxRequest limits the frame with the request.
	maxRequest = 64 << 10
	// helloTime is how long the other end may take for its hello and its request.
	helloTime = time.Second
	// maxServed is the number of connections at a time.
	maxServed = 32
	// maxTaking is the number of successors that are given the state at a time. Each
	// needs memory for a part of it.
	maxTaking = 4
)

// Section identifies a part of the state.
type Section struct {
	Name        string `json:"name"`
	Fingerprint string `json:"fingerprint"`
}

// Offer is a section that a process can give.
type Offer struct {
	Section
	// Send calls put with the content, piece by piece. A piece has at most MaxContent
	// bytes, and is not used after put returns. put waits for the successor: no lock may
	// be held meanwhile. Ages count from the time asked.
	Send func(asked time.Time, put func(piece []byte) error) error
	// Last: it is given again when the process ends.
	Last bool
	// Again gives what came since, when the process is about to end. nil: nothing.
	Again func(asked time.Time, put func(piece []byte) error) error
}

// Want is a section that a process wants.
type Want struct {
	Section
	// Receive takes one piece of the content, and returns how many answers, flows or the
	// like it took from it. Ages count from the time asked. It must not keep the piece.
	Receive func(asked time.Time, piece []byte) (taken int, err error)
}

// Result says what became of a section.
type Result string

// The results.
const (
	Taken   Result = "taken"   // whole
	Partial Result = "partial" // the time was over, or the predecessor ended: the pieces so far count
	Foreign Result = "foreign" // the predecessor has none with this fingerprint
	Damaged Result = "damaged" // it could not be read
)

// Results has all results.
var Results = []Result{Taken, Partial, Foreign, Damaged}

// Outcome is what became of a section that was wanted.
type Outcome struct {
	Section
	Result Result
	Items  int // answers, flows or the like
	Bytes  int
	Took   time.Duration
	// Reason is why it was left out, or not taken whole.
	Reason error
}

// request is what a successor asks for.
type request struct {
	Sections []Section `json:"sections"`
	// Last: the successor waits for the sections that are given when the process ends.
	Last bool `json:"last,omitempty"`
}

// begin begins a section.
type begin struct {
	Index int    `json:"index"` // in the sections of the request
	Error string `json:"error,omitempty"`
}
