package socket

import (
	"time"

	"github.com/trackless-dns/trackless/plugin/cache/engine"
	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// A Table tells which server block answers for a name at a listen address, as CoreDNS
// finds it: the block with the longest zone. It must not change once it is in use.
type Table struct {
	entries map[string]*Entry
	longest int // zone, in bytes of wire format
}

// Entry is what names in a zone have in common.
type Entry struct {
	// Block is the server block, nil if CoreDNS answers all queries.
	Block *Block
	// Zone is the label of the metrics for the zone.
	Zone string
}

// Block is a server block whose cached answers are given at the socket.
type Block struct {
	Engine *engine.Engine
	// Size is the largest UDP size that a client may advertise. See [fastpath.Policy].
	Size uint16
	// Denials tells that denials of names are given, too. See [fastpath.Policy].
	Denials bool
	// Hit is told of each query that is answered; nil: it need not be.
	Hit func(wire.Key)
	// Counter returns what counts queries of a kind.
	Counter func(Kind) Counter
}

// A Kind is what queries have in common that are counted together.
type Kind struct {
	Zone   string
	Type   uint16
	Rcode  int
	DO     bool
	IPv6   bool
	Denial bool
}

// Counter counts queries of one kind.
type Counter interface {
	// Add counts a query and its reply, with their sizes in bytes.
	Add(query, reply int, took time.Duration)
}

// NewTable returns a table. The zones are in wire format and lower case.
func NewTable(entries map[string]*Entry) *Table {
	t := &Table{entries: entries}
	for zone := range entries {
		t.longest = max(t.longest, len(zone))
	}
	return t
}

// of returns the entry for a name in wire format and lower case, or nil.
func (t *Table) of(name []byte) *Entry {
	for {
		if len(name) <= t.longest {
			if e := t.entries[string(name)]; e != nil {
				return e
			}
		}
		if name[0] == 0 {
			return nil
		}
		name = name[1+int(name[0]):]
	}
}

// left are the types of queries that CoreDNS answers: those for which it searches the
// block in another way (DS), or which plugins above the cache answer (RFC 8482, RFC 5936,
// RFC 1995), or which a plugin counts that searches for loops.
func left(qtype uint16) bool {
	const hinfo, ds, ixfr, axfr, anyType = 13, 43, 251, 252, 255
	switch qtype {
	case hinfo, ds, ixfr, axfr, anyType:
		return true
	}
	return false
}

// answer writes the reply to a query from the cache, and returns its length; 0 if CoreDNS
// must answer.
func (t *Table) answer(dst, msg []byte, q *wire.Query, now time.Time) (n int, e *Entry, denial bool) {
	if q.Parse(msg) != wire.Plain || left(q.Type) {
		return 0, nil, false
	}
	name := q.Key().Name()
	if isEscaped(name) {
		return 0, nil, false
	}
	e = t.of(name)
	if e == nil || e.Block == nil || q.Size > e.Block.Size {
		return 0, nil, false
	}
	n, result := e.Block.Engine.Reply(dst, msg, q, now)
	if result != engine.Success && result != engine.Denial || !e.Block.gives(rcode(dst)) {
		return 0, nil, false
	}
	return n, e, result == engine.Denial
}

// isEscaped reports whether a name has characters that are escaped in text (RFC 1035 section
// 5.1). CoreDNS does not compress a reply with such a name.
func isEscaped(name []byte) bool {
	for len(name) > 1 {
		n := 1 + int(name[0])
		for _, c := range name[1:n] {
			if escaped[c] {
				return true
			}
		}
		name = name[n:]
	}
	return false
}

var escaped = func() (e [256]bool) {
	for c := range e {
		e[c] = c <= ' ' || c > '~'
	}
	for _, c := range `."'@;()\` {
		e[c] = true
	}
	return e
}()

// gives reports whether replies with a RCODE are given. CoreDNS knows whether a failure is
// over.
func (b *Block) gives(rcode int) bool {
	const serverFailure, nameError = 2, 3
	return rcode != serverFailure && (rcode != nameError || b.Denials)
}

// rcode is the RCODE of a message (RFC 1035 section 4.1.1).
func rcode(msg []byte) int { return int(msg[3] & 15) }
