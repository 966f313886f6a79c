// Package reread reads a connection tracking table whole. The kernel may rebuild the
// table's hash while it is dumped; the dump is then incomplete and has to be made
// again.
package reread

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"

	"github.com/trackless-dns/trackless/conntrack"
)

// Attempts is how often a table is read that is rebuilt each time.
const Attempts = 3

// A Progress is called while a long table is read.
type Progress interface {
	// Begin starts to count what, of which about total are expected.
	Begin(what string, total uint64) Counter
	// Again says that the table was rebuilt, and which attempt comes next.
	Again(err error, attempt int)
}

// A Counter counts one thing at a time.
type Counter interface {
	Step()
	Stop()
}

// Dump is conntrack.Conn.Dump.
type Dump func(conntrack.Filter, func(*conntrack.Entry) error) error

// Entries dumps until the table held still, and hands on every entry once. A
// rebuild of the table is rare, but only what was remembered all along can be
// told from what was not seen yet. After Attempts it returns an error that wraps
// conntrack.ErrInterrupted.
func Entries(dump Dump, f conntrack.Filter, fn func(*conntrack.Entry) error, p Progress) error {
	seen := newFingerprints()
	err := Until(p, func() error {
		return dump(f, func(e *conntrack.Entry) error {
			if !seen.add(e) {
				return nil
			}
			return fn(e)
		})
	})
	if errors.Is(err, conntrack.ErrInterrupted) {
		err = fmt.Errorf("gave up after %d attempts: %w", Attempts, err)
	}
	return err
}

// Until reads again while read returns conntrack.ErrInterrupted, at most Attempts
// times.
func Until(p Progress, read func() error) error {
	for attempt := 1; ; attempt++ {
		err := read()
		if attempt == Attempts || !errors.Is(err, conntrack.ErrInterrupted) {
			return err
		}
		p.Again(err, attempt+1)
	}
}

// fingerprints is a set of entries, 8 bytes each: an open-addressed table of
// hashes. Two entries with one hash are as likely as nothing that ever happens.
type fingerprints struct {
	seed  maphash.Seed
	table []uint64
	n     int
}

func newFingerprints() *fingerprints {
	return &fingerprints{seed: maphash.MakeSeed(), table: make([]uint64, 1<<10)}
}

// add puts e into the set and reports whether it is new to it.
func (s *fingerprints) add(e *conntrack.Entry) bool {
	h := s.hash(e) | 1 // 0 marks a free place
	if s.n >= len(s.table)/4*3 {
		old := s.table
		s.table = make([]uint64, 2*len(old))
		for _, h := range old {
			if h != 0 {
				s.insert(h)
			}
		}
	}
	if !s.insert(h) {
		return false
	}
	s.n++
	return true
}

// hash covers what tells entries apart; the kernel's ID alone is a hash of 32 bits.
func (s *fingerprints) hash(e *conntrack.Entry) uint64 {
	t := &e.Original
	src, dst := t.Src.As16(), t.Dst.As16()
	var b [52]byte
	copy(b[:], src[:])
	copy(b[16:], dst[:])
	binary.NativeEndian.PutUint16(b[32:], t.SrcPort)
	binary.NativeEndian.PutUint16(b[34:], t.DstPort)
	binary.NativeEndian.PutUint16(b[36:], t.ICMPID)
	binary.NativeEndian.PutUint16(b[38:], t.Zone)
	binary.NativeEndian.PutUint16(b[40:], e.Zone)
	binary.NativeEndian.PutUint32(b[42:], e.ID)
	b[46], b[47], b[48] = byte(t.Proto), t.ICMPType, t.ICMPCode
	if t.Src.Is4() {
		b[49] = 4 // As16 maps 10.0.0.1 and ::ffff:10.0.0.1 to the same
	}
	return maphash.Bytes(s.seed, b[:])
}

func (s *fingerprints) insert(h uint64) bool {
	mask := uint64(len(s.table) - 1)
	for i := h >> 1 & mask; ; i = (i + 1) & mask {
		switch s.table[i] {
		case 0:
			s.table[i] = h
			return true
		case h:
			return false
		}
	}
}
