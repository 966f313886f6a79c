package evaluator

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/internal/nfnl"
)

// Path is the place of an untracked packet on its path through this node.
type Path struct {
	// Hook is its hook. In and Out are the devices that the hook has; nil if they are
	// unknown.
	Hook    uint32
	In, Out *Device
	// Client is the address of the other end. If it is invalid, the address is
	// unknown; with AnyClient it can be any.
	Client    netip.Addr
	AnyClient bool
	// Clients are the clients for which AnyClient stands, if they are known. An
	// invalid address among them is a client with an unknown address.
	Clients []netip.Addr
	// Local tells that the packet is for this node itself.
	Local bool
	// Cautious takes all that the rules do not say for possible. A condition on the other
	// end may hold for it, whoever it is.
	Cautious bool
}

// Device is a device by name and index; the zero value means no device.
type Device struct {
	Name  string
	Index uint32
}

// stateUntracked is NF_CT_STATE_UNTRACKED_BIT.
const stateUntracked = 1 << 6

func (p Probe) cautious() bool { return p.Path != nil && p.Path.Cautious }

func (p Probe) client() netip.Addr {
	if p.Path == nil {
		return netip.Addr{}
	}
	return p.Path.Client
}

// device returns a property of the devices. In a hook without the device, the kernel
// loads an empty name and index 0 (nft_meta_get_eval).
func (p Probe) device(key uint32) []byte {
	if p.Path == nil || p.Path.In == nil || p.Path.Out == nil {
		return nil
	}
	switch key {
	case unix.NFT_META_IIFNAME:
		return nfnl.DeviceKey(p.Path.In.Name)
	case unix.NFT_META_OIFNAME:
		return nfnl.DeviceKey(p.Path.Out.Name)
	case unix.NFT_META_IIF:
		return nfnl.NativeUint32(p.Path.In.Index)
	case unix.NFT_META_OIF:
		return nfnl.NativeUint32(p.Path.Out.Index)
	}
	return nil
}

// fib returns the type of the destination address, if the expression loads only that: a
// packet for this node is local.
func (p Probe) fib(e nfnl.Expression) []byte {
	const daddr = unix.NFTA_FIB_F_DADDR
	if p.Path == nil || !p.Path.Local || e.Number(unix.NFTA_FIB_RESULT) != unix.NFT_FIB_RESULT_ADDRTYPE ||
		e.Number(unix.NFTA_FIB_FLAGS)&^unix.NFTA_FIB_F_PRESENT != daddr {
		return nil
	}
	return nfnl.NativeUint32(unix.RTN_LOCAL)
}

// matchesState evaluates xt_conntrack and xt_state for an untracked packet.
func (p Probe) matchesState(info []byte) Certainty {
	if p.Path == nil {
		return Maybe
	}
	// struct xt_state_info is a mask of 32 bits.
	const xtStateUntracked = 1 << 6 // IP_CT_NUMBER + 1
	if len(info) == 4 {
		return certain(binary.NativeEndian.Uint32(info)&xtStateUntracked != 0)
	}
	// Without an entry conntrack_mt checks only the state, and does not match if
	// the rule has no state.
	const stateIsUntracked = 1 << 8
	if len(info) < xtConntrackSize {
		return Maybe
	}
	if binary.NativeEndian.Uint16(info[xtConntrackMatch:])&xtConntrackState == 0 {
		return Never
	}
	mask, inverted, _ := matchedStates(info)
	return certain(mask&stateIsUntracked != 0 != inverted)
}

// struct xt_conntrack_mtinfo1 to 3 differ in the width of the masks after the flags.
const (
	xtConntrackMatch, xtConntrackInvert, xtConntrackStates = 146, 148, 150

	xtConntrackSize  = 152
	xtConntrackState = 1 << 0 // XT_CONNTRACK_STATE
)

// matchedStates reads the states of a match of xt_conntrack, whether they are inverted,
// and whether the match is only on states.
func matchedStates(info []byte) (mask uint16, inverted, only bool) {
	if len(info) < xtConntrackSize {
		return 0, false, false
	}
	mask = uint16(info[xtConntrackStates]) // revision 1
	if len(info) > xtConntrackSize+2 {
		mask = binary.NativeEndian.Uint16(info[xtConntrackStates:])
	}
	const alias = 1 << 13 // XT_CONNTRACK_STATE_ALIAS: written as -m state
	asked := binary.NativeEndian.Uint16(info[xtConntrackMatch:]) &^ alias
	return mask, binary.NativeEndian.Uint16(info[xtConntrackInvert:])&xtConntrackState != 0, asked == xtConntrackState
}

// matchesAddressType evaluates xt_addrtype on whether the packet is for this node.
func (p Probe) matchesAddressType(revision uint32, info []byte) Certainty {
	// struct xt_addrtype_info_v1 has masks of types for source and destination, and
	// flags. Revision 0 has one word for the inversion of each.
	const (
		local     = 1 << unix.RTN_LOCAL
		invertDst = 1 << 1
		otherFlag = ^uint32(1<<0 | invertDst) // the limits to a device
	)
	if p.Path == nil || !p.Path.Local || len(info) < 8 || binary.NativeEndian.Uint16(info) != 0 {
		return Maybe
	}
	inside := binary.NativeEndian.Uint16(info[2:])&local != 0
	flags := binary.NativeEndian.Uint32(info[4:])
	switch {
	case revision == 0 && len(info) >= 12:
		return certain(inside != (binary.NativeEndian.Uint32(info[8:]) != 0))
	case revision == 1 && flags&otherFlag == 0:
		return certain(inside != (flags&invertDst != 0))
	}
	return Maybe
}

// matchesPorts evaluates xt_multiport on the port of our end.
func (p Probe) matchesPorts(revision uint32, info []byte) Certainty {
	// struct xt_multiport_v1: flags, count, 15 ports, 15 flags that the next port
	// ends a range, and the inversion.
	const (
		source, destination      = 0, 1
		ports, ranges, invertion = 2, 32, 47
	)
	if p.Path == nil || revision != 1 || len(info) <= invertion {
		return Maybe
	}
	asked, ours := info[0], byte(source)
	if p.Direction == iptables.Query {
		ours = destination
	}
	if asked != ours {
		return Maybe
	}
	inside := false
	for i := 0; i < min(int(info[1]), 15); i++ {
		from := binary.NativeEndian.Uint16(info[ports+2*i:])
		to := from
		if info[ranges+i] != 0 && i < 14 {
			i++
			to = binary.NativeEndian.Uint16(info[ports+2*i:])
		}
		inside = inside || p.Endpoint.Port >= from && p.Endpoint.Port <= to
	}
	return certain(inside != (info[invertion] != 0))
}
