package socket

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// queueSize is how many queries wait for the server of a Conn. It begins a goroutine for
// each at once, so that they are few.
const queueSize = 512

// A Conn is a socket as a DNS server sees it: the queries that are not answered from the
// cache are read from it, and their replies are written to it.
type Conn struct {
	socket *socket
	queue  chan *packet
	taken  atomic.Uint64 // queries that the server has taken
	once   sync.Once
	ended  chan struct{}
}

var _ net.PacketConn = (*Conn)(nil)

// packet is a query on its way to a Conn.
type packet struct {
	from netip.AddrPort
	n    int
	msg  [maxQuery]byte
}

var packets = sync.Pool{New: func() any { return new(packet) }}

func newConn(s *socket) *Conn {
	return &Conn{socket: s, queue: make(chan *packet, queueSize), ended: make(chan struct{})}
}

// pass hands a query over, and reports whether there was room.
func (c *Conn) pass(msg []byte, from netip.AddrPort) bool {
	p := packets.Get().(*packet)
	p.from, p.n = from, copy(p.msg[:], msg)
	return c.put(p)
}

func (c *Conn) put(p *packet) bool {
	select {
	case c.queue <- p:
		return true
	default:
		packets.Put(p)
		return false
	}
}

func (c *Conn) hasEnded() bool {
	select {
	case <-c.ended:
		return true
	default:
		return false
	}
}

// leaveTo hands the queries that wait in a conn which has ended to another one: its server
// may have read for the last time before they came. It returns how many found no room.
func (c *Conn) leaveTo(next *Conn) (dropped uint64) {
	for {
		select {
		case p := <-c.queue:
			if !next.put(p) {
				dropped++
			}
		default:
			return dropped
		}
	}
}

// isCrowded reports whether the server should run before more queries are read.
func (c *Conn) isCrowded() bool { return len(c.queue) > queueSize/2 }

// ReadFrom implements net.PacketConn. After Close it returns the queries that wait, and
// then net.ErrClosed.
func (c *Conn) ReadFrom(b []byte) (int, net.Addr, error) {
	select {
	case p := <-c.queue:
		return c.take(p, b)
	default:
	}
	select {
	case p := <-c.queue:
		return c.take(p, b)
	case <-c.ended:
	}
	select {
	case p := <-c.queue:
		return c.take(p, b)
	default:
		return 0, nil, net.ErrClosed
	}
}

func (c *Conn) take(p *packet, b []byte) (int, net.Addr, error) {
	defer packets.Put(p)
	c.taken.Add(1)
	return copy(b, p.msg[:p.n]), net.UDPAddrFromAddrPort(p.from), nil
}

// WriteTo implements net.PacketConn.
func (c *Conn) WriteTo(b []byte, to net.Addr) (int, error) { return c.socket.conn.WriteTo(b, to) }

// LocalAddr implements net.PacketConn.
func (c *Conn) LocalAddr() net.Addr { return c.socket.conn.LocalAddr() }

// Close implements net.PacketConn. The socket stays open.
func (c *Conn) Close() error {
	c.once.Do(func() { close(c.ended) })
	return nil
}

// SetDeadline implements net.PacketConn. There are no deadlines: a server that waits for
// queries stops at Close.
func (c *Conn) SetDeadline(time.Time) error { return nil }

// SetReadDeadline implements net.PacketConn.
func (c *Conn) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline implements net.PacketConn.
func (c *Conn) SetWriteDeadline(time.Time) error { return nil }
