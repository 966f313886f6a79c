package checks

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"time"
	"unsafe"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/agent/sockets"
	"github.com/trackless-dns/trackless/iptables"
)

// Listeners that cannot keep up answer all the same, but their buffers are full
// whenever a packet comes, and a check or a lease probe is one of very many that
// are dropped. So it is sent again, more often each time, and waited for longer,
// while queries go on being answered. Where none is, nobody reads the buffer, or
// nobody gets any further: copies would only fill it.
const (
	copyInterval = 10 * time.Millisecond
	maxCopies    = 8 // at a time

	// busyTimeout is in place of checkTimeout while queries are answered.
	busyTimeout = 600 * time.Millisecond
)

// patience bounds a check.
func (c *Checker) patience(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, busyTimeout)
	before := c.Progress()
	idle := time.AfterFunc(checkTimeout, func() {
		if c.Progress() == before {
			cancel()
		}
	})
	return ctx, func() {
		idle.Stop()
		cancel()
	}
}

// askUDP sends a check or a lease probe and returns which of our sockets answered,
// and when its answer came in.
func (c *Checker) askUDP(ctx context.Context, e iptables.Endpoint, conn *net.UDPConn, label string) (socket string, at time.Time, err error) {
	query := c.Identity.Query(label, c.Zones[e])
	packed, err := query.Pack()
	if err != nil {
		return "", at, err
	}
	// The end of the context ends a read that waits.
	defer context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(longAgo) })()
	before, copies, more := c.Progress(), 1, 1
	for {
		for range copies {
			if _, err := conn.WriteToUDPAddrPort(packed, e.AddrPort()); err != nil {
				return "", at, err
			}
		}
		var answer *dns.Msg
		answer, at, err = receive(ctx, e, conn, query.Id)
		switch {
		case err == nil:
			socket, err = c.Identity.AnsweredBy(query, answer)
			return socket, at, err
		case ctx.Err() != nil || !errors.Is(err, os.ErrDeadlineExceeded):
			return "", at, err
		}
		copies = 0
		if now := c.Progress(); now != before {
			more = min(2*more, maxCopies)
			before, copies = now, more
		}
	}
}

var longAgo = time.Unix(1, 0)

// receive waits for the answer with the id, until it is time for copies.
func receive(ctx context.Context, e iptables.Endpoint, conn *net.UDPConn, id uint16) (*dns.Msg, time.Time, error) {
	began := time.Now()
	if err := conn.SetReadDeadline(began.Add(copyInterval)); err != nil {
		return nil, began, err
	}
	if ctx.Err() != nil {
		return nil, began, os.ErrDeadlineExceeded
	}
	buf, control := make([]byte, dns.MinMsgSize), make([]byte, unix.CmsgSpace(timespecSize))
	for {
		n, controls, _, from, err := conn.ReadMsgUDPAddrPort(buf, control)
		if err != nil {
			return nil, began, err
		}
		answer := new(dns.Msg)
		// A late answer to an earlier check, or one from another endpoint,
		// is no answer to this one.
		if from.Port() == e.Port && answer.Unpack(buf[:n]) == nil && answer.Id == id {
			return answer, receivedAt(control[:controls]), nil
		}
	}
}

// timespecSize is the size of struct timespec: two words of the machine.
const timespecSize = int(unsafe.Sizeof(unix.Timespec{}))

// stamp has the kernel say when packets of a socket came in, which a process that
// waits for a processor does not know.
func stamp(conn *net.UDPConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	return sockets.Control(raw, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1) })
}

// receivedAt is when a packet came in (socket(7), SO_TIMESTAMPNS), or now.
func receivedAt(control []byte) time.Time {
	now := time.Now()
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return now
	}
	for _, m := range messages {
		if m.Header.Level != unix.SOL_SOCKET || m.Header.Type != unix.SO_TIMESTAMPNS || len(m.Data) < timespecSize {
			continue
		}
		// By the clock on the wall, which somebody may set.
		age := now.Sub(time.Unix(word(m.Data), word(m.Data[timespecSize/2:])))
		return now.Add(-min(max(age, 0), busyTimeout))
	}
	return now
}

// word reads a long of the kernel.
func word(b []byte) int64 {
	if timespecSize/2 == 4 {
		return int64(int32(binary.NativeEndian.Uint32(b)))
	}
	return int64(binary.NativeEndian.Uint64(b))
}
