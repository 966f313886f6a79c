package fastpath

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin/metrics/vars"
	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/fastpath/socket"
	"github.com/trackless-dns/trackless/internal/loglimit"
	"github.com/trackless-dns/trackless/plugin/notrack"
)

// closePatience bounds the time until queries under way are answered when sockets are
// closed, as CoreDNS bounds it (graceTimeout in core/dnsserver).
const closePatience = 5 * time.Second

// listener has the sockets at one listen address, and CoreDNS's server, which answers all
// queries that they pass.
type listener struct {
	group  *socket.Group
	config *configuration // whose server it has
	conns  []*socket.Conn
	tasks  sync.WaitGroup // a server for each conn
}

func openListener(at netip.AddrPort, sockets int) (*listener, error) {
	g, err := socket.Open(socket.Config{
		At: at, Sockets: sockets, Accountant: notrack.Accountant(), Leave: notrack.IsOurs,
		Others: func() bool { return notrack.OthersServe(at.Addr()) }, Panicked: panicked, Log: log,
	})
	if err != nil {
		return nil, err
	}
	return &listener{group: g}, nil
}

// panicked counts a panic as CoreDNS does, and logs one now and then.
func panicked(fault any) {
	vars.Panic.Inc()
	limited.Warningf("panic", "CoreDNS answers a query that caused a panic at a socket for cached answers: %v; please report it", fault)
}

var limited = loglimit.New(log)

// use has the server answer all queries from now on that the table does not answer. The
// server before it answers those that it has.
func (l *listener) use(s *dnsserver.Server, t *socket.Table, decorate dns.DecorateWriter) {
	l.conns = l.group.Use(t)
	// As the server's ServePacket does.
	ctx := context.WithValue(context.Background(), dnsserver.Key{}, s)
	ctx = context.WithValue(ctx, dnsserver.LoopKey{}, 0)
	for _, conn := range l.conns {
		server := &dns.Server{
			PacketConn: conn, Net: "udp", TsigSecret: s.TsigSecret, DecorateWriter: decorate,
			Handler: dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) { s.ServeDNS(ctx, w, r) }),
		}
		l.tasks.Go(func() { _ = server.ActivateAndServe() }) // the error is that the conn ends
	}
}

// stray is told of each query at CoreDNS's own socket.
func (l *listener) stray(w dns.Writer) {
	q, ok := w.(dns.ResponseWriter)
	if !ok {
		return
	}
	// Those of the node itself are spread over all sockets.
	if client, ok := q.RemoteAddr().(*net.UDPAddr); ok && client.AddrPort().Addr().Unmap() != l.group.At().Addr() {
		l.group.Stray()
	}
}

// close leaves queries to other sockets, waits for those under way, and closes the sockets.
func (l *listener) close() {
	ctx, cancel := context.WithTimeout(context.Background(), closePatience)
	defer cancel()
	l.group.Leave(ctx)
	for _, c := range l.conns {
		_ = c.Close() // never fails
	}
	ended := make(chan struct{})
	go func() {
		l.tasks.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-ctx.Done():
	}
	if err := l.group.Close(); err != nil {
		log.Errorf("%s: close the sockets for cached answers: %v", l.group.At(), err)
	}
}
