package fairness

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/pkg/dnstest"
	"github.com/coredns/coredns/plugin/pkg/transport"
	"github.com/coredns/coredns/plugin/test"
	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/trackless-dns/trackless/agent/admission"
	"github.com/trackless-dns/trackless/agent/fairness"
	"github.com/trackless-dns/trackless/internal/testgolden"
)

func TestParse(t *testing.T) {
	for _, tc := range []struct {
		text string
		off  bool
		most int
	}{
		{"fairness", false, 0},
		{"fairness off", true, 0},
		{"fairness {\nmax 500\n}", false, 500},
	} {
		g := new(Gate)
		if err := parse(caddy.NewTestController("dns", tc.text), g); err != nil || g.off != tc.off || g.most != tc.most {
			t.Errorf("%q: %+v, %v", tc.text, g, err)
		}
	}
}

func TestParseErrors(t *testing.T) {
	var got strings.Builder
	for _, input := range []string{
		"fairness on", strings.Repeat("fairness\n", 2), "fairness {\nmost 500\n}", "fairness {\nmax\n}", "fairness {\nmax 1 2\n}",
		"fairness {\nmax 15\n}", "fairness {\nmax many\n}", "fairness off {\nmax 500\n}",
	} {
		err := parse(caddy.NewTestController("dns", input), new(Gate))
		if err == nil {
			t.Fatalf("%q: accepted", input)
		}
		fmt.Fprintf(&got, "%q\n\t%v\n", input, err)
	}
	testgolden.Compare(t, "parse_errors.txt", got.String())
}

// A block with notrack has its handler call the gate, and the directive adds none.
func TestTheHandlerIsPlacedOnce(t *testing.T) {
	for _, owned := range []bool{false, true} {
		c := caddy.NewTestController("dns", "fairness")
		if owned {
			Own(c)
		}
		if err := setup(c); err != nil {
			t.Fatal(err)
		}
		if n := len(dnsserver.GetConfig(c).Plugin); (n == 0) != owned {
			t.Errorf("a plugin owns the gate: %v, and there are %d handlers", owned, n)
		}
	}
}

// Of several bounds the smallest one holds.
func TestMost(t *testing.T) {
	for want, most := range map[int][]int{0: {0, 0}, 100: {0, 500, 100}} {
		all := gates{}
		for _, n := range most {
			all[new(dnsserver.Config)] = &Gate{most: n}
		}
		if got := all.most(); got != want {
			t.Errorf("%v: %d, want %d", most, got, want)
		}
	}
}

// A client that asks for more than its share is answered SERVFAIL, and others are not. Over
// TCP it is the same. The log and the metric name it.
func TestAFloodIsAnsweredServfail(t *testing.T) {
	for _, tcp := range []bool{false, true} {
		t.Run(fmt.Sprintf("tcp %t", tcp), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				defer func(q *admission.Queries) { Queries = q }(Queries)
				Queries = &admission.Queries{Offenders: fairness.Offenders{Log: log}}
				Queries.AtMost(leastMost)
				g := &Gate{block: &dnsserver.Config{}}
				h := &handler{gate: g, Next: plugin.HandlerFunc(func(_ context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
					time.Sleep(5 * time.Millisecond)
					return 0, w.WriteMsg(new(dns.Msg).SetReply(r))
				})}
				flood := make(chan *dns.Msg, 1000)
				for range cap(flood) {
					go func() { flood <- ask(t, h, "10.244.0.1", tcp) }()
				}
				synctest.Wait()
				began := time.Now()
				if m := ask(t, h, "10.244.0.2", tcp); m.Rcode != dns.RcodeSuccess || time.Since(began) > 10*time.Millisecond {
					t.Errorf("the other client got %s after %v", dns.RcodeToString[m.Rcode], time.Since(began))
				}
				failed := 0
				for range cap(flood) {
					if m := <-flood; m.Rcode == dns.RcodeServerFailure {
						failed++
						if opt := m.IsEdns0(); opt == nil || len(opt.Option) != 1 || opt.Option[0].(*dns.EDNS0_EDE).InfoCode != dns.ExtendedErrorCodeOther {
							t.Fatalf("no reason: %v", m)
						}
					}
				}
				if failed == 0 {
					t.Error("no query was answered SERVFAIL")
				}
				want := fmt.Sprintf("# HELP coredns_fairness_source_shed_total Queries beyond the share of their client, of the ten clients that lost most.\n"+
					"# TYPE coredns_fairness_source_shed_total counter\n"+
					"coredns_fairness_source_shed_total{name=\"\",source=\"10.244.0.1\"} %d\n", failed)
				if err := testutil.CollectAndCompare(collector{}, strings.NewReader(want), "coredns_fairness_source_shed_total"); err != nil {
					t.Error(err)
				}
				time.Sleep(time.Minute) // the log's line at the end
			})
		})
	}
}

// A client without EDNS gets the RCODE alone.
func TestReplyWithoutEDNS(t *testing.T) {
	m := new(OverShare).Reply(new(dns.Msg).SetQuestion("www.example.org.", dns.TypeA))
	if m.Rcode != dns.RcodeServerFailure || m.IsEdns0() != nil {
		t.Error(m)
	}
}

// With off every query passes at once.
func TestOff(t *testing.T) {
	g := &Gate{block: &dnsserver.Config{}, off: true}
	want := errors.New("a plugin below")
	_, err := g.Pass(t.Context(), &test.ResponseWriter{}, new(dns.Msg), func(context.Context) (int, error) {
		if f := Queries.Misses().Figures(); f.UnderWay > 0 {
			t.Errorf("%+v", f)
		}
		return 0, want
	})
	if !errors.Is(err, want) {
		t.Error(err)
	}
}

func ask(t *testing.T, h plugin.Handler, client string, tcp bool) *dns.Msg {
	t.Helper()
	r := new(dns.Msg).SetQuestion("www.example.org.", dns.TypeA)
	r.SetEdns0(1232, false)
	w := dnstest.NewRecorder(&test.ResponseWriter{RemoteIP: netip.MustParseAddr(client).String(), TCP: tcp})
	if _, err := h.ServeDNS(t.Context(), w, r); err != nil {
		t.Error(err)
	}
	return w.Msg
}

// What the cache asks by itself has a name, too.
func TestLossesOfTheCache(t *testing.T) {
	defer func(q *admission.Queries) { Queries = q }(Queries)
	Queries = &admission.Queries{Offenders: fairness.Offenders{Log: log}}
	Queries.Offenders.Lost(netip.Addr{})
	const want = "# HELP coredns_fairness_source_shed_total Queries beyond the share of their client, of the ten clients that lost most.\n" +
		"# TYPE coredns_fairness_source_shed_total counter\n" +
		"coredns_fairness_source_shed_total{name=\"\",source=\"cache\"} 1\n"
	if err := testutil.CollectAndCompare(collector{}, strings.NewReader(want), "coredns_fairness_source_shed_total"); err != nil {
		t.Error(err)
	}
}

// No query stays without an answer: one whose time is over while it waits is answered
// SERVFAIL, and the cache learns of one that it has ended itself that there was no response.
func TestTheEndOfAWait(t *testing.T) {
	for _, cancelled := range []bool{false, true} {
		t.Run(fmt.Sprintf("cancelled %t", cancelled), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				defer func(q *admission.Queries) { Queries = q }(Queries)
				Queries = &admission.Queries{Offenders: fairness.Offenders{Log: log}}
				Queries.AtMost(2)
				g := &Gate{block: &dnsserver.Config{}}
				hold := make(chan struct{})
				pass := func(ctx context.Context, w dns.ResponseWriter) (int, error) {
					return g.Pass(ctx, w, new(dns.Msg).SetQuestion("www.example.org.", dns.TypeA), func(context.Context) (int, error) {
						<-hold
						return 0, nil
					})
				}
				go func() { _, _ = pass(t.Context(), &test.ResponseWriter{}) }()
				synctest.Wait()
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				if cancelled {
					time.AfterFunc(time.Second/2, cancel)
				}
				w := dnstest.NewRecorder(&test.ResponseWriter{})
				rcode, err := pass(ctx, w)
				answered := w.Msg != nil && w.Msg.Rcode == dns.RcodeServerFailure
				if answered == cancelled || cancelled && (rcode != dns.RcodeServerFailure || err == nil) {
					t.Errorf("%s, %v, reply %v", dns.RcodeToString[rcode], err, w.Msg)
				}
				close(hold)
				synctest.Wait()
			})
		})
	}
}

// The queries of TCP connections wait, those that a client may ask at once give way.
func TestWhoGivesWay(t *testing.T) {
	for _, tc := range []struct {
		transport string
		tcp, gone bool
	}{
		{transport.DNS, false, true}, {transport.DNS, true, false}, {transport.TLS, true, false},
		{transport.HTTPS, true, true}, {transport.GRPC, true, true},
	} {
		t.Run(fmt.Sprintf("%s tcp %t", tc.transport, tc.tcp), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				defer func(q *admission.Queries) { Queries = q }(Queries)
				Queries = &admission.Queries{Offenders: fairness.Offenders{Log: log}}
				Queries.AtMost(2)
				g := &Gate{block: &dnsserver.Config{Transport: tc.transport}}
				hold := make(chan struct{})
				for range 10 {
					go func() {
						_, _ = g.Pass(t.Context(), &test.ResponseWriter{TCP: tc.tcp}, new(dns.Msg).SetQuestion("www.example.org.", dns.TypeA), func(context.Context) (int, error) {
							<-hold
							return 0, nil
						})
					}()
				}
				synctest.Wait()
				if f := Queries.Misses().Figures(); (f.Shed > 0) != tc.gone {
					t.Errorf("%+v", f)
				}
				close(hold)
				synctest.Wait()
			})
		})
	}
}
