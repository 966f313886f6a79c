// Package reuseport chooses which of the sockets at one address get what clients send.
//
// Sockets with SO_REUSEPORT at one address are a group, of all processes of a user. A classic
// BPF program may choose the socket by its index in the group: for each packet over UDP, and
// for each new connection over TCP (socket(7), SO_ATTACH_REUSEPORT_CBPF). It needs no
// capability. A new socket comes last, and when one is closed the last takes its place
// (net/core/sock_reuseport.c).
package reuseport

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// None is an index that no socket has. The kernel chooses by a hash of the tuple then.
const None = 0xffff

// Offsets of the source address in the IP header, relative to the network header
// (include/uapi/linux/filter.h, SKF_NET_OFF).
const (
	networkHeader = 1<<32 - 0x100000
	source4       = networkHeader + 12 // RFC 791 section 3.1
	source6       = networkHeader + 8  // RFC 8200 section 3
)

// BySource spreads clients over the sockets with the indexes by a hash of the source address.
// It leaves those with the listen address itself to the kernel: our checks come from several
// ports, so that they find all sockets of all instances.
func BySource(at netip.Addr, indexes []int) []bpf.Instruction {
	if len(indexes) == 0 {
		return []bpf.Instruction{bpf.RetConstant{Val: None}}
	}
	return append(sourceHash(at), choose(indexes)...)
}

// Any spreads all that comes over the sockets with the indexes.
func Any(indexes []int) []bpf.Instruction {
	if len(indexes) == 0 {
		return []bpf.Instruction{bpf.RetConstant{Val: None}}
	}
	return append([]bpf.Instruction{bpf.LoadExtension{Num: bpf.ExtRand}}, choose(indexes)...)
}

// choose returns the index that belongs to the number in A.
func choose(indexes []int) []bpf.Instruction {
	code := []bpf.Instruction{bpf.ALUOpConstant{Op: bpf.ALUOpMod, Val: uint32(len(indexes))}}
	for i, index := range indexes {
		code = append(code,
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(i), SkipTrue: 1},
			bpf.RetConstant{Val: uint32(index)})
	}
	return append(code, bpf.RetConstant{Val: None})
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
	code = append(code, bpf.RetConstant{Val: None}, bpf.LoadConstant{Dst: bpf.RegX})
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

// Attach attaches a program to the group of a socket, in the place of another.
func Attach(fd int, code []bpf.Instruction) error {
	raw, err := bpf.Assemble(code)
	if err != nil {
		return fmt.Errorf("assemble the program that chooses sockets: %w", err)
	}
	filter := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		filter[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	err = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]})
	if err != nil {
		return fmt.Errorf("choose the socket that gets what clients send (SO_ATTACH_REUSEPORT_CBPF): %w", err)
	}
	return nil
}

// Detach removes the program of the group, whoever attached it (SO_DETACH_REUSEPORT_BPF,
// since Linux 5.3).
func Detach(fd int) error {
	err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_REUSEPORT_BPF, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}
