package failover

import (
	"encoding/binary"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/internal/nfnl"
)

// failoverExpr is one expression of a rule: the encoded attributes of struct nft_expr
// (NFTA_EXPR_NAME and NFTA_EXPR_DATA), or the error of encoding them. google/nftables
// encodes most of them; the three that it cannot encode use raw.
type failoverExpr struct {
	data []byte
	err  error
}

func library(e expr.Any) failoverExpr {
	data, err := expr.Marshal(byte(nftables.TableFamilyINet), e)
	return failoverExpr{data, err}
}

// raw encodes an expression from its own attributes.
func raw(name string, attrs ...netlink.Attribute) failoverExpr {
	data, err := netlink.MarshalAttributes(attrs)
	if err != nil {
		return failoverExpr{nil, err}
	}
	data, err = netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_EXPR_NAME, Data: append([]byte(name), 0)},
		{Type: unix.NLA_F_NESTED | unix.NFTA_EXPR_DATA, Data: data},
	})
	return failoverExpr{data, err}
}

func be32Attr(typ uint16, v uint32) netlink.Attribute {
	return netlink.Attribute{Type: typ, Data: binary.BigEndian.AppendUint32(nil, v)}
}

// The zone of one direction. The library sends a zone without a direction, and other
// keys with a direction of 32 bits, where the kernel wants 8 (nft_ct_policy of
// net/netfilter/nft_ct.c).
func setOriginalZone() failoverExpr  { return originalZone(unix.NFTA_CT_SREG) }
func loadOriginalZone() failoverExpr { return originalZone(unix.NFTA_CT_DREG) }

func originalZone(register uint16) failoverExpr {
	const directionOriginal = 0 // IP_CT_DIR_ORIGINAL
	return raw("ct",
		be32Attr(unix.NFTA_CT_KEY, unix.NFT_CT_ZONE),
		be32Attr(register, unix.NFT_REG_1),
		netlink.Attribute{Type: unix.NFTA_CT_DIRECTION, Data: []byte{directionOriginal}},
	)
}

// write stores register 1 at the offset of the network header and corrects the
// checksums: that of the IPv4 header, and those of UDP and TCP, whose pseudo header
// has the addresses. The library does not correct those of UDP and TCP if the network
// header has no checksum.
func (ip ipHeader) write(offset uint32) failoverExpr {
	kind := uint32(unix.NFT_PAYLOAD_CSUM_NONE)
	if ip.checksum != 0 {
		kind = unix.NFT_PAYLOAD_CSUM_INET
	}
	return raw("payload",
		be32Attr(unix.NFTA_PAYLOAD_SREG, unix.NFT_REG_1),
		be32Attr(unix.NFTA_PAYLOAD_BASE, unix.NFT_PAYLOAD_NETWORK_HEADER),
		be32Attr(unix.NFTA_PAYLOAD_OFFSET, offset),
		be32Attr(unix.NFTA_PAYLOAD_LEN, ip.length),
		be32Attr(unix.NFTA_PAYLOAD_CSUM_TYPE, kind),
		be32Attr(unix.NFTA_PAYLOAD_CSUM_OFFSET, ip.checksum),
		be32Attr(unix.NFTA_PAYLOAD_CSUM_FLAGS, unix.NFT_PAYLOAD_L4CSUM_PSEUDOHDR),
	)
}

// counter counts in a named counter. The library sends the name without the null byte
// with which the kernel dumps it.
func counter(name string) failoverExpr {
	return raw("objref",
		be32Attr(unix.NFTA_OBJREF_IMM_TYPE, unix.NFT_OBJECT_COUNTER),
		netlink.Attribute{Type: unix.NFTA_OBJREF_IMM_NAME, Data: append([]byte(name), 0)},
	)
}

func (ip ipHeader) load(offset uint32) failoverExpr {
	return library(&expr.Payload{DestRegister: unix.NFT_REG_1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: ip.length})
}

func (ip ipHeader) isFamily() []failoverExpr {
	return []failoverExpr{library(&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: unix.NFT_REG_1}), equals([]byte{ip.nfproto})}
}

func protoIs(p iptables.Proto) []failoverExpr {
	return []failoverExpr{library(&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: unix.NFT_REG_1}), equals([]byte{byte(p)})}
}

func stateIs(bit uint32) []failoverExpr {
	return []failoverExpr{
		library(&expr.Ct{Key: expr.CtKeySTATE, Register: unix.NFT_REG_1}),
		library(&expr.Bitwise{
			SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_1, Len: 4,
			Mask: hostOrder(bit), Xor: make([]byte, 4),
		}),
		library(&expr.Cmp{Op: expr.CmpOpNeq, Register: unix.NFT_REG_1, Data: make([]byte, 4)}),
	}
}

// loadPort loads the source port (offset 0) or destination port (2). UDP and TCP have
// them at the same offsets.
func loadPort(offset uint32) failoverExpr {
	return library(&expr.Payload{DestRegister: unix.NFT_REG_1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2})
}

func equals(data []byte) failoverExpr {
	return library(&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: data})
}

func immediate(data []byte) failoverExpr {
	return library(&expr.Immediate{Register: unix.NFT_REG_1, Data: data})
}

// hostOrder encodes a number that the kernel keeps in host byte order.
func hostOrder[T uint16 | uint32](v T) []byte {
	if v, ok := any(v).(uint16); ok {
		return binary.NativeEndian.AppendUint16(nil, v)
	}
	return binary.NativeEndian.AppendUint32(nil, uint32(v))
}

func sprintf(format string, args ...any) string { return fmt.Sprintf(format, args...) }

// expressions encodes the rule as the value of NFTA_RULE_EXPRESSIONS.
func (r failoverRule) expressions() ([]byte, error) {
	elems := make([]netlink.Attribute, 0, len(r.exprs))
	for _, e := range r.exprs {
		if e.err != nil {
			return nil, fmt.Errorf("encode rule %q: %w", r.text, e.err)
		}
		elems = append(elems, netlink.Attribute{Type: unix.NLA_F_NESTED | unix.NFTA_LIST_ELEM, Data: e.data})
	}
	return netlink.MarshalAttributes(elems)
}

// message appends the rule to a chain.
func (r failoverRule) message(chain string) (netlink.Message, error) {
	exprs, err := r.expressions()
	if err != nil {
		return netlink.Message{}, err
	}
	data, err := netlink.MarshalAttributes([]netlink.Attribute{
		failoverTableName(unix.NFTA_RULE_TABLE),
		{Type: unix.NFTA_RULE_CHAIN, Data: append([]byte(chain), 0)},
		{Type: unix.NLA_F_NESTED | unix.NFTA_RULE_EXPRESSIONS, Data: exprs},
	})
	if err != nil {
		return netlink.Message{}, err
	}
	return netlink.Message{
		Header: netlink.Header{
			Type:  nfnl.MessageType(unix.NFT_MSG_NEWRULE),
			Flags: netlink.Request | netlink.Acknowledge | netlink.Create | netlink.Append,
		},
		Data: append(nfnl.Header(nftables.TableFamilyINet, 0), data...),
	}, nil
}
