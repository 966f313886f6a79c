package querymetrics

import (
	"context"
	"errors"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/metrics"
	"github.com/coredns/coredns/plugin/test"
	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// writer is that of a query from a client.
type writer struct {
	test.ResponseWriter
	client net.Addr
}

func (w *writer) RemoteAddr() net.Addr { return w.client }

// below is the plugin below, which answers as a case says.
type below func(w dns.ResponseWriter, r *dns.Msg) (int, error)

func (below) Name() string { return "below" }

func (b below) ServeDNS(_ context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	return b(w, r)
}

func answers(code int) below {
	return func(w dns.ResponseWriter, r *dns.Msg) (int, error) {
		return code, w.WriteMsg(new(dns.Msg).SetRcode(r, code))
	}
}

var (
	ipv4 = &net.UDPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 4000}
	ipv6 = &net.UDPAddr{IP: net.ParseIP("2001:db8::1"), Port: 4000}
	tcp  = &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 4000}
)

var cases = []struct {
	name   string
	client net.Addr
	query  *dns.Msg
	below  below
	view   string
}{
	{name: "an answer", client: ipv4, query: question("a.example.org."), below: answers(dns.RcodeSuccess)},
	{name: "another answer", client: ipv4, query: question("b.example.org."), below: answers(dns.RcodeSuccess)},
	{name: "a name that is not there", client: ipv4, query: question("b.example.org."), below: answers(dns.RcodeNameError)},
	{name: "over IPv6", client: ipv6, query: question("a.example.org."), below: answers(dns.RcodeSuccess)},
	{name: "over TCP", client: tcp, query: question("a.example.org."), below: answers(dns.RcodeSuccess)},
	{name: "in a view", client: ipv4, query: question("a.example.org."), below: answers(dns.RcodeSuccess), view: "inside"},
	{name: "in a zone", client: ipv4, query: question("a.sub.example.org."), below: answers(dns.RcodeSuccess)},
	{name: "elsewhere", client: ipv4, query: question("a.example.net."), below: answers(dns.RcodeSuccess)},
	{name: "with DO", client: ipv4, query: question("a.example.org.").SetEdns0(1232, true), below: answers(dns.RcodeSuccess)},
	{name: "with EDNS", client: ipv4, query: question("a.example.org.").SetEdns0(1232, false), below: answers(dns.RcodeSuccess)},
	{name: "an error that the server answers", client: ipv4, query: question("a.example.org."), below: func(dns.ResponseWriter, *dns.Msg) (int, error) {
		return dns.RcodeServerFailure, errors.New("no")
	}},
	{name: "no answer", client: ipv4, query: question("a.example.org."), below: func(dns.ResponseWriter, *dns.Msg) (int, error) {
		return dns.RcodeSuccess, nil
	}},
	{name: "bytes", client: ipv4, query: question("a.example.org."), below: func(w dns.ResponseWriter, _ *dns.Msg) (int, error) {
		_, err := w.Write(make([]byte, 300))
		return dns.RcodeSuccess, err
	}},
	{name: "two messages", client: tcp, query: question("a.example.org."), below: func(w dns.ResponseWriter, r *dns.Msg) (int, error) {
		_ = w.WriteMsg(new(dns.Msg).SetReply(r))
		return dns.RcodeSuccess, w.WriteMsg(new(dns.Msg).SetReply(r))
	}},
	{name: "a query that is changed below", client: ipv4, query: question("a.example.org."), below: func(w dns.ResponseWriter, r *dns.Msg) (int, error) {
		r.SetEdns0(1232, true)
		r.Question[0].Qtype = dns.TypeMX
		return dns.RcodeSuccess, w.WriteMsg(new(dns.Msg).SetReply(r))
	}},
}

// A reply in bytes has the RCODE that stands in it. The plugin prometheus takes all for
// NOERROR, and nothing but our own cache writes bytes with another one.
func TestBytesHaveTheirRcode(t *testing.T) {
	rec := &recorder{ResponseWriter: &test.ResponseWriter{}}
	denial, err := new(dns.Msg).SetRcode(question("a.example.org."), dns.RcodeNameError).Pack()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := rec.Write(denial); err != nil {
		t.Fatal(err)
	}
	if rec.rcode != dns.RcodeNameError || rec.size != len(denial) || !rec.written {
		t.Errorf("rcode %d, size %d of %d, written %v", rec.rcode, rec.size, len(denial), rec.written)
	}
}

func question(name string) *dns.Msg { return new(dns.Msg).SetQuestion(name, dns.TypeA) }

// counted asks h all cases and every type of query, and returns the series of the
// server, without its name and without times.
func counted(t *testing.T, server string, m *metrics.Metrics, h plugin.Handler) map[string]string {
	t.Helper()
	ask := func(b below, client net.Addr, query *dns.Msg, view string) {
		m.Next = b
		ctx := context.WithValue(t.Context(), dnsserver.Key{}, &dnsserver.Server{Addr: server})
		if view != "" {
			ctx = context.WithValue(ctx, dnsserver.ViewKey{}, view)
		}
		_, _ = h.ServeDNS(ctx, &writer{client: client}, query)
	}
	for _, tc := range cases {
		ask(tc.below, tc.client, tc.query.Copy(), tc.view)
	}
	for qtype := range uint16(300) {
		q := question("a.example.org.")
		q.Question[0].Qtype = qtype
		ask(answers(dns.RcodeSuccess), ipv4, q, "")
	}
	families, err := prometheus.DefaultGatherer.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, f := range families {
		for _, s := range f.GetMetric() {
			name, of := seriesOf(f.GetName(), s)
			if of == server {
				out[name] = value(f.GetName(), s)
			}
		}
	}
	return out
}

func seriesOf(family string, s *dto.Metric) (name, server string) {
	words := []string{family}
	for _, l := range s.GetLabel() {
		if l.GetName() == "server" {
			server = l.GetValue()
			continue
		}
		words = append(words, l.GetName()+"="+l.GetValue())
	}
	return strings.Join(words, " "), server
}

func value(family string, s *dto.Metric) string {
	h := s.GetHistogram()
	if h == nil {
		return strconv.FormatFloat(s.GetCounter().GetValue(), 'g', -1, 64)
	}
	one := &dto.Histogram{SampleCount: h.SampleCount}
	if !strings.Contains(family, "duration") {
		one.SampleSum, one.Bucket, one.PositiveDelta, one.PositiveSpan = h.SampleSum, h.Bucket, h.PositiveDelta, h.PositiveSpan
	}
	return one.String()
}

// The metrics are those of the plugin prometheus.
func TestTheSameIsCounted(t *testing.T) {
	for _, zones := range [][]string{{"."}, {"example.org.", "sub.example.org."}} {
		t.Run(strings.Join(zones, " "), func(t *testing.T) {
			m := metrics.New("localhost:0")
			for _, z := range zones {
				m.AddZone(z)
			}
			theirs := counted(t, "dns://theirs "+t.Name(), m, m)
			ours := counted(t, "dns://ours "+t.Name(), m, Instead(m, &observer{}))
			for _, name := range slices.Sorted(maps.Keys(theirs)) {
				if ours[name] != theirs[name] {
					t.Errorf("%s: %s, want %s", name, ours[name], theirs[name])
				}
				delete(ours, name)
			}
			if len(theirs) == 0 || len(ours) != 0 {
				t.Errorf("%d series of theirs, and of ours besides: %v", len(theirs), slices.Sorted(maps.Keys(ours)))
			}
		})
	}
}

// observer notes what it is told while it watches.
type observer struct {
	watches bool
	told    []string
}

func (o *observer) Watches() bool { return o.watches }

func (o *observer) Answered(_ dns.ResponseWriter, q dns.Question, rcode int) {
	o.told = append(o.told, q.Name+" "+dns.RcodeToString[rcode])
}

// An observer that watches is told the question of the client and the code of the answer,
// whoever writes it.
func TestObserver(t *testing.T) {
	for _, tc := range []struct {
		name    string
		watches bool
		below   below
		want    []string
	}{
		{"nobody watches", false, answers(dns.RcodeSuccess), nil},
		{"an answer", true, answers(dns.RcodeNameError), []string{"a.example.org. NXDOMAIN"}},
		{"no plugin answers", true, func(dns.ResponseWriter, *dns.Msg) (int, error) { return dns.RcodeServerFailure, nil }, []string{"a.example.org. SERVFAIL"}},
		{"a plugin changes the question", true, func(w dns.ResponseWriter, r *dns.Msg) (int, error) {
			r.Question[0].Name = "b.example.org."
			return dns.RcodeSuccess, w.WriteMsg(r)
		}, []string{"a.example.org. NOERROR"}},
	} {
		m := metrics.New("localhost:0")
		m.AddZone(".")
		m.Next = tc.below
		o := &observer{watches: tc.watches}
		ctx := context.WithValue(t.Context(), dnsserver.Key{}, &dnsserver.Server{Addr: "dns://observed:53"})
		_, _ = Instead(m, o).ServeDNS(ctx, &writer{client: ipv4}, question("a.example.org."))
		if !slices.Equal(o.told, tc.want) {
			t.Errorf("%s: told %q, want %q", tc.name, o.told, tc.want)
		}
	}
}

func TestOtherPluginsStay(t *testing.T) {
	other := answers(dns.RcodeSuccess)
	if got, ok := Instead(other, nil).(below); !ok || got == nil {
		t.Errorf("%T is in its place", Instead(other, nil))
	}
	if Instead(nil, nil) != nil {
		t.Error("something is in the place of nothing")
	}
}

func benchmark(b *testing.B, of func(plugin.Handler) plugin.Handler) {
	m := metrics.New("localhost:0")
	m.AddZone(".")
	m.Next = below(func(w dns.ResponseWriter, r *dns.Msg) (int, error) { return dns.RcodeSuccess, w.WriteMsg(r) })
	h := of(m)
	ctx := context.WithValue(b.Context(), dnsserver.Key{}, &dnsserver.Server{Addr: "dns://:53"})
	w, q := &writer{client: ipv4}, question("a.example.org.")
	b.ReportAllocs()
	for b.Loop() {
		_, _ = h.ServeDNS(ctx, w, q)
	}
}

func BenchmarkPrometheus(b *testing.B) {
	benchmark(b, func(h plugin.Handler) plugin.Handler { return h })
}

func BenchmarkInstead(b *testing.B) {
	benchmark(b, func(h plugin.Handler) plugin.Handler { return Instead(h, &observer{}) })
}
