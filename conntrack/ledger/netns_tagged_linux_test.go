//go:build privileged || load

package ledger

import (
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// entries counts the entries that `conntrack -L` would list. The kernel's dump has no
// expired entries.
func (n *node) entries() (Counts, error) {
	const nlmsgConntrackGet = unix.NFNL_SUBSYS_CTNETLINK<<8 | 1 // IPCTNL_MSG_CT_GET
	replies, err := n.conntrack.Execute(netlink.Message{
		Header: netlink.Header{Type: nlmsgConntrackGet, Flags: netlink.Request | netlink.Dump},
		Data:   []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, 0},
	})
	if err != nil {
		return Counts{}, fmt.Errorf("dump of the conntrack table: %w", err)
	}
	var c Counts
	for _, m := range replies {
		if err := c.add(m); err != nil {
			return Counts{}, err
		}
	}
	return c, nil
}

// add counts the entry in a message, by struct nfgenmsg and the nested attributes
// CTA_TUPLE_ORIG, CTA_TUPLE_PROTO and CTA_PROTO_NUM of nfnetlink_conntrack.h.
func (c *Counts) add(m netlink.Message) error {
	const sizeofNfgenmsg, ctaTupleOrig, ctaTupleProto, ctaProtoNum = 4, 1, 2, 1
	if len(m.Data) < sizeofNfgenmsg {
		return fmt.Errorf("conntrack message of %d bytes", len(m.Data))
	}
	ad, err := netlink.NewAttributeDecoder(m.Data[sizeofNfgenmsg:])
	if err != nil {
		return err
	}
	var proto uint8
	for ad.Next() {
		if ad.Type() != ctaTupleOrig {
			continue
		}
		ad.Nested(func(tuple *netlink.AttributeDecoder) error {
			for tuple.Next() {
				if tuple.Type() != ctaTupleProto {
					continue
				}
				tuple.Nested(func(p *netlink.AttributeDecoder) error {
					for p.Next() {
						if p.Type() == ctaProtoNum {
							proto = p.Uint8()
						}
					}
					return nil
				})
			}
			return nil
		})
	}
	switch family := m.Data[0]; {
	case proto == unix.IPPROTO_UDP && family == unix.AF_INET:
		c.UDP4++
	case proto == unix.IPPROTO_UDP && family == unix.AF_INET6:
		c.UDP6++
	case proto == unix.IPPROTO_TCP && family == unix.AF_INET:
		c.TCP4++
	case proto == unix.IPPROTO_TCP && family == unix.AF_INET6:
		c.TCP6++
	}
	return ad.Err()
}
