package evaluator

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/internal/nfnl"
)

// Way is where an untracked packet is on its way through this node.
type Way struct {
	// Hook is where it is; In and Out are the devices that the hook knows, nil
	// if only the kind of way is known.
	Hook    uint32
	In, Out *Device
	// Client is the address of the end that is not ours; invalid, it is
	// nobody's in particular, or with AnyClient any.
	Client    netip.Addr
	AnyClient bool
	// Clients are all that AnyClient stands for, where they are known; an invalid
	// address among them is nobody's in particular.
	Clients []netip.Addr
	// Local tells that the packet is for this node itself.
	Local bool
}

// Device is a device by name and index; the zero value is none.
type Device struct {
	Name  string
	Index uint32
}

// stateUntracked is NF_CT_STATE_UNTRACKED_BIT.
const stateUntracked = 1 << 6

func (p Probe) client() netip.Addr {
	if p.Way == nil {
		return netip.Addr{}
	}
	return p.Way.Client
}

// device is what the kernel knows of the devices: that of a hook that has none
// is without name and number (nft_meta_get_eval).
func (p Probe) device(key uint32) []byte {
	if p.Way == nil || p.Way.In == nil || p.Way.Out == nil {
		return nil
	}
	switch key {
	case unix.NFT_META_IIFNAME:
		return nfnl.DeviceKey(p.Way.In.Name)
	case unix.NFT_META_OIFNAME:
		return nfnl.DeviceKey(p.Way.Out.Name)
	case unix.NFT_META_IIF:
		return nfnl.NativeUint32(p.Way.In.Index)
	case unix.NFT_META_OIF:
		return nfnl.NativeUint32(p.Way.Out.Index)
	}
	return nil
}

// fib is the type of the destination's address, if that is all that is asked
// for: what arrives for us is local.
func (p Probe) fib(e nfnl.Expression) []byte {
	const daddr = unix.NFTA_FIB_F_DADDR
	if p.Way == nil || !p.Way.Local || e.Number(unix.NFTA_FIB_RESULT) != unix.NFT_FIB_RESULT_ADDRTYPE ||
		e.Number(unix.NFTA_FIB_FLAGS)&^unix.NFTA_FIB_F_PRESENT != daddr {
		return nil
	}
	return nfnl.NativeUint32(unix.RTN_LOCAL)
}

// matchesState evaluates xt_conntrack and xt_state for an untracked packet.
func (p Probe) matchesState(info []byte) Certainty {
	if p.Way == nil {
		return Maybe
	}
	// struct xt_state_info is a mask of 32 bits.
	const xtStateUntracked = 1 << 6 // IP_CT_NUMBER + 1
	if len(info) == 4 {
		return certain(binary.NativeEndian.Uint32(info)&xtStateUntracked != 0)
	}
	// Without an entry conntrack_mt looks at the state alone and does not match
	// what asks for anything else only.
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

// struct xt_conntrack_mtinfo1 to 3 differ in the width of the masks behind the
// flags.
const (
	xtConntrackMatch, xtConntrackInvert, xtConntrackStates = 146, 148, 150

	xtConntrackSize  = 152
	xtConntrackState = 1 << 0 // XT_CONNTRACK_STATE
)

// matchedStates reads which states a match of xt_conntrack asks for, whether for
// all but these, and whether for nothing else.
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

// matchesAddressType evaluates xt_addrtype where it asks whether the packet is
// for this node.
func (p Probe) matchesAddressType(revision uint32, info []byte) Certainty {
	// struct xt_addrtype_info_v1: masks of types for source and destination,
	// and flags; revision 0 has a word each for their inversion.
	const (
		local     = 1 << unix.RTN_LOCAL
		invertDst = 1 << 1
		otherFlag = ^uint32(1<<0 | invertDst) // limits to a device
	)
	if p.Way == nil || !p.Way.Local || len(info) < 8 || binary.NativeEndian.Uint16(info) != 0 {
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

// matchesPorts evaluates xt_multiport as far as it asks for our end's port.
func (p Probe) matchesPorts(revision uint32, info []byte) Certainty {
	// struct xt_multiport_v1: flags, count, 15 ports, 15 marks that the next
	// port ends a range, and whether all is inverted.
	const (
		source, destination      = 0, 1
		ports, ranges, invertion = 2, 32, 47
	)
	if p.Way == nil || revision != 1 || len(info) <= invertion {
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
