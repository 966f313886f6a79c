package tracetest

import (
	"fmt"
	"net/netip"

	"github.com/trackless-dns/trackless/iptables"
)

// Packet is a packet that a tracer sends through rules, at one hook.
type Packet struct {
	Proto              iptables.Proto
	Src, Dst           netip.AddrPort
	SYN, ACK, FIN, RST bool   // of a TCP segment
	Device             string // input device in prerouting, output device in output
}

// String prints the packet for test names and errors.
func (p Packet) String() string {
	flags := ""
	for _, f := range []struct {
		set  bool
		name string
	}{{p.SYN, "syn"}, {p.ACK, "ack"}, {p.FIN, "fin"}, {p.RST, "rst"}} {
		if f.set {
			flags += " " + f.name
		}
	}
	return fmt.Sprintf("%s %s > %s%s via %s", p.Proto, p.Src, p.Dst, flags, p.Device)
}
