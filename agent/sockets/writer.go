package sockets

import (
	"cmp"
	"errors"
	"net"
	"net/netip"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/internal/loglimit"
)

// Writer writes the answers to a query over TCP, each within a bounded time.
// The DNS server sets no deadline: a client that does not read would hold its
// goroutine, and whoever waits for the same answer, for as long as it likes. It
// also reads on when an answer could not be written, and answers what is left in
// the buffer of a connection whose client has gone; so the connection is closed.
//
// The server serves one query of a connection after the other, so that there is
// one writer of a connection at a time.
type Writer struct {
	dns.ResponseWriter
	client, server netip.AddrPort
	timeout        time.Duration
	log            *loglimit.Limiter
	closed         bool
}

// NewWriter returns a writer of answers from the server to the client. A timeout of
// 0 is 5 seconds.
func NewWriter(w dns.ResponseWriter, client, server netip.AddrPort, timeout time.Duration, log *loglimit.Limiter) *Writer {
	return &Writer{ResponseWriter: w, client: client, server: server, timeout: cmp.Or(timeout, defaultWriteTimeout), log: log}
}

// ServeLast answers a query by serve and closes its TCP connection if no other one
// waits in it, so that the client's next query finds the cluster's DNS.
//
// The end of the connection leaves in the same segment as the answer. A client
// that has read the answer can see that there will be no other, and whatever it
// sends after that it sends over a connection of its own.
func (w *Writer) ServeLast(serve func() (int, error)) (int, error) {
	fd, ok := connection(w.server, w.client)
	if !ok {
		return serve() // not the socket itself (proxy protocol): the listener closes it
	}
	// The descriptor stays open until we close it: its only reader is the
	// goroutine that we run in.
	cork(fd, 1)
	rcode, err := serve()
	switch {
	case w.closed: // it could not be written to
	case unread(fd) > 0:
		cork(fd, 0) // another query waits
	default:
		_ = w.Close() // what could not be sent is lost either way
	}
	return rcode, err
}

// defaultWriteTimeout is that of CoreDNS's directive timeouts, which uses it for
// other transports only.
const defaultWriteTimeout = 5 * time.Second

// WriteMsg implements dns.ResponseWriter. As everywhere in CoreDNS, a client that
// cannot be written to is no error.
func (w *Writer) WriteMsg(m *dns.Msg) error {
	return w.bounded(func() error { return w.ResponseWriter.WriteMsg(m) })
}

// Write implements dns.ResponseWriter.
func (w *Writer) Write(b []byte) (int, error) {
	return len(b), w.bounded(func() error {
		_, err := w.ResponseWriter.Write(b)
		return err
	})
}

// Close implements dns.ResponseWriter.
func (w *Writer) Close() error {
	w.closed = true
	return w.ResponseWriter.Close()
}

// bounded writes, and closes the connection if that fails or takes too long.
func (w *Writer) bounded(write func() error) error {
	if w.closed {
		return nil
	}
	aborted := make(chan bool, 1)
	timer := time.AfterFunc(w.timeout, func() { aborted <- w.abort() })
	err := write()
	late := false
	if !timer.Stop() {
		late = <-aborted // the descriptor stays ours until then
	}
	var gone *net.OpError
	if !late && !errors.As(err, &gone) {
		return err // nil, or that of a message that cannot be written
	}
	_ = w.Close()
	if late {
		w.log.Warningf("tcp-slow", "TCP connection of %s closed: an answer could not be written within %s, since the client does not read", w.client, w.timeout)
		return nil
	}
	w.log.Warningf("tcp-gone", "TCP connection of %s closed: an answer could not be written: %v", w.client, gone.Err)
	return nil
}

// abort ends a write that waits for the client, and reports whether it found the
// connection. CoreDNS hands no handler the connection itself.
func (w *Writer) abort() bool {
	fd, ok := connection(w.server, w.client)
	return ok && unix.Shutdown(fd, unix.SHUT_RDWR) == nil
}
