package notrack

import (
	"context"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/test"
	"github.com/miekg/dns"
)

// pipeliner is a TCP client that asks 2,000 times for answers of 25 KB and reads none. came
// counts the queries that reach a plugin. ended is closed when the server has closed the
// connection.
func pipeliner(t *testing.T, timeout time.Duration) (client net.Conn, came *atomic.Int64, ended <-chan struct{}) {
	t.Helper()
	const queries = 2000
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	came = new(atomic.Int64)
	n := &NoTrack{
		config: loaded(t), block: &dnsserver.Config{WriteTimeout: timeout},
		Next: plugin.HandlerFunc(func(_ context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
			came.Add(1)
			m := new(dns.Msg).SetReply(r)
			for range 100 {
				m.Answer = append(m.Answer, test.TXT("example.org. 60 IN TXT "+strings.Repeat("x", 250)))
			}
			return dns.RcodeSuccess, w.WriteMsg(m)
		}),
	}
	done := make(chan struct{})
	s := &dns.Server{
		Listener: closingListener{l, done}, MaxTCPQueries: -1, IdleTimeout: func() time.Duration { return time.Minute },
		Handler: dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
			if _, err := n.ServeDNS(t.Context(), w, r); err != nil {
				t.Errorf("an error that would be logged for each query: %v", err)
			}
		}),
	}
	go func() { _ = s.ActivateAndServe() }()
	client, err = net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = client.Close()
		_ = s.Shutdown()
	})
	query, err := new(dns.Msg).SetQuestion("example.org.", dns.TypeTXT).Pack()
	if err != nil {
		t.Fatal(err)
	}
	framed := append([]byte{byte(len(query) >> 8), byte(len(query))}, query...)
	var all []byte
	for range queries {
		all = append(all, framed...)
	}
	if _, err := client.Write(all); err != nil {
		t.Fatal(err)
	}
	return client, came, done
}

// closingListener closes a channel when a connection that it has accepted is closed.
type closingListener struct {
	net.Listener
	closed chan struct{}
}

func (l closingListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &closingConn{conn, l.closed}, nil
}

type closingConn struct {
	net.Conn
	closed chan struct{}
}

func (c *closingConn) Close() error {
	defer close(c.closed)
	return c.Conn.Close()
}

func TestTCPClientThatHasGone(t *testing.T) {
	t.Parallel()
	client, came, ended := pipeliner(t, time.Hour)
	for before := int64(-1); came.Load() != before; { // until a write waits
		before = came.Load()
		time.Sleep(50 * time.Millisecond)
	}
	if err := client.(*net.TCPConn).SetLinger(0); err != nil {
		t.Fatal(err)
	}
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	waiting := came.Load()
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Fatal("the connection stays open")
	}
	if more := came.Load() - waiting; more > 1 {
		t.Errorf("%d queries were worked on after the client had gone", more)
	}
}
