package socket

import (
	"crypto/rand"
	"encoding/binary"
	"net/netip"

	"golang.org/x/net/bpf"

	"github.com/trackless-dns/trackless/internal/reuseport"
)

// The indexes of sockets in their group change when others come and go (package reuseport).
// So a program also sends packets of ours to the index that they name, which tells where our
// sockets are.

// probeLen is the length of a probe: the header of a DNS message, then the index and
// padding. It is a response, so that a DNS server which gets it drops it.
const probeLen = 16

// A probe is a packet to the socket with an index. Its first bytes are a secret.
type probe [probeLen]byte

func newProbe() (p probe) {
	_, _ = rand.Read(p[:])      // never fails
	p[2], p[3] = 0x80|p[2]&7, 0 // QR (RFC 1035 section 4.1.1)
	p[12], p[13] = 0, 0         // the index
	p[14], p[15] = 0, 0         // padding
	return p
}

// to returns the probe for an index.
func (p probe) to(index int) probe {
	binary.BigEndian.PutUint16(p[12:], uint16(index))
	return p
}

// index returns the index of a packet, if it is a probe.
func (p *probe) index(msg []byte) (index int, ok bool) {
	if len(msg) != probeLen || string(msg[:12]) != string(p[:12]) {
		return 0, false
	}
	return int(binary.BigEndian.Uint16(msg[12:])), true
}

// program returns the program that sends probes where they want, and spreads queries over
// the sockets with the indexes.
func (p *probe) program(at netip.Addr, indexes []int) []bpf.Instruction {
	word := func(i int) uint32 { return binary.BigEndian.Uint32(p[i:]) }
	code := []bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtLen},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: probeLen, SkipTrue: 8},
		bpf.LoadAbsolute{Off: 0, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: word(0), SkipTrue: 6},
		bpf.LoadAbsolute{Off: 4, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: word(4), SkipTrue: 4},
		bpf.LoadAbsolute{Off: 8, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: word(8), SkipTrue: 2},
		bpf.LoadAbsolute{Off: 12, Size: 2},
		bpf.RetA{},
	}
	return append(code, reuseport.BySource(at, indexes)...)
}
