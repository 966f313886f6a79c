package attach

import (
	"encoding/binary"
	"net"

	"github.com/jsimonetti/rtnetlink/v2"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables/route"
)

// device is a link as the kernel describes it.
type device struct {
	index, master int
	name, kind    string
	mac           net.HardwareAddr
}

// parseLink reads a link message. It returns false for those of a bridge about its ports
// (family AF_BRIDGE): the end of a port is not that of the device.
func parseLink(b []byte) (d device, ok bool) {
	var m rtnetlink.LinkMessage
	if m.UnmarshalBinary(b) != nil || m.Attributes == nil || m.Family == unix.AF_BRIDGE {
		return d, false
	}
	return deviceOf(&m), true
}

func deviceOf(m *rtnetlink.LinkMessage) device {
	d := device{index: int(m.Index), name: m.Attributes.Name, mac: m.Attributes.Address}
	if m.Attributes.Master != nil {
		d.master = int(*m.Attributes.Master)
	}
	if m.Attributes.Info != nil {
		d.kind = m.Attributes.Info.Kind
	}
	return d
}

func listLinks(lists *route.Lists) ([]device, error) {
	links, _, _, err := lists.Read()
	if err != nil {
		return nil, err
	}
	out := make([]device, 0, len(links))
	for i := range links {
		out = append(out, deviceOf(&links[i]))
	}
	return out, nil
}

// isDefaultRoute reports whether a route message (struct rtmsg of linux/rtnetlink.h) is
// about a route to more than a network of its own: a default route, or one of the halves
// that stand for it.
func isDefaultRoute(b []byte) bool { return len(b) >= unix.SizeofRtMsg && b[1] <= 8 }

// nativeUint32 reads a number as netlink has it.
func nativeUint32(b []byte) uint32 { return binary.NativeEndian.Uint32(b) }
