package hostaddr

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// From include/uapi/linux/if_addr.h and rtnetlink.h.
const (
	attrProto = 11 // IFA_PROTO, since Linux 5.18; older kernels ignore it

	// protoTrackless marks our addresses among those on lo. The kernel uses the
	// values up to 3 (IFAPROT_KERNEL_*); the others are free.
	protoTrackless = 0x54

	lifetimeForever = 0xffffffff // INFINITY_LIFE_TIME of net/addrconf.h
)

// address is one address of this host.
type address struct {
	index uint32
	addr  netip.Addr
	bits  uint8
	proto uint8
}

func (a address) prefix() netip.Prefix { return netip.PrefixFrom(a.addr, int(a.bits)) }

// ours reports whether an instance of Trackless put the address there.
func (a address) ours() bool {
	return a.proto == protoTrackless && int(a.bits) == a.addr.BitLen()
}

// addresses lists the addresses of both families.
func (c *conn) addresses() ([]address, error) {
	msgs, err := c.raw.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.RTM_GETADDR, Flags: netlink.Request | netlink.Dump},
		Data:   make([]byte, unix.SizeofIfAddrmsg),
	})
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	var out []address
	for _, m := range msgs {
		if m.Header.Type != unix.RTM_NEWADDR || len(m.Data) < unix.SizeofIfAddrmsg {
			continue
		}
		a := address{bits: m.Data[1], index: binary.NativeEndian.Uint32(m.Data[4:8])}
		ad, err := netlink.NewAttributeDecoder(m.Data[unix.SizeofIfAddrmsg:])
		if err != nil {
			return nil, fmt.Errorf("list addresses: %w", err)
		}
		local := false
		for ad.Next() {
			switch ad.Type() {
			case unix.IFA_LOCAL:
				a.addr, local = addrFrom(ad.Bytes()), true
			case unix.IFA_ADDRESS:
				// The peer's address on point-to-point links, where
				// IFA_LOCAL is ours.
				if !local {
					a.addr = addrFrom(ad.Bytes())
				}
			case attrProto:
				a.proto = ad.Uint8()
			}
		}
		if err := ad.Err(); err != nil {
			return nil, fmt.Errorf("list addresses: %w", err)
		}
		if a.addr.IsValid() {
			out = append(out, a)
		}
	}
	return out, nil
}

func addrFrom(b []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(b)
	return a
}

// addAddress puts an address on a link, with scope and lifetimes as in the package
// comment.
func (c *conn) addAddress(index uint32, a netip.Addr) error {
	ae := netlink.NewAttributeEncoder()
	ae.Bytes(unix.IFA_LOCAL, a.AsSlice())
	ae.Bytes(unix.IFA_ADDRESS, a.AsSlice())
	ae.Uint8(attrProto, protoTrackless)
	header := ifaddrmsg(index, a, unix.RT_SCOPE_HOST)
	if a.Is6() {
		header = ifaddrmsg(index, a, unix.RT_SCOPE_UNIVERSE)
		ae.Uint32(unix.IFA_FLAGS, unix.IFA_F_NODAD)
		// struct ifa_cacheinfo: preferred, valid, created, updated.
		info := binary.NativeEndian.AppendUint32(nil, 0)
		info = binary.NativeEndian.AppendUint32(info, lifetimeForever)
		ae.Bytes(unix.IFA_CACHEINFO, append(info, make([]byte, 8)...))
	}
	return c.changeAddress(unix.RTM_NEWADDR, netlink.Create|netlink.Excl, header, ae)
}

func (c *conn) deleteAddress(index uint32, a netip.Addr) error {
	ae := netlink.NewAttributeEncoder()
	ae.Bytes(unix.IFA_LOCAL, a.AsSlice())
	ae.Bytes(unix.IFA_ADDRESS, a.AsSlice())
	return c.changeAddress(unix.RTM_DELADDR, 0, ifaddrmsg(index, a, 0), ae)
}

func (c *conn) changeAddress(typ netlink.HeaderType, flags netlink.HeaderFlags, header []byte, ae *netlink.AttributeEncoder) error {
	attrs, err := ae.Encode()
	if err != nil {
		return err
	}
	_, err = c.raw.Execute(netlink.Message{
		Header: netlink.Header{Type: typ, Flags: netlink.Request | netlink.Acknowledge | flags},
		Data:   append(header, attrs...),
	})
	return err
}

// ifaddrmsg is struct ifaddrmsg of linux/if_addr.h for a single address.
func ifaddrmsg(index uint32, a netip.Addr, scope uint8) []byte {
	family := byte(unix.AF_INET)
	if a.Is6() {
		family = unix.AF_INET6
	}
	return binary.NativeEndian.AppendUint32([]byte{family, byte(a.BitLen()), 0, scope}, index)
}
