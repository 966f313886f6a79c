package fastpath

import (
	"errors"
	"time"

	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// A Record is an answer as a fast path gives it.
type Record struct {
	// Listener is the listen address and port at which it is given, see
	// [Publisher.Listener].
	Listener uint8
	// Key is the question. Only the bit wire.DO may be set.
	Key    wire.Key
	Answer wire.Answer
	// Stored is the time at which the answer had TTL seconds to live.
	Stored time.Time
	TTL    uint32
	// Serve is the number of seconds after Stored from which on a fast path leaves
	// the query to the cache: at most TTL.
	Serve uint32
	// Class is the class under which uses are counted, see [Accountant.Class].
	Class uint16
}

// Errors of a [Sink].
var (
	// ErrTooLarge means that the fast path holds no such record: the name, the body
	// or the number of resource records is over its limits.
	ErrTooLarge = errors.New("the record is too large for the fast path")
	// ErrFull means that there is no place for the record's question.
	ErrFull = errors.New("the fast path has no place for the question")
	// ErrNoRoom means that there is no memory for the record before MakeRoom.
	ErrNoRoom = errors.New("the fast path has no memory for the record")
)

// A Sink is a fast path that holds copies of answers. Its methods are called by one
// goroutine at a time, except for MakeRoom.
type Sink interface {
	// Publish has the record answered. It changes nothing if there is a record for the
	// question with the same time Stored: that one is as current, since changes withdraw it.
	// One with another time is replaced: a denial may have expired before an older answer,
	// and nothing has changed then. It does not wait.
	Publish(*Record) error
	// Withdraw ends that, and reports whether there was such a record. When it
	// returns, no query that arrives gets the record.
	Withdraw(listener uint8, key wire.Key) bool
	// Clear withdraws all records.
	Clear()
	// Len returns the number of records.
	Len() int
	// MakeRoom makes room for records after ErrNoRoom. It waits until none of the
	// memory can still be read, calls locked to run the rest, and withdraws old
	// records then.
	MakeRoom(locked func(func())) error
	// Uses calls fn for each record that was used since the call before, with the
	// number of uses, until all parts were read. locked runs each part.
	Uses(locked func(func()), fn func(class uint16, listener uint8, key wire.Key, n uint32))
}
