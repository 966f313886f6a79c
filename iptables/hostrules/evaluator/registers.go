package evaluator

import (
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables"
)

// registers are the 16 32-bit registers of nf_tables, byte by byte. A byte of the other
// end's address or port is unknown, but it is not that of a particular host: a rule for
// one other host does not affect the endpoint.
type registers [64]registerByte

type registerByte struct {
	value byte
	known bool
	other bool
	// client is the offset, from 1, in the address of one of several clients; value
	// is the mask of its known bits.
	client uint8
}

// at returns the offset of a register. Registers 1 to 4 have 16 bytes each; those from
// NFT_REG32_00 on overlay them with 4 bytes each.
func (*registers) at(register uint32) int {
	if register >= unix.NFT_REG32_00 {
		return min(int(register-unix.NFT_REG32_00)*4, 63)
	}
	return min(max(int(register)-1, 0)*16, 63)
}

// store writes bytes; nil makes length bytes unknown.
func (r *registers) store(register uint32, value []byte, length int) {
	offset := r.at(register)
	for i := offset; i < len(r) && i < offset+max(length, len(value)); i++ {
		r[i].known, r[i].other, r[i].client = i-offset < len(value), false, 0
		if r[i].known {
			r[i].value = value[i-offset]
		}
	}
	// The kernel pads the last 32 bits with zeros.
	for i := offset + len(value); len(value) > 0 && i < len(r) && i%4 != 0; i++ {
		r[i].value, r[i].known, r[i].other, r[i].client = 0, true, false, 0
	}
}

// load reads bytes. It returns false if some of them are unknown.
func (r *registers) load(register uint32, length int) ([]byte, bool) {
	offset := r.at(register)
	if length <= 0 || offset+length > len(r) {
		return nil, false
	}
	out := make([]byte, length)
	for i := range out {
		if !r[offset+i].known {
			return nil, false
		}
		out[i] = r[offset+i].value
	}
	return out, true
}

// markOther marks bytes as the other end's.
func (r *registers) markOther(register uint32, length int) {
	offset := r.at(register)
	for i := offset; i < len(r) && i < offset+length; i++ {
		r[i].other = true
	}
}

// markClient marks bytes as those of a client's address from an offset on.
func (r *registers) markClient(register uint32, length, place int) {
	offset := r.at(register)
	for i := offset; i < len(r) && i < offset+length; i++ {
		r[i].client, r[i].value = uint8(place+i-offset+1), 0xff
	}
}

// isClient reports whether bytes are those of a client's address.
func (r *registers) isClient(register uint32, length int) bool {
	offset := r.at(register)
	if length <= 0 || offset+length > len(r) {
		return false
	}
	return !slices.ContainsFunc(r[offset:offset+length], func(b registerByte) bool { return b.client == 0 })
}

// loopback4 is the first byte of 127.0.0.0/8, in which no client behind a device is.
const loopback4 = 127

// equalsClient reports whether bytes of a client's address may have the wanted value for
// one of the packet's clients.
func (r *registers) equalsClient(register uint32, want []byte, p Probe) bool {
	held := r[r.at(register):][:len(want)]
	return slices.ContainsFunc(p.clients(), func(a netip.Addr) bool {
		if !a.IsValid() && p.Family() == iptables.IPv4 && held[0].client == 1 && held[0].value == 0xff && want[0] == loopback4 {
			return false // as in a rule of the kubelet that every node has
		}
		address := a.AsSlice()
		whole := true
		for i, b := range held {
			if int(b.client) <= len(address) && address[b.client-1]&b.value != want[i] {
				return false
			}
			whole = whole && b.value == 0xff
		}
		// A client whose address is unknown does not match a whole address.
		return p.cautious() || a.IsValid() || !whole || len(want) < p.Endpoint.Addr.BitLen()/8
	})
}

// other reports whether bytes are of the other end's address or port.
func (r *registers) other(register uint32, length int) bool {
	offset := r.at(register)
	for i := offset; i < len(r) && i < offset+length; i++ {
		if r[i].other {
			return true
		}
	}
	return false
}
