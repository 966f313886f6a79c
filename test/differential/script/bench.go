package script

import (
	"context"
	"fmt"
	"runtime"
	"syscall"
	"testing"

	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/test"
	"github.com/miekg/dns"
)

// Shape is a kind of answer that benchmarks ask for.
type Shape struct {
	Name  string
	Reply func(m *dns.Msg)
}

// Shapes are what a node sees: service addresses, external names, denials
// from search paths.
var Shapes = []Shape{
	{"A", func(m *dns.Msg) { m.Answer = []dns.RR{rr("%s 3600 IN A 192.0.2.1", m.Question[0].Name)} }},
	{"4A", func(m *dns.Msg) {
		for i := range 4 {
			m.Answer = append(m.Answer, rr("%s 3600 IN A 192.0.2.%d", m.Question[0].Name, i))
		}
	}},
	{"AAAA", func(m *dns.Msg) { m.Answer = []dns.RR{rr("%s 3600 IN AAAA 2001:db8::1", m.Question[0].Name)} }},
	{"CNAME", func(m *dns.Msg) {
		m.Answer = []dns.RR{rr("%s 3600 IN CNAME edge.example.net.", m.Question[0].Name), rr("edge.example.net. 3600 IN A 192.0.2.1")}
	}},
	{"NXDOMAIN", func(m *dns.Msg) {
		m.Rcode = dns.RcodeNameError
		m.Ns = []dns.RR{rr("example.test. 3600 IN SOA ns.dns.example.test. hostmaster.example.test. 1 7200 1800 86400 3600")}
	}},
}

// BenchCorefile gives both caches room for everything.
const BenchCorefile = "cache {\nsuccess 262144 3600\ndenial 65536 3600\n}"

// Answer is the upstream of benchmarks.
func (s Shape) Answer() plugin.Handler {
	return plugin.HandlerFunc(func(_ context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
		m := new(dns.Msg)
		m.SetReply(r)
		s.Reply(m)
		return dns.RcodeSuccess, w.WriteMsg(m)
	})
}

// Queries are n queries for different names.
func Queries(n int, qtype uint16) []*dns.Msg {
	out := make([]*dns.Msg, n)
	for i := range out {
		out[i] = new(dns.Msg)
		out[i].SetQuestion(fmt.Sprintf("n%d.example.test.", i), qtype)
		out[i].SetEdns0(1232, false)
	}
	return out
}

// Fill asks for each once.
func Fill(tb testing.TB, h plugin.Handler, queries []*dns.Msg) {
	for _, q := range queries {
		if _, err := h.ServeDNS(context.Background(), &test.ResponseWriter{}, q); err != nil {
			tb.Fatal(err)
		}
	}
}

// QType is the type that the shape answers.
func (s Shape) QType() uint16 {
	if s.Name == "AAAA" {
		return dns.TypeAAAA
	}
	return dns.TypeA
}

// BenchmarkHits measures hits through the plugin interface, one after the
// other and in parallel, over many names.
func BenchmarkHits(b *testing.B, open func(b *testing.B, next plugin.Handler) plugin.Handler) {
	for _, shape := range Shapes {
		queries := Queries(10_000, shape.QType())
		h := open(b, shape.Answer())
		Fill(b, h, queries)
		ctx := context.Background()
		b.Run(shape.Name+"/serial", func(b *testing.B) {
			w := &test.ResponseWriter{}
			b.ReportAllocs()
			defer CPU(b)()
			i := 0
			for b.Loop() {
				_, _ = h.ServeDNS(ctx, w, queries[i%len(queries)])
				i += 7919
			}
		})
		b.Run(shape.Name+"/parallel", func(b *testing.B) {
			b.ReportAllocs()
			defer CPU(b)()
			b.RunParallel(func(pb *testing.PB) {
				w := &test.ResponseWriter{}
				for i := 0; pb.Next(); i += 7919 {
					_, _ = h.ServeDNS(ctx, w, queries[i%len(queries)])
				}
			})
		})
	}
}

// BenchmarkMisses measures queries for names that are not cached, in a cache
// that is full of others.
func BenchmarkMisses(b *testing.B, open func(b *testing.B, next plugin.Handler) plugin.Handler) {
	h := open(b, Shapes[0].Answer())
	ctx := context.Background()
	w := &test.ResponseWriter{}
	q := Queries(1, dns.TypeA)[0]
	n := 0
	miss := func() {
		n++
		q.Question[0].Name = fmt.Sprintf("n%d.example.test.", n)
		_, _ = h.ServeDNS(ctx, w, q)
	}
	for range 300_000 {
		miss()
	}
	b.ReportAllocs()
	defer CPU(b)()
	for b.Loop() {
		miss()
	}
}

// CPU reports the processor time per operation beside the wall clock's, which
// on a shared machine counts others' work too. The function it returns ends the
// measurement.
func CPU(b *testing.B) func() {
	start := cpuTime()
	return func() { b.ReportMetric(float64(cpuTime()-start)/float64(b.N), "cpu-ns/op") }
}

// cpuTime is the processor time of the process in nanoseconds.
func cpuTime() int64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

// HeapInUse is the heap in use after garbage collection, in bytes.
func HeapInUse() int {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapInuse)
}

// Memory returns the bytes of heap per answer that a cache takes for n
// different names with an A record each, and adds what it has elsewhere.
func Memory(tb testing.TB, n int, h plugin.Handler, elsewhere func() int) float64 {
	before := HeapInUse() + elsewhere()
	for i := range n {
		q := new(dns.Msg)
		q.SetQuestion(fmt.Sprintf("n%d.example.test.", i), dns.TypeA)
		Fill(tb, h, []*dns.Msg{q})
	}
	after := HeapInUse() + elsewhere()
	runtime.KeepAlive(h)
	return float64(after-before) / float64(n)
}
