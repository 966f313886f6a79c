// Package nfnetlink is the part of netlink that connection tracking needs: a
// socket that reads into its caller's buffer, the messages in a datagram, and
// their attributes. Nothing is copied.
package nfnetlink

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// ReceiveBufferSize is larger than any message the kernel builds for a dump: it
// fills at most 32 KB, and as much only for readers that offer it room
// (netlink_recvmsg, max_recvmsg_len).
const ReceiveBufferSize = 64 << 10

// A Transport sends requests to nfnetlink and receives datagrams of messages.
// It is an interface so that tests can play the kernel.
type Transport interface {
	// Send completes the header of m and sends it.
	Send(m netlink.Message) (netlink.Message, error)
	// Receive reads one datagram into b.
	Receive(b []byte) (int, error)
	Close() error
}

// A Socket is a transport over a netlink.Conn, which it receives from
// directly: netlink.Conn hands out every message in memory of its own, a
// gigabyte of garbage for a million entries.
type Socket struct {
	*netlink.Conn
	raw syscall.RawConn

	// read's arguments and results live here, so that receiving allocates no closure.
	buf  []byte
	n    int
	err  error
	read func(fd uintptr) bool
}

// Dial opens a socket in a network namespace, given as a file descriptor,
// or in the namespace of the calling thread if it is 0.
func Dial(netNS int) (*Socket, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: netNS})
	if err != nil {
		return nil, err
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	// Only for better messages, and absent before Linux 4.12.
	_ = conn.SetOption(netlink.ExtendedAcknowledge, true)
	s := &Socket{Conn: conn, raw: raw}
	s.read = func(fd uintptr) bool {
		for {
			s.n, s.err = unix.Read(int(fd), s.buf)
			if !errors.Is(s.err, unix.EINTR) {
				return !errors.Is(s.err, unix.EAGAIN)
			}
		}
	}
	return s, nil
}

// Receive reads one datagram into b.
func (s *Socket) Receive(b []byte) (int, error) {
	s.buf = b
	err := s.raw.Read(s.read)
	s.buf = nil
	if err != nil {
		return 0, err
	}
	return s.n, s.err
}

// A Message is one netlink message inside a receive buffer.
type Message struct {
	Type   uint16
	Flags  uint16
	seq    uint32
	PortID uint32 // the netlink port of the sender, of the requester in events
	Data   []byte // what follows struct nlmsghdr
}

// Netlink message types and the sizes of headers (linux/netlink.h, linux/netfilter/nfnetlink.h).
const (
	HeaderLen    = 16
	GenHeaderLen = 4
	errnoLen     = 4
	ackOffset    = errnoLen + HeaderLen // where the attributes of a short (capped) acknowledgement start
	MsgErrText   = 1                    // NLMSGERR_ATTR_MSG
)

// NextMessage splits the first message off b.
func NextMessage(b []byte) (m Message, rest []byte, err error) {
	if len(b) < HeaderLen {
		return Message{}, nil, ErrMalformed
	}
	length := binary.NativeEndian.Uint32(b)
	if length < HeaderLen || uint64(length) > uint64(len(b)) {
		return Message{}, nil, ErrMalformed
	}
	m = Message{
		Type:   binary.NativeEndian.Uint16(b[4:]),
		Flags:  binary.NativeEndian.Uint16(b[6:]),
		seq:    binary.NativeEndian.Uint32(b[8:]),
		PortID: binary.NativeEndian.Uint32(b[12:]),
		Data:   b[HeaderLen:length],
	}
	return m, b[min(Align4(int(length)), len(b)):], nil
}

// KernelError returns the error in an NLMSG_ERROR or NLMSG_DONE message, nil
// for an acknowledgement.
func (m Message) KernelError() error {
	if len(m.Data) < errnoLen {
		if m.Type == unix.NLMSG_DONE { // some dumps end without a code
			return nil
		}
		return ErrMalformed
	}
	code := int32(binary.NativeEndian.Uint32(m.Data))
	if code == 0 {
		return nil
	}
	errno := unix.Errno(-code)
	if m.Type == unix.NLMSG_ERROR && m.Flags&unix.NLM_F_ACK_TLVS != 0 {
		if text := m.errorText(); text != "" {
			return fmt.Errorf("%w: %s", errno, text)
		}
	}
	return errno
}

// errorText returns the kernel's own words in an extended acknowledgement.
func (m Message) errorText() string {
	offset := ackOffset
	if m.Flags&unix.NLM_F_CAPPED == 0 && len(m.Data) >= ackOffset {
		request := binary.NativeEndian.Uint32(m.Data[errnoLen:])
		offset = errnoLen + Align4(int(min(request, ReceiveBufferSize)))
	}
	if offset > len(m.Data) {
		return ""
	}
	var a Attributes
	text := a.NestedString(m.Data[offset:], MsgErrText)
	for len(text) > 0 && text[len(text)-1] == 0 {
		text = text[:len(text)-1]
	}
	return string(text)
}

// Exchange sends one request and calls handle with every answer to it, until
// the kernel says that there are no more: after NLMSG_DONE for a dump, after
// the acknowledgement where one was asked for, else after the first message.
// If handle fails the rest is read and dropped, so that the transport stays
// usable, and its error is returned. interrupted reports NLM_F_DUMP_INTR.
func Exchange(t Transport, buf []byte, req netlink.Message, handle func(Message) error) (interrupted bool, err error) {
	sent, err := t.Send(req)
	if err != nil {
		return false, err
	}
	multi := req.Header.Flags&netlink.Dump == netlink.Dump || req.Header.Flags&netlink.Acknowledge != 0
	var handleErr error
	for {
		n, err := t.Receive(buf)
		if err != nil {
			return interrupted, err
		}
		for rest := buf[:n]; len(rest) > 0; {
			var m Message
			if m, rest, err = NextMessage(rest); err != nil {
				return interrupted, err
			}
			if m.seq != sent.Header.Sequence {
				continue // left over from a request that failed half way
			}
			interrupted = interrupted || m.Flags&unix.NLM_F_DUMP_INTR != 0
			switch m.Type {
			case unix.NLMSG_DONE, unix.NLMSG_ERROR:
				if err := m.KernelError(); err != nil {
					return interrupted, err
				}
				return interrupted, handleErr
			case unix.NLMSG_NOOP:
				continue
			}
			if handleErr == nil && handle != nil {
				handleErr = handle(m)
			}
			if !multi {
				return interrupted, handleErr
			}
		}
	}
}
