package notrack

import (
	"cmp"
	"errors"
	"net"
	"net/netip"
	"time"

	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/internal/loglimit"
)

// tcpWriter writes the answers to a query over TCP, each within a bounded time.
// The DNS server sets no deadline: a client that does not read would hold its
// goroutine, and whoever waits for the same answer, for as long as it likes. It
// also reads on when an answer could not be written, and answers what is left in
// the buffer of a connection whose client has gone; so the connection is closed.
//
// The server serves one query of a connection after the other, so that there is
// one writer of a connection at a time.
type tcpWriter struct {
	dns.ResponseWriter
	client, server netip.AddrPort
	timeout        time.Duration
	closed         bool
}

// defaultWriteTimeout is that of CoreDNS's directive timeouts, which uses it for
// other transports only.
const defaultWriteTimeout = 5 * time.Second

func (n *NoTrack) newTCPWriter(w dns.ResponseWriter, client, server netip.AddrPort) *tcpWriter {
	return &tcpWriter{ResponseWriter: w, client: client, server: server, timeout: cmp.Or(n.block.WriteTimeout, defaultWriteTimeout)}
}

// WriteMsg implements dns.ResponseWriter. As everywhere in CoreDNS, a client that
// cannot be written to is no error.
func (w *tcpWriter) WriteMsg(m *dns.Msg) error {
	return w.bounded(func() error { return w.ResponseWriter.WriteMsg(m) })
}

// Write implements dns.ResponseWriter.
func (w *tcpWriter) Write(b []byte) (int, error) {
	return len(b), w.bounded(func() error {
		_, err := w.ResponseWriter.Write(b)
		return err
	})
}

// Close implements dns.ResponseWriter.
func (w *tcpWriter) Close() error {
	w.closed = true
	return w.ResponseWriter.Close()
}

var limited = loglimit.New(log)

// bounded writes, and closes the connection if that fails or takes too long.
func (w *tcpWriter) bounded(write func() error) error {
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
		limited.Warningf("tcp-slow", "TCP connection of %s closed: an answer could not be written within %s, since the client does not read", w.client, w.timeout)
		return nil
	}
	limited.Warningf("tcp-gone", "TCP connection of %s closed: an answer could not be written: %v", w.client, gone.Err)
	return nil
}

// abort ends a write that waits for the client, and reports whether it found the
// connection. CoreDNS hands no handler the connection itself.
func (w *tcpWriter) abort() bool {
	fd, ok := connection(w.server, w.client)
	return ok && unix.Shutdown(fd, unix.SHUT_RDWR) == nil
}

// answerError answers with a response code what no plugin has answered, which the
// server would do without a deadline.
func (w *tcpWriter) answerError(r *dns.Msg, rcode int) {
	if plugin.ClientWrite(rcode) {
		return
	}
	answer := new(dns.Msg).SetRcode(r, rcode)
	state := request.Request{W: w, Req: r}
	state.SizeAndDo(answer)
	_ = w.WriteMsg(answer)
}
