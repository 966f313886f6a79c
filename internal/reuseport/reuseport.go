// Package reuseport chooses which of the sockets at one address get what clients send.
//
// Sockets with SO_REUSEPORT at one address are a group, of all processes of a user. A classic
// BPF program may choose the socket by its index in the group: for each packet over UDP, and
// for each new connection over TCP (socket(7), SO_ATTACH_REUSEPORT_CBPF). It needs no
// capability. A new socket comes last, and when one is closed the last takes its place
// (net/core/sock_reuseport.c).
package reuseport

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/internal/cbpf"
)

// None is an index that no socket has. The kernel chooses by a hash of the tuple then.
const None = 0xffff

// Reached is how many sockets of an address are reached from the address itself: what comes
// from a port goes to the index in its lowest bits. So our checks, from Reached ports, find
// the sockets of each instance.
const Reached = 16

// BySource spreads clients over the sockets with the indexes by a hash of the source address.
// Those that ask from the very address that they ask choose by their port, see Reached.
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

// sourceHash computes a hash of the source address, or returns the index in the port if it is
// the destination as well. Sockets at the wildcard address of IPv6 get both families.
func sourceHash(at netip.Addr) (code []bpf.Instruction) {
	v4, v6 := hashOf(cbpf.Source4, 1, cbpf.Port4), hashOf(cbpf.Source6, 4, cbpf.Port6)
	switch {
	case at.Is4():
		code = v4
	case at.IsUnspecified():
		v4 = append(v4, bpf.Jump{Skip: uint32(len(v6))})
		code = append([]bpf.Instruction{
			bpf.LoadAbsolute{Off: cbpf.IPVersion, Size: 1},
			bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 4},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: 6, SkipTrue: uint8(len(v4))},
		}, append(v4, v6...)...)
	default:
		code = v6
	}
	const spread = 0x9e3779b1 // a multiplicative hash: the upper bits depend on all
	return append(code,
		bpf.ALUOpConstant{Op: bpf.ALUOpMul, Val: spread},
		bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 16})
}

// hashOf combines the words of a source address. The destination follows it in the header.
func hashOf(source, words, port uint32) (code []bpf.Instruction) {
	for i := range words {
		// The last comparison is followed by three instructions to the end, and each of the
		// others skips them.
		code = append(code,
			bpf.LoadAbsolute{Off: source + 4*i, Size: 4},
			bpf.TAX{},
			bpf.LoadAbsolute{Off: source + 4*(words+i), Size: 4},
			bpf.JumpIfX{Cond: bpf.JumpNotEqual, SkipTrue: uint8(4*(words-1-i) + 3)})
	}
	code = append(code,
		bpf.LoadAbsolute{Off: port, Size: 2},
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: Reached - 1},
		bpf.RetA{},
		bpf.LoadConstant{Dst: bpf.RegX})
	for i := range words {
		code = append(code,
			bpf.LoadAbsolute{Off: source + 4*i, Size: 4},
			bpf.ALUOpX{Op: bpf.ALUOpXor},
			bpf.TAX{})
	}
	return code
}

// Attach attaches a program to the group of a socket, in the place of another.
func Attach(fd int, code []bpf.Instruction) error {
	if err := cbpf.Attach(fd, unix.SO_ATTACH_REUSEPORT_CBPF, code); err != nil {
		return fmt.Errorf("choose the socket that gets what clients send (SO_ATTACH_REUSEPORT_CBPF): %w", err)
	}
	return nil
}

// Detach has no program choose in the group, whoever attached one.
func Detach(fd int) error { return detach(fd, unix.SO_DETACH_REUSEPORT_BPF) }

func detach(fd, option int) error {
	err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, 0)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.ENOPROTOOPT): // before Linux 5.3
		return Attach(fd, Any(nil))
	}
	return err
}
