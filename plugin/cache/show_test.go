package cache

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coredns/coredns/plugin/metadata"
	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/internal/testgolden"
	"github.com/trackless-dns/trackless/iptables/control"
	"github.com/trackless-dns/trackless/plugin/cache/contents"
)

// shownBy returns the answers for a name that a cache shows.
func shownBy(t *testing.T, c *Cache, name string, rrtype uint16) []control.CachedAnswer {
	t.Helper()
	qtype := ""
	if rrtype != dns.TypeNone {
		qtype = dns.TypeToString[rrtype]
	}
	h := contents.Holder{Each: func(fn func(contents.Cache)) error { fn(c.contents()); return nil }, Log: log}
	content, err := h.ShowCache(name, qtype)
	if err != nil {
		t.Fatal(err)
	}
	if content.More != 0 {
		t.Errorf("%d answers are left out", content.More)
	}
	if len(content.Answers) == 0 {
		return nil
	}
	return content.Answers
}

func TestShow(t *testing.T) {
	const soa = "example.org. 300 IN SOA ns.example.org. root.example.org. 1 2 3 4 300"
	authority := func(rcode int) func(*dns.Msg) {
		return func(m *dns.Msg) {
			rr, err := dns.NewRR(soa)
			if err != nil {
				t.Error(err)
			}
			m.Rcode, m.Answer, m.Ns = rcode, nil, []dns.RR{rr}
		}
	}
	base := control.CachedAnswer{
		CacheBlock: control.CacheBlock{ServerBlock: "dns://example.org.:53 dns://example.net.:53", Bind: []string{"127.0.0.1"}, View: "inside", Zones: []string{"."}},
		Name:       www, Type: "A", Class: "IN", Flags: []string{}, Kind: "positive", Rcode: "NOERROR",
		Answer: []string{}, Authority: []string{}, Additional: []string{}, Source: "192.0.2.53:53",
	}
	address := "www.example.org. 100 IN A 192.0.2.1"
	for _, tc := range []struct {
		name  string
		edit  func(*Cache)
		query func(*dns.Msg)
		reply func(*dns.Msg)
		uses  int
		after time.Duration
		want  func(a *control.CachedAnswer)
	}{
		{
			name: "positive", after: 30*time.Second + 900*time.Millisecond,
			want: func(a *control.CachedAnswer) {
				a.Answer = []string{"www.example.org. 70 IN A 192.0.2.1"}
				a.AgeSeconds, a.StoredTTLSeconds, a.TTLSeconds = 30, 100, 70
			},
		},
		{
			name: "DO and CD", query: func(m *dns.Msg) { m.SetEdns0(1232, true); m.CheckingDisabled = true },
			want: func(a *control.CachedAnswer) {
				a.Flags = []string{"do", "cd"}
				a.Answer, a.StoredTTLSeconds, a.TTLSeconds = []string{address}, 100, 100
			},
		},
		{
			name: "NXDOMAIN", reply: authority(dns.RcodeNameError),
			want: func(a *control.CachedAnswer) {
				a.Kind, a.Rcode, a.Authority = "nxdomain", "NXDOMAIN", []string{soa}
				a.StoredTTLSeconds, a.TTLSeconds = 300, 300
			},
		},
		{
			name: "NODATA", reply: authority(dns.RcodeSuccess),
			want: func(a *control.CachedAnswer) {
				a.Kind, a.Authority = "nodata", []string{soa}
				a.StoredTTLSeconds, a.TTLSeconds = 300, 300
			},
		},
		{
			name: "failure", reply: func(m *dns.Msg) { m.Rcode, m.Answer = dns.RcodeServerFailure, nil },
			want: func(a *control.CachedAnswer) {
				a.Kind, a.Rcode, a.StoredTTLSeconds, a.TTLSeconds = "failure", "SERVFAIL", 5, 5
			},
		},
		{
			name: "stale", edit: func(c *Cache) { c.staleUpTo = time.Hour }, after: 110 * time.Second,
			want: func(a *control.CachedAnswer) {
				a.Answer = []string{"www.example.org. 0 IN A 192.0.2.1"}
				a.AgeSeconds, a.StoredTTLSeconds, a.StaleSeconds = 110, 100, 10
			},
		},
		{name: "expired", after: 110 * time.Second},
		{
			name: "used", uses: 2,
			want: func(a *control.CachedAnswer) {
				a.Answer, a.StoredTTLSeconds, a.TTLSeconds, a.Uses = []string{address}, 100, 100, 2
			},
		},
		{
			name: "used more often than is counted", uses: 5,
			want: func(a *control.CachedAnswer) {
				a.Answer, a.StoredTTLSeconds, a.TTLSeconds, a.Uses, a.UsesOrMore = []string{address}, 100, 100, 3, true
			},
		},
		{
			name: "used, counted for prefetch", uses: 5, edit: func(c *Cache) { c.prefetch = 100 },
			want: func(a *control.CachedAnswer) {
				a.Answer, a.StoredTTLSeconds, a.TTLSeconds, a.Uses = []string{address}, 100, 100, 5
			},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			start := time.Now()
			now := start
			next := replies(tc.reply, address)
			answer := next.f
			next.f = func(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
				metadata.SetValueFunc(ctx, "forward/upstream", func() string { return "192.0.2.53:53" })
				return answer(ctx, w, r)
			}
			c := newCache(t, next, func(c *Cache) {
				c.now = func() time.Time { return now }
				c.keys, c.bind, c.viewLabel = []string{"dns://example.org.:53", "dns://example.net.:53"}, []string{"127.0.0.1"}, "inside"
				if tc.edit != nil {
					tc.edit(c)
				}
			})
			for range tc.uses + 1 {
				ask(t, c, question(www, tc.query))
			}
			now = start.Add(tc.after)
			var want []control.CachedAnswer
			if tc.want != nil {
				a := base
				a.Stored = start.UTC()
				tc.want(&a)
				want = append(want, a)
			}
			got := shownBy(t, c, "WWW.example.org", dns.TypeNone)
			for i := range got {
				if d := got[i].Stored.Sub(start); d.Abs() > time.Microsecond {
					t.Errorf("stored %s late", d)
				}
				got[i].Stored = start.UTC()
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			if got := shownBy(t, c, www, dns.TypeAAAA); len(got) != 0 {
				t.Errorf("%d answers to questions for another type", len(got))
			}
		})
	}
}

// TestSourceOfAnswers: the cache knows the upstream of an answer with each directive that
// forwards, with and without the directive metadata.
func TestSourceOfAnswers(t *testing.T) {
	for _, tc := range []struct {
		label, want string
	}{{"forward/upstream", "192.0.2.53:53"}, {"upstream/address", "192.0.2.53:53"}, {"other/label", ""}} {
		for _, with := range []bool{true, false} {
			next := replies(nil, "www.example.org. 100 IN A 192.0.2.1")
			answer := next.f
			next.f = func(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
				metadata.SetValueFunc(ctx, tc.label, func() string { return "192.0.2.53:53" })
				return answer(ctx, w, r)
			}
			c := newCache(t, next, nil)
			ctx := context.Background()
			if with {
				ctx = metadata.ContextWithMetadata(ctx)
			}
			if _, err := c.ServeDNS(ctx, &client{}, question(www, nil)); err != nil {
				t.Fatal(err)
			}
			got := shownBy(t, c, www, dns.TypeNone)
			if len(got) != 1 || got[0].Source != tc.want {
				t.Errorf("%s, with metadata %t: %+v", tc.label, with, got)
			}
		}
	}
}

// slowServer is an upstream that answers questions for www with the address, but
// not until it is released.
type slowServer struct {
	addr     string
	asked    chan struct{}
	released chan struct{}
	address  atomic.Value
	release  func()
}

func newSlowServer(t *testing.T) *slowServer {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &slowServer{addr: conn.LocalAddr().String(), asked: make(chan struct{}, 1), released: make(chan struct{})}
	s.address.Store("192.0.2.1")
	release := sync.OnceFunc(func() { close(s.released) })
	server := &dns.Server{PacketConn: conn, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
		m := new(dns.Msg).SetReply(r)
		if r.Question[0].Name == www { // and is no health check
			select {
			case s.asked <- struct{}{}:
			default: // asked again
			}
			<-s.released
			rr, err := dns.NewRR(www + " 300 IN A " + s.address.Load().(string))
			if err != nil {
				t.Error(err)
			}
			m.Answer = []dns.RR{rr}
		}
		_ = w.WriteMsg(m) // the client may have gone
	})}
	go func() { _ = server.ActivateAndServe() }()
	t.Cleanup(func() {
		release()
		_ = server.Shutdown()
	})
	s.release = release
	return s
}

// TestFlushOfARunningServer: Controlled shows and flushes the answers of server blocks, also
// an answer on its way.
func TestFlushOfARunningServer(t *testing.T) {
	upstream := newSlowServer(t)
	// In the order of the caches, not of the Corefile.
	corefile := strings.NewReplacer("PORT", reloadPort, "ADDR", upstream.addr).Replace(`
example.org:PORT {
	bind 127.0.0.1
	cache
	forward . ADDR
}
example.net:PORT {
	bind 127.0.0.1
	cache
	hosts {
		192.0.2.7 www.example.net
	}
}
`)
	inst := start(t, corefile)
	defer func() { stop(t, inst) }()
	awaitServer(t)
	exchange := func(name string) chan string {
		got := make(chan string, 1)
		go func() {
			m, _, err := (&dns.Client{Timeout: time.Minute}).Exchange(question(name, nil), "127.0.0.1:"+reloadPort)
			if err != nil || len(m.Answer) != 1 {
				got <- fmt.Sprint(err, m)
				return
			}
			got <- m.Answer[0].(*dns.A).A.String()
		}()
		return got
	}
	show := func(name string) []control.CachedAnswer {
		t.Helper()
		content, err := Controlled().ShowCache(name, "a")
		if err != nil || content.Answers == nil {
			t.Fatalf("%v: %v", content, err)
		}
		return content.Answers
	}
	flush := func(s control.CacheScope) (counts []int) {
		t.Helper()
		removed, err := Controlled().FlushCache(s)
		if err != nil || len(removed.Caches) != 2 {
			t.Fatalf("%v: %v", removed, err)
		}
		for _, c := range removed.Caches {
			counts = append(counts, c.Answers())
		}
		return counts
	}

	// The answer to the query is on its way when its name is flushed.
	got := exchange(www)
	<-upstream.asked
	if counts := flush(control.CacheScope{Name: "www.example.org"}); counts[0]+counts[1] != 0 {
		t.Errorf("removed %v of nothing", counts)
	}
	upstream.release()
	if s := <-got; s != "192.0.2.1" {
		t.Errorf("the client got %s", s)
	}
	if answers := show(www); len(answers) != 0 {
		t.Errorf("what was on its way is stored: %+v", answers)
	}

	upstream.address.Store("192.0.2.2")
	if s := <-exchange(www); s != "192.0.2.2" {
		t.Errorf("the client got %s", s)
	}
	if s := <-exchange("www.example.net."); s != "192.0.2.7" {
		t.Errorf("the client got %s", s)
	}
	answers := show(www)
	if len(answers) != 1 || answers[0].Source != upstream.addr || answers[0].ServerBlock != "dns://example.org.:"+reloadPort || answers[0].Bind[0] != "127.0.0.1" {
		t.Fatalf("shown: %+v", answers)
	}
	for _, tc := range []struct {
		scope control.CacheScope
		want  []int // by server block
	}{
		{control.CacheScope{Name: "example.org"}, []int{0, 0}},
		{control.CacheScope{Zone: "EXAMPLE.net."}, []int{1, 0}},
		{control.CacheScope{}, []int{0, 1}},
	} {
		if diff := cmp.Diff(tc.want, flush(tc.scope)); diff != "" {
			t.Errorf("%v (-want +got):\n%s", tc.scope, diff)
		}
	}
	if answers := show(www); len(answers) != 0 {
		t.Errorf("after all was flushed: %+v", answers)
	}
}

func TestControlledRefuses(t *testing.T) {
	if _, err := Controlled().ShowCache(www, ""); !errors.Is(err, errNoCache) {
		t.Errorf("no cache: error %v", err)
	}
	if _, err := Controlled().FlushCache(control.CacheScope{}); !errors.Is(err, errNoCache) {
		t.Errorf("no cache: error %v", err)
	}
	var got strings.Builder
	for _, tc := range []struct {
		name, qtype string
		scope       control.CacheScope
	}{
		{name: ""},
		{name: "a..b"},
		{name: www, qtype: "NOPE"},
		{name: www, qtype: "TYPE65536"},
		{scope: control.CacheScope{Name: "a", Zone: "b"}},
		{scope: control.CacheScope{Zone: strings.Repeat("a", 64)}},
	} {
		_, err := Controlled().ShowCache(tc.name, tc.qtype)
		if tc.scope != (control.CacheScope{}) {
			_, err = Controlled().FlushCache(tc.scope)
		}
		fmt.Fprintf(&got, "%+v\n\t%v\n", tc, err)
	}
	testgolden.Compare(t, "control_errors.txt", got.String())
}
