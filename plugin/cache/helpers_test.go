package cache

import (
	"context"
	"net"
	"sync"
	"testing"

	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/test"
	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/plugin/cache/failures"
)

// newCache returns an open cache in front of next, changed by edit before it
// opens.
func newCache(t testing.TB, next plugin.Handler, edit func(*Cache)) *Cache {
	t.Helper()
	c := New()
	c.Next = next
	c.size = 1 << 20
	c.errors = new(failures.Limit)
	c.countsAll = true // the upstream of tests publishes no address
	if edit != nil {
		edit(c)
	}
	if err := c.Open(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// upstream answers by a function and counts.
type upstream struct {
	mu    sync.Mutex
	calls int
	tcp   int
	f     func(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error)
}

func (u *upstream) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	u.mu.Lock()
	u.calls++
	if _, ok := w.RemoteAddr().(*net.TCPAddr); ok {
		u.tcp++
	}
	u.mu.Unlock()
	return u.f(ctx, w, r)
}

func (u *upstream) Name() string { return "upstream" }

func (u *upstream) count() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.calls
}

func (u *upstream) reset() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.calls, u.tcp = 0, 0
}

// replies answers every question with the records, if there are any. edit may change the
// reply.
func replies(edit func(m *dns.Msg), records ...string) *upstream {
	return &upstream{f: func(_ context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
		m := new(dns.Msg)
		m.SetReply(r)
		for _, s := range records {
			rr, err := dns.NewRR(s)
			if err != nil {
				return dns.RcodeServerFailure, err
			}
			m.Answer = append(m.Answer, rr)
		}
		if edit != nil {
			edit(m)
		}
		return dns.RcodeSuccess, w.WriteMsg(m)
	}}
}

const www = "www.example.org."

func question(name string, edit func(*dns.Msg)) *dns.Msg {
	m := new(dns.Msg)
	m.SetQuestion(name, dns.TypeA)
	if edit != nil {
		edit(m)
	}
	return m
}

// client keeps what was written to it.
type client struct {
	test.ResponseWriter
	mu  sync.Mutex
	got []*dns.Msg
}

func (w *client) WriteMsg(m *dns.Msg) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.got = append(w.got, m)
	return nil
}

// ask sends a query and returns the reply, or nil if there was none.
func ask(t testing.TB, c *Cache, r *dns.Msg) *dns.Msg {
	t.Helper()
	w := &client{}
	if _, err := c.ServeDNS(context.Background(), w, r); err != nil {
		t.Error(err)
	}
	if len(w.got) == 0 {
		return nil
	}
	if len(w.got) > 1 {
		t.Errorf("%d replies", len(w.got))
	}
	return w.got[0]
}
