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
// while queries go on being answered and packets being dropped. Where none is
// answered, nobody reads the buffer, or nobody gets any further; where none is
// dropped, ours waits among the others. Copies would only fill the buffer then.
const (
	copyInterval = 10 * time.Millisecond
	maxCopies    = 8 // at a time

	// busyTimeout is in place of checkTimeout while queries are answered.
	busyTimeout = 600 * time.Millisecond

	// againInterval is the time until a lease probe is sent again that waits among
	// others. Each answer renews the lease. If all of them wait for nearly as long as
	// a lease lasts, it is held all the same.
	againInterval = 100 * time.Millisecond

	// lately is the age of an answer to an earlier lease probe that is as good as one
	// to the last.
	lately = 500 * time.Millisecond
)

// askUDP sends a check and returns which of our sockets answered.
func (c *Checker) askUDP(ctx context.Context, e iptables.Endpoint, conn *net.UDPConn) (socket string, err error) {
	x, err := c.exchange(e, conn, CheckLabel)
	if err != nil {
		return "", err
	}
	socket, _, err = x.run(ctx)
	return socket, err
}

// sendLease sends a lease probe.
func (c *Checker) sendLease(e iptables.Endpoint, conn *net.UDPConn) (*exchange, error) {
	x, err := c.exchange(e, conn, LeaseLabel)
	if err != nil {
		return nil, err
	}
	x.again = againInterval
	return x, x.send()
}

// awaitLease returns when an answer came in, to the lease probe or to an earlier one:
// either has renewed the lease.
func (x *exchange) awaitLease(ctx context.Context) (at time.Time, err error) {
	if _, at, err = x.await(ctx); err != nil && !x.earlier.IsZero() {
		return x.earlier, nil
	}
	return at, err
}

// exchange is one query and its copies.
type exchange struct {
	c      *Checker
	e      iptables.Endpoint
	conn   *net.UDPConn
	query  *dns.Msg
	packed []byte

	sent    time.Time     // last
	again   time.Duration // when it is sent again in any case; 0 for never
	earlier time.Time     // when the answer to an earlier lease probe came in
}

func (c *Checker) exchange(e iptables.Endpoint, conn *net.UDPConn, label string) (*exchange, error) {
	query := c.Identity.Query(label, c.Zones[e])
	packed, err := query.Pack()
	return &exchange{c: c, e: e, conn: conn, query: query, packed: packed}, err
}

// send sends the query.
func (x *exchange) send() error {
	x.sent = time.Now()
	_, err := x.conn.WriteToUDPAddrPort(x.packed, x.e.AddrPort())
	return err
}

// run sends the query and waits for the answer.
func (x *exchange) run(ctx context.Context) (socket string, at time.Time, err error) {
	if err := x.send(); err != nil {
		return "", at, err
	}
	return x.await(ctx)
}

// await waits until the query that was sent is answered, and sends copies where these
// are called for.
func (x *exchange) await(ctx context.Context) (socket string, at time.Time, err error) {
	// The end of the context ends a read that waits.
	defer context.AfterFunc(ctx, func() { _ = x.conn.SetReadDeadline(longAgo) })()
	copies, due := 0, copying{c: x.c, answered: x.c.Progress(), more: 1}
	for {
		if copies == 0 && x.again > 0 && time.Since(x.sent) >= x.again {
			copies = 1
		}
		for range copies {
			if err := x.send(); err != nil {
				return "", at, err
			}
		}
		var answer *dns.Msg
		answer, at, err = x.receive(ctx)
		switch {
		case err == nil:
			socket, err = x.c.Identity.AnsweredBy(x.query, answer)
			return socket, at, err
		case ctx.Err() != nil || !errors.Is(err, os.ErrDeadlineExceeded):
			return "", at, err
		}
		copies = due.next()
	}
}

// copying decides how many copies are to be sent.
type copying struct {
	c              *Checker
	answered, lost uint64
	more           int
	counts         bool // lost is known
}

func (d *copying) next() int {
	answered := d.c.Progress()
	if answered == d.answered {
		return 0
	}
	lost, known := d.c.Lost(), d.counts
	drops := lost != d.lost
	d.lost, d.counts = lost, true
	if !known || !drops {
		return 0
	}
	d.answered, d.more = answered, min(2*d.more, maxCopies)
	return d.more
}

var longAgo = time.Unix(1, 0)

// receive waits for the answer, at most copyInterval. The caller then decides whether
// to send copies.
func (x *exchange) receive(ctx context.Context) (*dns.Msg, time.Time, error) {
	began := time.Now()
	if err := x.conn.SetReadDeadline(began.Add(copyInterval)); err != nil {
		return nil, began, err
	}
	if ctx.Err() != nil {
		return nil, began, os.ErrDeadlineExceeded
	}
	answer, at, err := x.read()
	if err != nil {
		return nil, began, err
	}
	// A deadline that stays wakes the process when it passes.
	return answer, at, x.conn.SetReadDeadline(time.Time{})
}

// read reads the answer, until the deadline.
func (x *exchange) read() (*dns.Msg, time.Time, error) {
	buf, control := make([]byte, dns.MinMsgSize), make([]byte, unix.CmsgSpace(timespecSize))
	for {
		n, controls, _, from, err := x.conn.ReadMsgUDPAddrPort(buf, control)
		if err != nil {
			return nil, time.Now(), err
		}
		answer := new(dns.Msg)
		if from.Port() != x.e.Port || answer.Unpack(buf[:n]) != nil {
			continue // one from another endpoint is no answer to this one
		}
		at := receivedAt(control[:controls])
		if answer.Id == x.query.Id {
			return answer, at, nil
		}
		// A late answer to an earlier check is no answer to this one.
		if x.again > 0 && time.Since(at) < lately && x.c.Identity.renews(answer) {
			x.earlier = at
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
		return now.Add(-min(max(age, 0), longestPatience))
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
