package reread

import (
	"encoding/binary"
	"hash/maphash"

	"github.com/trackless-dns/trackless/conntrack"
)

// A Set is a set of entries, 8 bytes each: an open-addressed table of hashes. Two
// entries with one hash are as likely as nothing that ever happens.
type Set struct {
	seed  maphash.Seed
	table []uint64
	n     int
}

// NewSet returns an empty set.
func NewSet() *Set { return &Set{seed: maphash.MakeSeed(), table: make([]uint64, 1<<10)} }

// Has reports whether e is in the set.
func (s *Set) Has(e *conntrack.Entry) bool {
	h := s.hash(e)
	mask := uint64(len(s.table) - 1)
	for i := h >> 1 & mask; s.table[i] != 0; i = (i + 1) & mask {
		if s.table[i] == h {
			return true
		}
	}
	return false
}

// Add puts e into the set and reports whether it is new to it.
func (s *Set) Add(e *conntrack.Entry) bool {
	h := s.hash(e)
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
func (s *Set) hash(e *conntrack.Entry) uint64 {
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
	return maphash.Bytes(s.seed, b[:]) | 1 // 0 marks a free place
}

func (s *Set) insert(h uint64) bool {
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
