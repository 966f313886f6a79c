package socket

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Sockets with SO_REUSEPORT at one address are a group, of all processes. A classic BPF
// program may choose the socket for each packet by its index in the group (socket(7),
// SO_ATTACH_REUSEPORT_CBPF). The indexes change: a new socket comes last, and when one is
// closed the last takes its place (net/core/sock_reuseport.c). So a program also sends
// packets of ours to the index that they name, which tells where our sockets are.

// noSocket is an index that no socket has. The kernel chooses by a hash of the tuple then.
const noSocket = 0xffff

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

// Offsets of the source address in the IP header, relative to the network header
// (include/uapi/linux/filter.h, SKF_NET_OFF).
const (
	networkHeader = 1<<32 - 0x100000
	source4       = networkHeader + 12 // RFC 791 section 3.1
	source6       = networkHeader + 8  // RFC 8200 section 3
)

// program returns the program that sends probes where they want, and spreads queries over
// the sockets with the indexes by a hash of the source address. It leaves those of the
// node itself to the kernel: our checks come from several ports, so that they find all
// sockets of all instances.
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
	fallBack := bpf.RetConstant{Val: noSocket}
	if len(indexes) == 0 {
		return append(code, fallBack)
	}
	code = append(code, sourceHash(at)...)
	code = append(code, bpf.ALUOpConstant{Op: bpf.ALUOpMod, Val: uint32(len(indexes))})
	for i, index := range indexes {
		code = append(code,
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(i), SkipTrue: 1},
			bpf.RetConstant{Val: uint32(index)})
	}
	return append(code, fallBack)
}

// sourceHash computes a hash of the source address, and ends the program if it is the
// address of the listener.
func sourceHash(at netip.Addr) (code []bpf.Instruction) {
	var words []uint32
	offset, own := uint32(source4), at.AsSlice()
	if at.Is6() {
		offset = source6
	}
	for ; len(own) > 0; own = own[4:] {
		words = append(words, binary.BigEndian.Uint32(own))
	}
	for i, w := range words {
		// The last comparison is followed by the end, and each of the others skips it.
		skip := uint8(2*(len(words)-i) - 1)
		code = append(code,
			bpf.LoadAbsolute{Off: offset + uint32(4*i), Size: 4},
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: w, SkipTrue: skip})
	}
	code = append(code, bpf.RetConstant{Val: noSocket}, bpf.LoadConstant{Dst: bpf.RegX})
	for i := range words {
		code = append(code,
			bpf.LoadAbsolute{Off: offset + uint32(4*i), Size: 4},
			bpf.ALUOpX{Op: bpf.ALUOpXor},
			bpf.TAX{})
	}
	const spread = 0x9e3779b1 // a multiplicative hash: the upper bits depend on all
	return append(code,
		bpf.ALUOpConstant{Op: bpf.ALUOpMul, Val: spread},
		bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 16})
}

// attach attaches a program to the group of a socket.
func attach(fd int, code []bpf.Instruction) error {
	raw, err := bpf.Assemble(code)
	if err != nil {
		return fmt.Errorf("assemble the program that spreads queries over sockets: %w", err)
	}
	filter := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		filter[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	err = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]})
	if err != nil {
		return fmt.Errorf("spread queries over sockets (SO_ATTACH_REUSEPORT_CBPF): %w", err)
	}
	return nil
}

// detach removes the program of the group, whoever attached it (SO_DETACH_REUSEPORT_BPF,
// since Linux 5.3).
func detach(fd int) error {
	err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_REUSEPORT_BPF, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}
