// Package cbpf attaches classic BPF programs to sockets. They need no capability (socket(7)).
package cbpf

import (
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Offsets in the IP header, relative to the network header (include/uapi/linux/filter.h,
// SKF_NET_OFF).
const (
	networkHeader = 1<<32 - 0x100000
	IPVersion     = networkHeader      // in the upper half of the byte
	Source4       = networkHeader + 12 // RFC 791 section 3.1
	Source6       = networkHeader + 8  // RFC 8200 section 3
	Port4         = networkHeader + 20 // the source port of UDP and TCP behind a header without options
	Port6         = networkHeader + 40
)

// Attach gives a socket a program by SO_ATTACH_FILTER, SO_ATTACH_REUSEPORT_CBPF or the like, in
// the place of the one that it has.
func Attach(fd, option int, code []bpf.Instruction) error {
	raw, err := bpf.Assemble(code)
	if err != nil {
		return err
	}
	filter := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		filter[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, option, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]})
}
