package socket

import (
	"net"
	"net/netip"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/conntrack/ledger"
	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// socket is one of the sockets of a Group. One goroutine reads it.
type socket struct {
	group *Group
	conn  *net.UDPConn
	raw   syscall.RawConn
	to    atomic.Pointer[Conn]

	answered, passed, dropped atomic.Uint64
	rounds                    atomic.Uint64 // of the reader

	reading, serving stall // of the reader, and of the server of the conn

	batch    *batch
	query    wire.Query
	hits     [batchSize]hit
	flows    [batchSize]ledger.Flow
	counters map[counted]Counter
	counting *Table // to which they belong
}

// hit is a query that was answered.
type hit struct {
	entry        *Entry
	qtype        uint16
	rcode        uint8
	kind         uint8
	query, reply int
}

// Bits of the kind of a hit.
const (
	kindDO = 1 << iota
	kindIPv6
	kindDenial
)

// counted is what has a counter.
type counted struct {
	entry *Entry
	qtype uint16
	rcode uint8
	kind  uint8
}

// maxCounters bounds the counters that a reader remembers: clients may ask for any type.
const maxCounters = 1024

// read reads and answers queries until the socket is closed.
func (s *socket) read() {
	_ = s.raw.Read(s.serve) // the error is that it was closed
}

// serve answers all packets that wait. It returns false when there are no more: the
// runtime calls it again when one comes. An event that comes in between is not lost.
func (s *socket) serve(fd uintptr) (done bool) {
	for {
		n, errno := s.batch.receive(fd)
		s.rounds.Add(1)
		switch {
		case errno == unix.EAGAIN:
			return false
		case errno == unix.EBADF || s.group.closed.Load():
			return true
		case errno != 0:
			continue // an error of the network that an earlier reply has caused
		}
		s.batchOf(fd, n)
		if c := s.to.Load(); c != nil && c.isCrowded() {
			runtime.Gosched() // to the server
		}
		if n < batchSize {
			return false
		}
	}
}

// batchOf answers a batch of packets, and passes on those that it cannot answer.
func (s *socket) batchOf(fd uintptr, n int) {
	now, b := time.Now(), s.batch
	table, leave := s.group.serving(now), s.group.config.Leave
	if table != nil && table != s.counting {
		// The caches of the table before may go.
		clear(s.counters)
		clear(s.hits[:])
		s.counting = table
	}
	hits := 0
	for i := range n {
		msg, client := b.query(i), b.client(i)
		if table != nil && (leave == nil || !leave(client)) {
			if length, entry, denial := s.answer(table, msg, now); length > 0 {
				s.note(&s.hits[hits], entry, denial, len(msg), length)
				s.flows[hits] = ledger.Flow{Proto: unix.IPPROTO_UDP, Client: client, Server: s.group.at}
				b.add(i, length)
				if entry.Block.Hit != nil {
					entry.Block.Hit(s.query.Key())
				}
				hits++
				continue
			}
		}
		s.pass(msg, client)
	}
	if hits > 0 {
		for _, h := range b.send(fd) {
			s.sendLater(&h)
		}
		s.count(hits, time.Since(now))
	}
}

// answer writes the reply to a query, and returns its length. As with CoreDNS, a query that
// causes a panic must not end the process: CoreDNS's server gets it.
func (s *socket) answer(table *Table, msg []byte, now time.Time) (n int, e *Entry, denial bool) {
	defer func() {
		if fault := recover(); fault != nil {
			s.group.config.Panicked(fault)
			n = 0
		}
	}()
	return table.answer(s.batch.reply(), msg, &s.query, now)
}

// note records a hit in h.
func (s *socket) note(h *hit, e *Entry, denial bool, query, reply int) {
	*h = hit{entry: e, qtype: s.query.Type, rcode: uint8(rcode(s.batch.reply())), query: query, reply: reply}
	if s.query.DO {
		h.kind |= kindDO
	}
	if s.group.at.Addr().Is6() {
		h.kind |= kindIPv6
	}
	if denial {
		h.kind |= kindDenial
	}
}

// pass gives a query to CoreDNS's server.
func (s *socket) pass(msg []byte, from netip.AddrPort) {
	if index, ok := s.group.probe.index(msg); ok {
		s.group.found(s, index)
		return
	}
	if s.hand(s.to.Load(), msg, from) {
		s.passed.Add(1)
	} else {
		s.dropped.Add(1)
	}
}

// hand gives a query to a conn, or to the one that has succeeded it by now. It reports
// whether there was room.
func (s *socket) hand(c *Conn, msg []byte, from netip.AddrPort) bool {
	if c == nil || !c.pass(msg, from) {
		return false
	}
	for next := s.to.Load(); next != c && c.hasEnded(); c, next = next, s.to.Load() {
		s.dropped.Add(c.leaveTo(next))
	}
	return true
}

// sendLater sends a reply for which the socket had no room.
func (s *socket) sendLater(h *header) {
	_ = s.raw.Write(func(fd uintptr) bool {
		return sendOne(fd, h) != unix.EAGAIN
	})
}

// count counts the hits of a batch.
func (s *socket) count(n int, took time.Duration) {
	s.group.config.Accountant.Hits(s.flows[:n])
	s.answered.Add(uint64(n))
	for i := range s.hits[:n] {
		h := &s.hits[i]
		s.counter(h).Add(h.query, h.reply, took)
	}
}

func (s *socket) counter(h *hit) Counter {
	key := counted{h.entry, h.qtype, h.rcode, h.kind}
	if c := s.counters[key]; c != nil {
		return c
	}
	if len(s.counters) >= maxCounters {
		clear(s.counters)
	}
	c := h.entry.Block.Counter(Kind{
		Zone: h.entry.Zone, Type: h.qtype, Rcode: int(h.rcode),
		DO: h.kind&kindDO != 0, IPv6: h.kind&kindIPv6 != 0, Denial: h.kind&kindDenial != 0,
	})
	s.counters[key] = c
	return c
}
