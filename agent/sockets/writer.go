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

// Writer writes answers over TCP, each within a bounded time. The DNS server sets no
// deadline for writes: a client that does not read would block its goroutine, and queries
// that wait for the same answer. If an answer cannot be written, the Writer closes the
// connection: the server would answer the rest of the buffer although the client has gone.
//
// The server serves the queries of a connection one after the other, so a connection has
// one Writer at a time.
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

// ServeLast calls serve to answer a query, then closes the TCP connection, so that the
// client's next query reaches the cluster's DNS. It leaves the connection open if the
// socket holds another query.
//
// The FIN leaves in the same segment as the answer. So a client that has read the answer
// knows that the connection has ended, and sends its next query over another one.
func (w *Writer) ServeLast(serve func() (int, error)) (int, error) {
	fd, ok := connection(w.server, w.client)
	if !ok {
		return serve() // behind the proxy protocol the listener closes the connection
	}
	// The descriptor stays open: only this goroutine reads from it.
	cork(fd, 1)
	rcode, err := serve()
	switch {
	case w.closed: // a write has failed
	case unread(fd) > 0:
		cork(fd, 0) // another query waits
	default:
		_ = w.Close() // unsent bytes are lost in any case
	}
	return rcode, err
}

// defaultWriteTimeout is the default of CoreDNS's directive timeouts, which has no effect
// on plain DNS over TCP.
const defaultWriteTimeout = 5 * time.Second

// WriteMsg implements dns.ResponseWriter. A failed write to a client is no error, as
// everywhere in CoreDNS.
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
		late = <-aborted // the descriptor stays open until then
	}
	var gone *net.OpError
	if !late && !errors.As(err, &gone) {
		return err // nil, or the error of a message that cannot be packed
	}
	_ = w.Close()
	if late {
		w.log.Warningf("tcp-slow", "TCP connection of %s closed: an answer could not be written within %s; the client does not read", w.client, w.timeout)
		return nil
	}
	w.log.Warningf("tcp-gone", "TCP connection of %s closed: an answer could not be written: %v", w.client, gone.Err)
	return nil
}

// abort ends a write that waits for the client, and reports whether it found the
// connection.
func (w *Writer) abort() bool {
	fd, ok := connection(w.server, w.client)
	return ok && unix.Shutdown(fd, unix.SHUT_RDWR) == nil
}
