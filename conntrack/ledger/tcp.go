package ledger

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// TCPEnds reports the ends of TCP connections to a ledger. FollowTCP makes one.
//
// The kernel multicasts the identity and the tcp_info of every TCP socket that it frees
// (sock_diag_broadcast_destroy in net/core/sock_diag.c, since Linux 4.2). It frees a socket
// when its last acknowledgement arrives, when only an entry in TIME_WAIT remains of it, or
// when it is reset. At the same time conntrack sees the connection end. No privilege is
// needed. A filter in the kernel drops the reports for other ports.
type TCPEnds struct {
	ledger *Ledger
	conn   *netlink.Conn
	served func(server netip.AddrPort) bool
	done   chan struct{}
}

// FollowTCP begins to report to the ledger the ends of connections to the local addresses
// for which served returns true. netns is the file descriptor of a network namespace; 0
// means the current one. SetPorts selects the ports. The error wraps errors.ErrUnsupported
// if the kernel was built without CONFIG_INET_TCP_DIAG. The ledger then assumes when
// connections end.
func (l *Ledger) FollowTCP(netns int, served func(server netip.AddrPort) bool) (*TCPEnds, error) {
	conn, err := netlink.Dial(unix.NETLINK_SOCK_DIAG, &netlink.Config{NetNS: netns})
	if err != nil {
		return nil, fmt.Errorf("follow TCP connections: %w", noTCPDiag(err))
	}
	e := &TCPEnds{ledger: l, conn: conn, served: served, done: make(chan struct{})}
	if err := e.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("follow TCP connections: %w", noTCPDiag(err)), conn.Close())
	}
	l.followed(true)
	go e.receive()
	return e, nil
}

func noTCPDiag(err error) error {
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("%w by this kernel: %w (load the module tcp_diag)", errors.ErrUnsupported, err)
	}
	return err
}

func (e *TCPEnds) open() error {
	if err := e.ask(); err != nil {
		return err
	}
	if err := e.SetPorts(); err != nil {
		return err
	}
	// Room for some hundred connections that end at the same time. Reports that do not
	// fit are lost: for those connections the ledger assumes when they ended.
	if err := e.conn.SetReadBuffer(1 << 20); err != nil {
		return err
	}
	for _, group := range []uint32{unix.SKNLGRP_INET_TCP_DESTROY, unix.SKNLGRP_INET6_TCP_DESTROY} {
		if err := e.conn.JoinGroup(group); err != nil {
			return err
		}
	}
	return nil
}

// ask requests the sockets in none of the states. The kernel loads the module tcp_diag for
// it, or fails with ENOENT if there is none. Joining the groups never fails, so it cannot
// tell.
func (e *TCPEnds) ask() error {
	const sizeofRequest = 56 // struct inet_diag_req_v2
	request := make([]byte, sizeofRequest)
	request[0], request[1] = unix.AF_INET, unix.IPPROTO_TCP
	_, err := e.conn.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.SOCK_DIAG_BY_FAMILY, Flags: netlink.Request | netlink.Dump},
		Data:   request,
	})
	return err
}

// SetPorts selects the local ports whose connections are reported. It replaces the ports of
// the last call.
func (e *TCPEnds) SetPorts(ports ...uint16) error {
	program := []bpf.Instruction{bpf.LoadAbsolute{Off: unix.SizeofNlMsghdr + offsetSourcePort, Size: 2}}
	for _, port := range ports {
		program = append(program,
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(port), SkipTrue: 1},
			bpf.RetConstant{Val: 1<<32 - 1})
	}
	filter, err := bpf.Assemble(append(program, bpf.RetConstant{Val: 0}))
	if err != nil {
		return fmt.Errorf("follow TCP connections to %d ports: %w", len(ports), err)
	}
	if err := e.conn.SetBPF(filter); err != nil {
		return fmt.Errorf("follow TCP connections to ports %d: %w", ports, err)
	}
	return nil
}

// Close ends the reports.
func (e *TCPEnds) Close() error {
	err := e.conn.SetReadDeadline(time.Unix(1, 0))
	<-e.done
	return errors.Join(err, e.conn.Close())
}

func (e *TCPEnds) receive() {
	defer close(e.done)
	for {
		messages, err := e.conn.Receive()
		if err != nil && !errors.Is(err, unix.ENOBUFS) { // reports were lost
			e.ledger.followed(false) // Close, or a socket that no longer works
			return
		}
		for _, m := range messages {
			if end, ok := decodeTCPEnd(m.Data); ok && e.served(end.flow.Server) {
				e.ledger.end(end.flow, end.packets())
			}
		}
	}
}

// followed sets whether ends of TCP connections are reported from now on.
func (l *Ledger) followed(reported bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drain()
	l.tcp.reported = reported
	l.changed()
}

// tcpEnd is the content of a report.
type tcpEnd struct {
	flow  Flow
	reset bool
	mute  bool // the client sent no data
}

// packets returns the packets that the ledger must note. No listener notes a connection
// without data, so both its begin and its end are noted. A connection of this node to
// itself is not: it is mostly a check of our own. A connection with data that the ledger
// does not know is none of its flows.
func (e tcpEnd) packets() uint64 {
	p := uint64(packetFIN)
	if e.reset {
		p = packetRST
	}
	if e.mute && e.flow.Client.Addr() != e.flow.Server.Addr() {
		p |= packetQuery
	}
	return p
}

// Offsets in struct inet_diag_msg (linux/inet_diag.h) and in struct tcp_info
// (linux/tcp.h).
const (
	offsetSourcePort = 4
	offsetDestPort   = 6
	offsetSource     = 8
	offsetDest       = 24
	sizeofMsg        = 72

	offsetBytesAcked    = 120
	offsetBytesReceived = 128
	offsetBytesSent     = 200 // since Linux 4.19
	offsetBytesRetrans  = 208 // since Linux 4.19

	inetDiagInfo = 2 // INET_DIAG_INFO, with a struct tcp_info
)

// decodeTCPEnd decodes a report. The acknowledged bytes include our FIN if it was
// acknowledged, and the sent bytes never do. So the connection was reset if there are no
// more acknowledged bytes than sent bytes. The received bytes include the client's FIN.
func decodeTCPEnd(b []byte) (e tcpEnd, ok bool) {
	if len(b) < sizeofMsg {
		return e, false
	}
	address := func(offset int) netip.Addr {
		if b[0] == unix.AF_INET {
			return netip.AddrFrom4([4]byte(b[offset:]))
		}
		return netip.AddrFrom16([16]byte(b[offset:])).Unmap()
	}
	e.flow = Flow{
		Proto:  unix.IPPROTO_TCP,
		Client: netip.AddrPortFrom(address(offsetDest), binary.BigEndian.Uint16(b[offsetDestPort:])),
		Server: netip.AddrPortFrom(address(offsetSource), binary.BigEndian.Uint16(b[offsetSourcePort:])),
	}
	if e.flow.Client.Port() == 0 {
		return e, false // a listener, or a socket that was never connected
	}
	ad, err := netlink.NewAttributeDecoder(b[sizeofMsg:])
	if err != nil {
		return e, false
	}
	for ad.Next() {
		info := ad.Bytes()
		if ad.Type() != inetDiagInfo || len(info) < offsetBytesReceived+8 {
			continue
		}
		e.mute = binary.NativeEndian.Uint64(info[offsetBytesReceived:]) <= 1
		if len(info) >= offsetBytesRetrans+8 {
			sent := binary.NativeEndian.Uint64(info[offsetBytesSent:]) - binary.NativeEndian.Uint64(info[offsetBytesRetrans:])
			e.reset = binary.NativeEndian.Uint64(info[offsetBytesAcked:]) <= sent
		}
	}
	return e, ad.Err() == nil
}
