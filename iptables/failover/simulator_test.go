package failover

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/internal/nfnl"
	"github.com/trackless-dns/trackless/iptables/internal/tracetest"
)

// Tracking is the conntrack state of a packet. The zero value is a packet in the
// original direction of a flow in the default zone, or one that conntrack has
// not seen yet.
type Tracking struct {
	Untracked bool
	Invalid   bool   // conntrack refused it
	Reply     bool   // it goes against the direction of the flow's first packet
	Zone      uint16 // of the flow's original direction
}

// Result is what a chain of the failover table did to a packet.
type Result struct {
	Src, Dst    netip.AddrPort
	Tracking    Tracking
	Masqueraded bool
	Dropped     bool

	rewritten bool
	counted   string // the named counter, empty for none
}

// String returns the word that tests use, and the destination or source of the packet
// if the chain rewrote it.
func (r Result) String() string {
	switch {
	case r.Dropped:
		return "dropped"
	case r.Masqueraded:
		return "masqueraded"
	case r.rewritten:
		return fmt.Sprintf("rewritten %s > %s zone %d", r.Src, r.Dst, r.Tracking.Zone)
	case r.Tracking.Untracked:
		return "untracked"
	}
	return "tracked"
}

// traceFailover sends a packet through one chain of the table: prerouting, output,
// input, postrouting or masquerading. It runs the same expressions that Install sends
// to the kernel.
func traceFailover(chains []failoverChain, name string, p tracetest.Packet, ct Tracking) (Result, error) {
	m := machine{proto: p.Proto, device: p.Device, ct: ct, out: Result{Tracking: ct}}
	if p.Dst.Addr().Is4() {
		m.network, m.saddr, m.daddr = make([]byte, 20), 12, 16
	} else {
		m.network, m.saddr, m.daddr = make([]byte, 40), 8, 24
	}
	copy(m.network[m.saddr:], p.Src.Addr().AsSlice())
	copy(m.network[m.daddr:], p.Dst.Addr().AsSlice())
	m.transport = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, p.Src.Port()), p.Dst.Port())
	if err := m.walk(chains, name); err != nil {
		return Result{}, err
	}
	src, _ := netip.AddrFromSlice(m.network[m.saddr:m.daddr])
	dst, _ := netip.AddrFromSlice(m.network[m.daddr : 2*m.daddr-m.saddr])
	m.out.Src, m.out.Dst = netip.AddrPortFrom(src, p.Src.Port()), netip.AddrPortFrom(dst, p.Dst.Port())
	m.out.Tracking = m.ct
	return m.out, nil
}

// walk runs a chain, and the chains that it jumps to.
func (m *machine) walk(chains []failoverChain, name string) error {
	for _, c := range chains {
		if c.name != name {
			continue
		}
		for _, r := range c.rules {
			m.jump = ""
			err := m.rule(r)
			if err != nil {
				return fmt.Errorf("chain %s, rule %q: %w", name, r.text, err)
			}
			if m.jump != "" {
				err = m.walk(chains, m.jump)
			}
			if m.returned {
				m.returned = false
				return nil
			}
			if err != nil || m.ended {
				return err
			}
		}
	}
	return nil
}

// machine is the part of the kernel's nf_tables machine (nft_do_chain of
// net/netfilter/nf_tables_core.c) that the failover table needs.
type machine struct {
	network, transport []byte
	saddr, daddr       int // offsets in network
	proto              iptables.Proto
	device             string
	ct                 Tracking

	register []byte // NFT_REG_1
	ended    bool   // by a verdict
	jump     string // where the last rule leads
	returned bool   // to the chain before
	out      Result
}

// rule runs a rule up to the first expression that does not match.
func (m *machine) rule(r failoverRule) error {
	encoded, err := r.expressions()
	if err != nil {
		return err
	}
	exprs, err := netlink.UnmarshalAttributes(encoded)
	if err != nil {
		return err
	}
	for _, e := range exprs {
		outer, err := attributes(e.Data)
		if err != nil {
			return err
		}
		data, err := attributes(outer[unix.NFTA_EXPR_DATA])
		if err != nil {
			return err
		}
		goOn, err := m.run(text(outer[unix.NFTA_EXPR_NAME]), data)
		if err != nil || !goOn {
			return err
		}
	}
	return nil
}

// run runs one expression and reports whether the rule goes on.
func (m *machine) run(name string, data attributeMap) (goOn bool, err error) {
	switch name {
	case "meta":
		return true, m.meta(nfnl.Uint32(data[unix.NFTA_META_KEY]))
	case "ct":
		return true, m.conntrack(nfnl.Uint32(data[unix.NFTA_CT_KEY]), data[unix.NFTA_CT_SREG] != nil)
	case "payload":
		return true, m.payload(data)
	case "bitwise":
		mask, err := dataValue(data[unix.NFTA_BITWISE_MASK])
		if err != nil || len(mask) != len(m.register) {
			return false, fmt.Errorf("a mask of %d bytes for %d: %w", len(mask), len(m.register), err)
		}
		for i := range mask {
			m.register[i] &= mask[i]
		}
		return true, nil
	case "cmp":
		value, err := dataValue(data[unix.NFTA_CMP_DATA])
		equal := bytes.Equal(value, m.register)
		return equal == (nfnl.Uint32(data[unix.NFTA_CMP_OP]) == unix.NFT_CMP_EQ), err
	case "immediate":
		return true, m.immediate(data[unix.NFTA_IMMEDIATE_DATA])
	case "objref":
		m.out.counted = text(data[unix.NFTA_OBJREF_IMM_NAME])
		return true, nil
	case "masq":
		m.out.Masqueraded, m.ended = true, true
		return false, nil
	}
	return false, fmt.Errorf("no expression %q is known here", name)
}

func (m *machine) meta(key uint32) error {
	switch key {
	case unix.NFT_META_NFPROTO:
		m.register = []byte{unix.NFPROTO_IPV6}
		if len(m.network) == 20 {
			m.register = []byte{unix.NFPROTO_IPV4}
		}
	case unix.NFT_META_L4PROTO:
		m.register = []byte{byte(m.proto)}
	case unix.NFT_META_IIFNAME:
		m.register = nfnl.DeviceKey(m.device)
	default:
		return fmt.Errorf("meta key %d is not known here", key)
	}
	return nil
}

func (m *machine) conntrack(key uint32, set bool) error {
	switch {
	case key == unix.NFT_CT_ZONE && set:
		m.ct.Zone = binary.NativeEndian.Uint16(m.register)
	case key == unix.NFT_CT_ZONE:
		m.register = hostOrder(m.ct.Zone)
	case key == unix.NFT_CT_DIRECTION:
		m.register = []byte{0}
		if m.ct.Reply {
			m.register = []byte{1}
		}
	case key == unix.NFT_CT_STATE:
		state := expr.CtStateBitNEW
		switch {
		case m.ct.Untracked:
			state = expr.CtStateBitUNTRACKED
		case m.ct.Invalid:
			state = expr.CtStateBitINVALID
		}
		m.register = hostOrder(state)
	default:
		return fmt.Errorf("ct key %d is not known here", key)
	}
	return nil
}

func (m *machine) payload(data attributeMap) error {
	header := m.network
	if nfnl.Uint32(data[unix.NFTA_PAYLOAD_BASE]) == unix.NFT_PAYLOAD_TRANSPORT_HEADER {
		header = m.transport
	}
	offset, length := int(nfnl.Uint32(data[unix.NFTA_PAYLOAD_OFFSET])), int(nfnl.Uint32(data[unix.NFTA_PAYLOAD_LEN]))
	if offset+length > len(header) {
		return fmt.Errorf("no bytes %d to %d in a header of %d", offset, offset+length, len(header))
	}
	if data[unix.NFTA_PAYLOAD_SREG] != nil {
		copy(header[offset:offset+length], m.register)
		m.out.rewritten = true
		return nil
	}
	m.register = bytes.Clone(header[offset : offset+length])
	return nil
}

// immediate loads a constant, or ends the walk with a verdict.
func (m *machine) immediate(data []byte) error {
	attrs, err := attributes(data)
	if err != nil {
		return err
	}
	if value, ok := attrs[unix.NFTA_DATA_VALUE]; ok {
		m.register = bytes.Clone(value)
		return nil
	}
	verdict, err := attributes(attrs[unix.NFTA_DATA_VERDICT])
	if err != nil {
		return err
	}
	switch expr.VerdictKind(int32(nfnl.Uint32(verdict[unix.NFTA_VERDICT_CODE]))) {
	case expr.VerdictJump:
		m.jump = text(verdict[unix.NFTA_VERDICT_CHAIN])
	case expr.VerdictReturn:
		m.returned = true
	case expr.VerdictDrop:
		m.ended, m.out.Dropped = true, true
	default:
		m.ended = true
	}
	return nil
}

func dataValue(data []byte) ([]byte, error) {
	attrs, err := attributes(data)
	return attrs[unix.NFTA_DATA_VALUE], err
}
