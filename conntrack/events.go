package conntrack

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/mdlayher/netlink"
	"github.com/ti-mo/netfilter"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/conntrack/internal/nfnetlink"
)

// EventType says what happened to an entry.
type EventType uint8

// The events of entries.
const (
	EventNew     EventType = 1 + iota // the first packet was let through
	EventUpdate                       // state, status or mark changed
	EventDestroy                      // timed out, deleted, or evicted
)

var eventNames = [...]string{EventNew: "NEW", EventUpdate: "UPDATE", EventDestroy: "DESTROY"}

// String returns "NEW", "UPDATE" or "DESTROY", as conntrack -E prints it.
func (t EventType) String() string {
	if t == 0 || int(t) >= len(eventNames) {
		return "UNKNOWN"
	}
	return eventNames[t]
}

// ErrOverrun is returned by Receive when events came faster than they were
// read and the kernel dropped some. The next call receives further events.
var ErrOverrun = errors.New("events were lost: they came faster than they were read")

// eventBufferSize is what the kernel may hold for us between two calls: enough
// for about 30,000 events. SO_RCVBUFFORCE, which goes beyond
// net.core.rmem_max, is tried first.
const eventBufferSize = 8 << 20

// A Listener receives the events of one namespace. It is not safe for
// concurrent use, except for Close and SetReadDeadline.
type Listener struct {
	sock    *nfnetlink.Socket
	buf     []byte
	decoder decoder
	entry   Entry
}

// Listen starts receiving events of the given types, of all types if none is
// given. Entries that exist when it is called send updates only if
// net.netfilter.nf_conntrack_events is 1: with 2, the default since Linux 5.19,
// only those made while someone listens do.
func Listen(cfg *Config, types ...EventType) (*Listener, error) {
	if cfg == nil {
		cfg = &Config{}
	}
	sock, err := nfnetlink.Dial(cfg.NetNS)
	if err != nil {
		return nil, opError("open a netlink socket", err)
	}
	// Not a failure: a smaller buffer only overruns earlier, and says so.
	_ = sock.SetReadBuffer(eventBufferSize)
	groups := [...]netfilter.NetlinkGroup{
		EventNew: netfilter.GroupCTNew, EventUpdate: netfilter.GroupCTUpdate, EventDestroy: netfilter.GroupCTDestroy,
	}
	for _, t := range []EventType{EventNew, EventUpdate, EventDestroy} {
		if len(types) > 0 && !slices.Contains(types, t) {
			continue
		}
		if err := sock.JoinGroup(uint32(groups[t])); err != nil {
			_ = sock.Close()
			return nil, opError(fmt.Sprintf("listen for %s events", t), err)
		}
	}
	return &Listener{sock: sock, buf: make([]byte, nfnetlink.ReceiveBufferSize)}, nil
}

// SetReadDeadline makes a Receive that waits at time t return an error for
// which errors.Is(err, os.ErrDeadlineExceeded) holds.
func (l *Listener) SetReadDeadline(t time.Time) error { return l.sock.SetReadDeadline(t) }

// SetBuffer sets how many bytes of events the kernel holds between two calls of
// Receive; an event takes about 250, with the kernel's overhead a kilobyte.
func (l *Listener) SetBuffer(bytes int) error { return l.sock.SetReadBuffer(bytes) }

// Close ends listening; a Receive under way fails.
func (l *Listener) Close() error { return l.sock.Close() }

// Receive waits for the next datagram and calls fn for each event in it. The
// Entry is reused when fn returns. An update carries the parts that changed and
// the tuples, a destroy event no timeout: see Entry.Has.
func (l *Listener) Receive(fn func(EventType, *Entry) error) error {
	n, err := l.sock.Receive(l.buf)
	if errors.Is(err, unix.ENOBUFS) {
		return opError("events", ErrOverrun)
	}
	if err != nil {
		return opError("events", err)
	}
	for rest := l.buf[:n]; len(rest) > 0; {
		var m nfnetlink.Message
		if m, rest, err = nfnetlink.NextMessage(rest); err != nil {
			return opError("events", err)
		}
		t, ok := eventType(m)
		if !ok {
			continue
		}
		if len(m.Data) < nfnetlink.GenHeaderLen {
			return opError("events", nfnetlink.ErrMalformed)
		}
		if err := l.decoder.entry(m.Data[nfnetlink.GenHeaderLen:], &l.entry); err != nil {
			return opError("events", err)
		}
		l.entry.PortID = m.PortID
		if err := fn(t, &l.entry); err != nil {
			return err
		}
	}
	return nil
}

// eventType tells a new entry from an update as the kernel does, by the flags
// (ctnetlink_conntrack_event).
func eventType(m nfnetlink.Message) (EventType, bool) {
	if m.Type>>8 != uint16(netfilter.NFSubsysCTNetlink) {
		return 0, false
	}
	switch m.Type & 0xff {
	case msgNew:
		if m.Flags&uint16(netlink.Create|netlink.Excl) != 0 {
			return EventNew, true
		}
		return EventUpdate, true
	case msgDelete:
		return EventDestroy, true
	}
	return 0, false
}
