package clients

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/lab"
)

// errClosed is what became of queries whose connection was closed before the
// answer came.
var errClosed = errors.New("connection closed before the answer")

// outstanding are queries that wait for their answers, by message id.
type outstanding struct {
	mu      sync.Mutex
	waiting map[uint16]waiter
}

type waiter struct {
	done  func([]byte, error)
	timer *time.Timer
}

// add registers a query. Its done is called when it is taken, or by the
// timeout.
func (o *outstanding) add(id uint16, timeout time.Duration, done func([]byte, error), expired func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.waiting == nil {
		o.waiting = make(map[uint16]waiter)
	}
	o.waiting[id] = waiter{done, time.AfterFunc(timeout, func() {
		if o.finish(id, nil, context.DeadlineExceeded) && expired != nil {
			expired()
		}
	})}
}

// finish tells a waiting query what became of it; false if none waits.
func (o *outstanding) finish(id uint16, response []byte, err error) bool {
	o.mu.Lock()
	w, ok := o.waiting[id]
	delete(o.waiting, id)
	o.mu.Unlock()
	if ok {
		w.timer.Stop()
		w.done(response, err)
	}
	return ok
}

// failAll gives all waiting queries up.
func (o *outstanding) failAll(err error) {
	o.mu.Lock()
	waiting := o.waiting
	o.waiting = nil
	o.mu.Unlock()
	for _, w := range waiting {
		w.timer.Stop()
		w.done(nil, err)
	}
}

func messageID(message []byte) uint16 { return binary.BigEndian.Uint16(message) }

// portChannel is one UDP socket that is not connected: the kernel chooses the
// source address for every query anew, and tells nothing of ICMP errors.
type portChannel struct {
	outstanding
	port    uint16
	began   time.Time
	server  netip.AddrPort
	timeout time.Duration
	conn    *net.UDPConn
}

func newPortChannel(fd int, port uint16, server netip.AddrPort, timeout time.Duration) (*portChannel, error) {
	file := os.NewFile(uintptr(fd), "udp")
	defer func() { _ = file.Close() }() // FilePacketConn has a descriptor of its own
	conn, err := net.FilePacketConn(file)
	if err != nil {
		return nil, fmt.Errorf("use the UDP socket: %w", err)
	}
	c := &portChannel{port: port, began: time.Now(), server: server, timeout: timeout, conn: conn.(*net.UDPConn)}
	go c.read()
	return c, nil
}

func (c *portChannel) usable() bool { return true }

func (c *portChannel) send(query []byte, done func([]byte, error)) {
	c.add(messageID(query), c.timeout, done, nil)
	if _, err := c.conn.WriteToUDPAddrPort(query, c.server); err != nil {
		c.finish(messageID(query), nil, bare(err))
	}
}

func (c *portChannel) read() {
	buffer := make([]byte, dns.MinMsgSize)
	for {
		n, from, err := c.conn.ReadFromUDPAddrPort(buffer)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || n < 2 || netip.AddrPortFrom(from.Addr().Unmap(), from.Port()) != c.server {
			continue
		}
		c.finish(messageID(buffer), append([]byte(nil), buffer[:n]...), nil)
	}
}

func (c *portChannel) close() { _ = c.conn.Close() }

// connChannel is one TCP connection.
type connChannel struct {
	outstanding
	port    uint16
	began   time.Time
	timeout time.Duration
	file    *os.File
	writing sync.Mutex

	stateMu sync.Mutex
	over    bool
}

func newConnChannel(fd int, port uint16, server netip.AddrPort, timeout time.Duration) *connChannel {
	err := unix.Connect(fd, lab.Sockaddr(server))
	c := &connChannel{port: port, began: time.Now(), timeout: timeout, file: os.NewFile(uintptr(fd), "tcp")}
	if err != nil && !errors.Is(err, unix.EINPROGRESS) {
		// No route, say: a connection on which every query is lost.
		c.end()
		return c
	}
	go c.read()
	return c
}

// usable asks the socket itself, since the reader may not yet have run when
// the server has closed.
func (c *connChannel) usable() bool {
	c.stateMu.Lock()
	defer c.stateMu.Unlock()
	if c.over {
		return false
	}
	closed := false
	if raw, err := c.file.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			events := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
			n, err := unix.Poll(events, 0)
			closed = err == nil && n == 1 && events[0].Revents&unix.POLLRDHUP != 0
		})
	}
	return !closed
}

// end makes the client use another connection for its next query.
func (c *connChannel) end() {
	c.stateMu.Lock()
	defer c.stateMu.Unlock()
	c.over = true
}

func (c *connChannel) send(query []byte, done func([]byte, error)) {
	c.add(messageID(query), c.timeout, done, c.end)
	if !c.usable() {
		c.finish(messageID(query), nil, errClosed)
		return
	}
	// Aside, since it waits until the connection is established.
	go func() {
		c.writing.Lock()
		defer c.writing.Unlock()
		framed := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(query)), uint16(len(query)))
		if err := c.file.SetWriteDeadline(time.Now().Add(c.timeout)); err != nil {
			c.finish(messageID(query), nil, bare(err))
			return
		}
		if _, err := c.file.Write(append(framed, query...)); err != nil {
			c.end()
			c.finish(messageID(query), nil, closedOr(err))
		}
	}()
}

func (c *connChannel) read() {
	for {
		response, err := readFramed(c.file)
		if err != nil {
			c.end()
			c.failAll(closedOr(err))
			_ = c.file.Close()
			return
		}
		if len(response) >= 2 {
			c.finish(messageID(response), response, nil)
		}
	}
}

func (c *connChannel) close() {
	c.end()
	_ = c.file.Close()
}

// readFramed reads one message of a TCP connection (RFC 1035 section 4.2.2).
func readFramed(in io.Reader) ([]byte, error) {
	var length [2]byte
	if _, err := io.ReadFull(in, length[:]); err != nil {
		return nil, err
	}
	message := make([]byte, binary.BigEndian.Uint16(length[:]))
	_, err := io.ReadFull(in, message)
	return message, err
}

// closedOr is errClosed for an orderly end of the connection by either side.
func closedOr(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, os.ErrClosed) {
		return errClosed
	}
	return bare(err)
}

// bare drops what package net and os wrap around an error of the kernel, so
// that losses of a kind read alike.
func bare(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}
