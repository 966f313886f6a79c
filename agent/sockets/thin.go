package sockets

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/internal/cbpf"
	"github.com/trackless-dns/trackless/internal/sockets"
	"github.com/trackless-dns/trackless/iptables"
)

// MaxThinned is how many sources may be thinned at a time.
const MaxThinned = 8

// Thin has the kernel drop a part of the packets of some sources before they take room in
// the buffers of the UDP listeners at the endpoints: others share these. pass is the part
// that may pass, from 0 to 1. Without sources nothing is dropped any more, nor at listeners
// that are no longer at the endpoints. It needs no capability (SO_ATTACH_FILTER, socket(7)).
func (l *UDPListeners) Thin(endpoints []iptables.Endpoint, from []netip.Addr, pass float64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var errs []error
	former := slices.DeleteFunc(slices.Clone(l.thinned), func(e iptables.Endpoint) bool { return slices.Contains(endpoints, e) })
	if len(former) > 0 {
		errs = append(errs, thin(listeningUDP(sockets.Descriptors(), former), nil, 1))
	}
	from = others(from, endpoints)
	errs = append(errs, thin(l.known(endpoints), from, pass))
	if l.thinned = nil; len(from) > 0 {
		l.thinned = slices.Clone(endpoints)
	}
	return errors.Join(errs...)
}

// others returns the addresses at which we do not listen. From those our own checks come, and
// the probes that renew the lease: without these the node would lose its cache.
func others(from []netip.Addr, endpoints []iptables.Endpoint) []netip.Addr {
	return slices.DeleteFunc(slices.Clone(from), func(a netip.Addr) bool {
		return slices.ContainsFunc(endpoints, func(e iptables.Endpoint) bool { return e.Addr == a })
	})
}

func thin(listeners []listeningSocket, from []netip.Addr, pass float64) error {
	var errs []error
	for _, l := range listeners {
		var err error
		if len(from) == 0 {
			err = detach(l.fd)
		} else {
			err = attach(l.fd, filter(from[:min(len(from), MaxThinned)], pass))
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("thin out packets to %s: %w", sockets.AddressOf(l.own), err))
		}
	}
	return errors.Join(errs...)
}

// attach puts a filter in the place of the one of a socket.
func attach(fd int, instructions []bpf.Instruction) error {
	return cbpf.Attach(fd, unix.SO_ATTACH_FILTER, instructions)
}

// detach removes the filter of a socket, if it has one.
func detach(fd int) error {
	err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// synFilter returns the program that drops all but a part of the requests for connections of
// the sources. The sockets of connections inherit it, so it lets all else pass (RFC 9293 section 3.1).
func synFilter(from []netip.Addr, pass float64) []bpf.Instruction {
	const flags, syn, ack = 13, 2, 16
	return append([]bpf.Instruction{
		bpf.LoadAbsolute{Off: flags, Size: 1},
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: syn | ack},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: syn, SkipTrue: 1},
		bpf.RetConstant{Val: math.MaxUint32},
	}, filter(from[:min(len(from), MaxThinned)], pass)...)
}

// filter returns the program that drops all but a part of the packets of the sources.
func filter(from []netip.Addr, pass float64) []bpf.Instruction {
	const whole = math.MaxUint32
	accept := bpf.RetConstant{Val: whole}
	var v4, v6 []bpf.Instruction
	// Each source is matched, and skips what follows up to the end of its section.
	for _, a := range from {
		if a = a.Unmap(); a.Is4() {
			b := a.As4()
			v4 = append(v4, bpf.JumpIf{Cond: bpf.JumpEqual, Val: binary.BigEndian.Uint32(b[:])})
			continue
		}
		b := a.As16()
		for word := range uint32(4) {
			v6 = append(v6, bpf.LoadAbsolute{Off: cbpf.Source6 + 4*word, Size: 4},
				bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: binary.BigEndian.Uint32(b[4*word:]), SkipTrue: uint8(2*(3-word)) + 1})
		}
		v6 = append(v6, bpf.Jump{})
	}
	v4 = append([]bpf.Instruction{bpf.LoadAbsolute{Off: cbpf.Source4, Size: 4}}, append(v4, accept)...)
	v6 = append(v6, accept)
	code := append([]bpf.Instruction{
		bpf.LoadAbsolute{Off: cbpf.IPVersion, Size: 1},
		bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 6, SkipTrue: uint8(len(v4))},
	}, append(v4, v6...)...)
	for i, instruction := range code {
		rest := uint8(len(code) - i - 1)
		switch j := instruction.(type) {
		case bpf.JumpIf:
			if j.Cond == bpf.JumpEqual && i > 2 {
				j.SkipTrue = rest
				code[i] = j
			}
		case bpf.Jump:
			code[i] = bpf.Jump{Skip: uint32(rest)}
		}
	}
	return append(code,
		bpf.LoadExtension{Num: bpf.ExtRand},
		bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: uint32(min(max(pass, 0), 1) * whole), SkipTrue: 1},
		accept,
		bpf.RetConstant{Val: 0},
	)
}
