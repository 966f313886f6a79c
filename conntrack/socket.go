package conntrack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"

	"github.com/mdlayher/netlink"
	"github.com/ti-mo/netfilter"
	"golang.org/x/sys/unix"
)

// receiveBufferSize is larger than any message the kernel builds for a dump: it
// fills at most 32 KB, and as much only for readers that offer it room
// (netlink_recvmsg, max_recvmsg_len).
const receiveBufferSize = 64 << 10

// A transport sends requests to nfnetlink and receives datagrams of messages.
// It is an interface so that tests can play the kernel.
type transport interface {
	// Send completes the header of m and sends it.
	Send(m netlink.Message) (netlink.Message, error)
	// receive reads one datagram into b.
	receive(b []byte) (int, error)
	Close() error
}

// A netlinkSocket is a transport over a netlink.Conn, which it receives from
// directly: netlink.Conn hands out every message in memory of its own, a
// gigabyte of garbage for a million entries.
type netlinkSocket struct {
	*netlink.Conn
	raw syscall.RawConn

	// read's arguments and results live here, so that receiving allocates no closure.
	buf  []byte
	n    int
	err  error
	read func(fd uintptr) bool
}

func dialNetlink(cfg *Config) (*netlinkSocket, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: cfg.NetNS})
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
	s := &netlinkSocket{Conn: conn, raw: raw}
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

func (s *netlinkSocket) receive(b []byte) (int, error) {
	s.buf = b
	err := s.raw.Read(s.read)
	s.buf = nil
	if err != nil {
		return 0, err
	}
	return s.n, s.err
}

// A message is one netlink message inside a receive buffer.
type message struct {
	typ   uint16
	flags uint16
	seq   uint32
	pid   uint32 // the netlink port of the sender, of the requester in events
	data  []byte // what follows struct nlmsghdr
}

// Netlink message types and the sizes of headers (linux/netlink.h, linux/netfilter/nfnetlink.h).
const (
	headerLen  = 16
	nfGenLen   = 4
	errnoLen   = 4
	ackOffset  = errnoLen + headerLen // where the attributes of a short (capped) acknowledgement start
	msgErrText = 1                    // NLMSGERR_ATTR_MSG
)

// nextMessage splits the first message off b.
func nextMessage(b []byte) (m message, rest []byte, err error) {
	if len(b) < headerLen {
		return message{}, nil, errMalformed
	}
	length := binary.NativeEndian.Uint32(b)
	if length < headerLen || uint64(length) > uint64(len(b)) {
		return message{}, nil, errMalformed
	}
	m = message{
		typ:   binary.NativeEndian.Uint16(b[4:]),
		flags: binary.NativeEndian.Uint16(b[6:]),
		seq:   binary.NativeEndian.Uint32(b[8:]),
		pid:   binary.NativeEndian.Uint32(b[12:]),
		data:  b[headerLen:length],
	}
	return m, b[min(align4(int(length)), len(b)):], nil
}

// kernelError returns the error in an NLMSG_ERROR or NLMSG_DONE message, nil
// for an acknowledgement.
func (m message) kernelError() error {
	if len(m.data) < errnoLen {
		if m.typ == unix.NLMSG_DONE { // some dumps end without a code
			return nil
		}
		return errMalformed
	}
	code := int32(binary.NativeEndian.Uint32(m.data))
	if code == 0 {
		return nil
	}
	errno := unix.Errno(-code)
	if m.typ == unix.NLMSG_ERROR && m.flags&unix.NLM_F_ACK_TLVS != 0 {
		if text := m.errorText(); text != "" {
			return fmt.Errorf("%w: %s", errno, text)
		}
	}
	return errno
}

// errorText returns the kernel's own words in an extended acknowledgement.
func (m message) errorText() string {
	offset := ackOffset
	if m.flags&unix.NLM_F_CAPPED == 0 && len(m.data) >= ackOffset {
		request := binary.NativeEndian.Uint32(m.data[errnoLen:])
		offset = errnoLen + align4(int(min(request, receiveBufferSize)))
	}
	if offset > len(m.data) {
		return ""
	}
	var a attrs
	text := a.nestedString(m.data[offset:], msgErrText)
	for len(text) > 0 && text[len(text)-1] == 0 {
		text = text[:len(text)-1]
	}
	return string(text)
}

// exchange sends one request and calls handle with every answer to it, until
// the kernel says that there are no more: after NLMSG_DONE for a dump, after
// the acknowledgement where one was asked for, else after the first message.
// If handle fails the rest is read and dropped, so that the transport stays
// usable, and its error is returned. interrupted reports NLM_F_DUMP_INTR.
func exchange(t transport, buf []byte, req netlink.Message, handle func(message) error) (interrupted bool, err error) {
	sent, err := t.Send(req)
	if err != nil {
		return false, err
	}
	multi := req.Header.Flags&netlink.Dump == netlink.Dump || req.Header.Flags&netlink.Acknowledge != 0
	var handleErr error
	for {
		n, err := t.receive(buf)
		if err != nil {
			return interrupted, err
		}
		for rest := buf[:n]; len(rest) > 0; {
			var m message
			if m, rest, err = nextMessage(rest); err != nil {
				return interrupted, err
			}
			if m.seq != sent.Header.Sequence {
				continue // left over from a request that failed half way
			}
			interrupted = interrupted || m.flags&unix.NLM_F_DUMP_INTR != 0
			switch m.typ {
			case unix.NLMSG_DONE, unix.NLMSG_ERROR:
				if err := m.kernelError(); err != nil {
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

// Message types of the subsystem NFNL_SUBSYS_CTNETLINK (enum cntl_msg_types).
const (
	msgNew         = 0
	msgGet         = 1
	msgDelete      = 2
	msgGetStatsCPU = 4
	msgGetStats    = 5
)

// request builds a ctnetlink request.
func request(typ netfilter.MessageType, family Family, flags netlink.HeaderFlags, attributes ...netfilter.Attribute) (netlink.Message, error) {
	return netfilter.MarshalNetlink(netfilter.Header{
		SubsystemID: netfilter.NFSubsysCTNetlink,
		MessageType: typ,
		Family:      netfilter.ProtoFamily(family),
		Flags:       netlink.Request | flags,
	}, attributes)
}
