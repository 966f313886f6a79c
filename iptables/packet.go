package iptables

import (
	"fmt"
	"net/netip"
)

// Packet is what a tracer sends through rules, at one hook.
type Packet struct {
	Proto    Proto
	Src, Dst netip.AddrPort
	SYN, ACK bool   // of a TCP segment
	Device   string // input device in prerouting, output device in output
}

// String prints the packet for test names and errors.
func (p Packet) String() string {
	flags := ""
	if p.SYN {
		flags += " syn"
	}
	if p.ACK {
		flags += " ack"
	}
	return fmt.Sprintf("%s %s > %s%s via %s", p.Proto, p.Src, p.Dst, flags, p.Device)
}
