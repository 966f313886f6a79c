package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/plugin/pkg/dnstest"
	"github.com/coredns/coredns/plugin/test"
	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/internal/figure"
	"github.com/trackless-dns/trackless/internal/testgolden"
	"github.com/trackless-dns/trackless/internal/testport"
	"github.com/trackless-dns/trackless/internal/testwait"
)

// server is a kube-dns whose behaviour a test sets.
type server struct {
	addr netip.AddrPort

	mu       sync.Mutex
	queries  map[string]int // by protocol
	truncate bool
	silent   bool
	lose     int // so many of the next queries
	rcode    int
	hold     chan struct{}
}

// newServer listens on an address of loopback, over UDP and TCP.
func newServer(t *testing.T, ip string) *server {
	t.Helper()
	s := &server{queries: map[string]int{}}
	listener, packets := testport.Both(t, net.ListenConfig{}, ip)
	s.addr = listener.Addr().(*net.TCPAddr).AddrPort()
	for _, d := range []*dns.Server{{Listener: listener, Handler: s}, {PacketConn: packets, Handler: s}} {
		started := make(chan struct{})
		d.NotifyStartedFunc = func() { close(started) }
		go func() { _ = d.ActivateAndServe() }()
		<-started
		t.Cleanup(func() { _ = d.Shutdown() })
	}
	return s
}

func (s *server) ServeDNS(w dns.ResponseWriter, r *dns.Msg) {
	s.mu.Lock()
	protocol := w.RemoteAddr().Network()
	if r.Question[0].Name != "." { // a health check
		s.queries[protocol]++
	}
	silent, truncate, hold, rcode := s.silent, s.truncate && protocol == "udp", s.hold, s.rcode
	if r.Question[0].Name != "." && s.lose > 0 {
		s.lose--
		silent = true
	}
	s.mu.Unlock()
	if hold != nil && r.Question[0].Name != "." {
		<-hold
	}
	if silent {
		return
	}
	m := new(dns.Msg).SetRcode(r, rcode)
	m.Truncated = truncate
	if !truncate && rcode == dns.RcodeSuccess {
		m.Answer = []dns.RR{test.A(r.Question[0].Name + " 5 IN A 192.0.2.1")}
	}
	_ = w.WriteMsg(m)
}

func (s *server) got(protocol string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.queries[protocol]
}

func (s *server) be(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

// fakes replaces the sources until the test ends.
type fakes struct {
	mu    sync.Mutex
	found map[name]Found
	ended map[name]bool
}

func fakeSources(t *testing.T) *fakes {
	t.Helper()
	f := &fakes{found: map[name]Found{}, ended: map[name]bool{}}
	before := follow
	follow = func(ctx context.Context, n name, found Found) {
		f.mu.Lock()
		f.found[n] = found
		f.mu.Unlock()
		<-ctx.Done()
		f.mu.Lock()
		f.ended[n] = true
		f.mu.Unlock()
	}
	t.Cleanup(func() { follow = before })
	return f
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	testwait.True(t, time.Minute, what, holds)
}

// tell gives a source its addresses.
func (f *fakes) tell(t *testing.T, n name, servers ...*server) {
	t.Helper()
	var found Found
	eventually(t, n.String()+" is followed", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		found = f.found[n]
		return found != nil
	})
	var addrs []netip.AddrPort
	for _, s := range servers {
		addrs = append(addrs, s.addr)
	}
	found(addrs, "a test")
}

// started parses a block of a Corefile and starts it.
func started(t *testing.T, text string) *Upstream {
	t.Helper()
	u, err := parse(caddy.NewTestController("dns", text))
	if err != nil {
		t.Fatal(err)
	}
	if err := u.start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = u.stop() })
	return u
}

// ask sends one query and returns the response code and the error.
func ask(u *Upstream) (int, error) {
	w := dnstest.NewRecorder(&test.ResponseWriter{})
	rcode, err := u.ServeDNS(context.Background(), w, new(dns.Msg).SetQuestion("svc.cluster.local.", dns.TypeA))
	if err == nil && (w.Msg == nil || len(w.Msg.Answer) == 0) {
		return rcode, fmt.Errorf("no answer: %v", w.Msg)
	}
	return rcode, err
}

func answered(t *testing.T, u *Upstream, n int) {
	t.Helper()
	for range n {
		if _, err := ask(u); err != nil {
			t.Fatal(err)
		}
	}
}

var kubeDNS = name{endpoints, "kube-system", "kube-dns"}

func TestQueriesAreSpread(t *testing.T) {
	sources := fakeSources(t)
	one, two := newServer(t, "127.0.0.1"), newServer(t, "127.0.0.2")
	u := started(t, "upstream endpoints kube-system/kube-dns")
	sources.tell(t, kubeDNS, one, two)
	answered(t, u, 100)
	if one.got("udp") < 20 || two.got("udp") < 20 || one.got("udp")+two.got("udp") != 100 {
		t.Errorf("%d and %d of 100 queries", one.got("udp"), two.got("udp"))
	}
}

func TestAddressesChange(t *testing.T) {
	sources := fakeSources(t)
	one, two := newServer(t, "127.0.0.1"), newServer(t, "127.0.0.2")
	u := started(t, "upstream service kube-system/kube-dns-upstream {\n read_timeout 5s\n max_connect_attempts 1\n}")
	n := name{service, "kube-system", "kube-dns-upstream"}
	var named *nameError
	if rcode, err := ask(u); rcode != dns.RcodeServerFailure || !errors.Is(err, errUnknown) || !errors.As(err, &named) || named.name != n {
		t.Errorf("before an address is known: %s, error %v", dns.RcodeToString[rcode], err)
	}
	sources.tell(t, n, one)
	answered(t, u, 5)

	// A query under way is answered although its address has gone.
	hold := make(chan struct{})
	one.be(func() { one.hold = hold })
	result := make(chan error, 1)
	go func() {
		_, err := ask(u)
		result <- err
	}()
	eventually(t, "the query is under way", func() bool { return one.got("udp") == 6 })
	sources.tell(t, n, two)
	answered(t, u, 5)
	if one.got("udp") != 6 || two.got("udp") != 5 {
		t.Errorf("%d and %d queries, want 6 and 5", one.got("udp"), two.got("udp"))
	}
	close(hold)
	if err := <-result; err != nil {
		t.Error(err)
	}

	// Only the first address of a Service is asked.
	one.be(func() { one.hold = nil })
	sources.tell(t, n, two, one)
	answered(t, u, 20)
	if one.got("udp") != 6 {
		t.Error("the second address of a Service is asked too")
	}
}

func TestWhatIsKnownOutlivesAReload(t *testing.T) {
	sources := fakeSources(t)
	one := newServer(t, "127.0.0.1")
	first := started(t, "upstream endpoints kube-system/kube-dns")
	sources.tell(t, kubeDNS, one)
	second := started(t, "upstream endpoints kube-system/kube-dns {\n force_tcp\n}")
	if err := first.stop(); err != nil {
		t.Fatal(err)
	}
	answered(t, second, 3)
	if one.got("tcp") != 3 {
		t.Errorf("%d queries over TCP, want 3", one.got("tcp"))
	}
	if err := second.stop(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the source is not followed any more", func() bool {
		sources.mu.Lock()
		defer sources.mu.Unlock()
		return sources.ended[kubeDNS]
	})
}

func TestTruncatedAnswersAreAskedForAgain(t *testing.T) {
	sources := fakeSources(t)
	one := newServer(t, "127.0.0.1")
	one.be(func() { one.truncate = true })
	u := started(t, "upstream endpoints kube-system/kube-dns {\n prefer_udp\n}")
	sources.tell(t, kubeDNS, one)
	answered(t, u, 1)
	if one.got("udp") != 1 || one.got("tcp") != 1 {
		t.Errorf("%d queries over UDP and %d over TCP, want one each", one.got("udp"), one.got("tcp"))
	}
}

func TestMaxConcurrent(t *testing.T) {
	sources := fakeSources(t)
	one, hold := newServer(t, "127.0.0.1"), make(chan struct{})
	one.be(func() { one.hold = hold })
	u := started(t, "upstream endpoints kube-system/kube-dns {\n max_concurrent 1\n read_timeout 5s\n max_connect_attempts 1\n}")
	sources.tell(t, kubeDNS, one)
	result := make(chan error, 1)
	go func() {
		_, err := ask(u)
		result <- err
	}()
	eventually(t, "one is under way", func() bool { return one.got("udp") == 1 })
	if rcode, err := ask(u); rcode != dns.RcodeRefused || err == nil {
		t.Errorf("%s, error %v", dns.RcodeToString[rcode], err)
	}
	close(hold)
	if err := <-result; err != nil {
		t.Error(err)
	}
	one.be(func() { one.hold = nil })
	answered(t, u, 2)
}

func TestTheEnvironmentIsTheFallback(t *testing.T) {
	fakeSources(t)
	t.Setenv("KUBE_DNS_SERVICE_HOST", "10.96.0.10")
	t.Setenv("KUBE_DNS_UPSTREAM_SERVICE_HOST", "10.96.0.99")
	for text, want := range map[string]string{
		"upstream endpoints kube-system/kube-dns":                                       "10.96.0.99:53",
		"upstream service kube-dns-upstream":                                            "10.96.0.99:53",
		"upstream service kube-dns":                                                     "10.96.0.10:53",
		"upstream endpoints kube-system/kube-dns {\n fallback 10.0.0.1 [fd00::1]:54\n}": "10.0.0.1:53 [fd00::1]:54",
		"upstream endpoints kube-system/other":                                          "",
	} {
		u, err := parse(caddy.NewTestController("dns", text))
		if err != nil {
			t.Fatal(err)
		}
		if got := figure.Joined(u.fallback); got != want {
			t.Errorf("%s: fallback %q, want %q", text, got, want)
		}
	}
}

func TestParse(t *testing.T) {
	for _, text := range []string{
		"upstream service kube-system/kube-dns-upstream",
		"upstream endpoints kube-dns",
		"upstream endpoints kube-dns {\n force_tcp\n prefer_udp\n tracked\n expire 20s\n read_timeout 1s\n max_fails 0\n max_concurrent 100\n fallback 10.0.0.1\n}",
		"upstream endpoints kube-dns {\n policy sequential\n failover none\n health_check 1s no_rec domain example.org\n max_age 1m\n max_idle_conns 9\n max_connect_attempts 3\n failfast_all_unhealthy_upstreams\n}",
		"upstream endpoints kube-dns {\n failover servfail NXDOMAIN\n health_check 2s\n policy round_robin\n}",
	} {
		if _, err := parse(caddy.NewTestController("dns", text)); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestParseErrors(t *testing.T) {
	var got strings.Builder
	for _, text := range []string{
		"upstream",
		"upstream endpoints",
		"upstream pods kube-dns",
		"upstream endpoints a/b/c",
		"upstream endpoints Kube-dns",
		"upstream endpoints kube-dns\nupstream endpoints kube-dns",
		"upstream endpoints kube-dns {\n force_tcp yes\n}",
		"upstream endpoints kube-dns {\n expire\n}",
		"upstream endpoints kube-dns {\n expire 1ms\n}",
		"upstream endpoints kube-dns {\n read_timeout 1m\n}",
		"upstream endpoints kube-dns {\n max_fails -1\n}",
		"upstream endpoints kube-dns {\n fallback dns.example.org\n}",
		"upstream endpoints kube-dns {\n policy first\n}",
		"upstream endpoints kube-dns {\n failover\n}",
		"upstream endpoints kube-dns {\n failover NOERROR\n}",
		"upstream endpoints kube-dns {\n failover none REFUSED\n}",
		"upstream endpoints kube-dns {\n health_check\n}",
		"upstream endpoints kube-dns {\n health_check 0s\n}",
		"upstream endpoints kube-dns {\n health_check 1s rec\n}",
		"upstream endpoints kube-dns {\n max_connect_attempts 0\n}",
		"upstream endpoints kube-dns {\n next SERVFAIL\n}",
	} {
		_, err := parse(caddy.NewTestController("dns", text))
		if err == nil {
			t.Fatalf("%s: accepted", text)
		}
		fmt.Fprintf(&got, "%s\n\t%v\n", text, err)
	}
	testgolden.Compare(t, "parse_errors.txt", got.String())
}
