// Package script runs one story of clients, an upstream and a clock against a
// cache plugin and writes down what happened. Run twice with one seed, against
// two plugins, it gives two records to compare.
//
// Everything is drawn from the seed: the options of the cache, who asks what
// when, and what the upstream says to which question at which time. The clock is
// that of a testing/synctest bubble.
package script

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coredns/coredns/plugin"
	"github.com/miekg/dns"
)

// Configs are the bodies of the directive that episodes draw from.
var Configs = []string{
	"cache",
	"cache 30",
	"cache {\nsuccess 9984 30\ndenial 9984 5\n}",
	"cache {\nsuccess 2048 3600 0\ndenial 2048 1800 0\n}",
	"cache {\nsuccess 2048 60 20\ndenial 2048 40 10\n}",
	"cache {\nprefetch 2 30s 50%\n}",
	"cache 60 {\nprefetch 1 1m 20%\n}",
	"cache {\nprefetch 3 10s 90%\nserve_stale 1m\n}",
	"cache {\nprefetch 1 10m 90%\nservfail 1m\n}",
	"cache {\nprefetch 2 1m 80%\nservfail 20s\nserve_stale\n}",
	"cache {\nserve_stale\n}",
	"cache {\nserve_stale 30s immediate 30s 10s\n}",
	"cache {\nserve_stale 1m verify\n}",
	"cache {\nserve_stale 1m verify 100ms\n}",
	"cache {\nserve_stale 1m verify 100ms 30s 10s\n}",
	"cache {\nserve_stale 1m verify 0 0 10s\n}",
	"cache {\nserve_stale\nserve_stale_policy prefer_positive\n}",
	"cache {\nserve_stale 1m verify\nserve_stale_policy prefer_positive\n}",
	"cache 30 {\nserve_stale 1m verify 100ms\nserve_stale_policy prefer_positive\n}",
	"cache {\nservfail 0\n}",
	"cache {\nservfail 30s\nserve_stale 1m\n}",
	"cache {\ndisable success pos-off.example.org\ndisable denial neg-off.example.org\n}",
	"cache {\ndisable denial\n}",
	"cache {\nkeepttl\n}",
	"cache {\nkeepttl\nserve_stale 1m verify 100ms\nprefetch 1 1m 30%\n}",
	"cache 20 example.org",
}

// names are who is asked for. Names that begin with ecs are asked for with a
// client subnet at times, those with rd without recursion, those with opt with a
// cookie. Those with tc have answers that do not fit UDP, those with spoof
// responses to other questions, those with soa denials whose TTL is larger than
// RFC 2308 has it, those with nx aliases to denied names. To those with dead the
// upstream does not answer at times, to those with lost it misses queries, and those
// with self it asks the cache for before it answers.
var names = []string{
	"n0.example.org.", "n1.example.org.", "n2.example.org.", "spoof.example.org.", "n3.example.org.", "n4.example.org.", "n5.example.org.",
	"n6.example.org.", "n7.example.org.", "www.sub.example.org.", "example.org.",
	"a.pos-off.example.org.", "a.neg-off.example.org.", "out.example.net.",
	"tc0.example.org.", "ecs0.example.org.", "soa0.example.org.",
	"rd0.example.org.", "opt0.example.org.", "nx0.example.org.", "dead0.example.org.", "lost0.example.org.", "self0.example.org.",
}

var types = []uint16{dns.TypeA, dns.TypeA, dns.TypeA, dns.TypeAAAA, dns.TypeTXT, dns.TypeCNAME, dns.TypeANY, dns.TypeMX}

// Episode is what happened with one cache.
type Episode struct {
	Number  int
	Config  string
	Replies []Reply
	Calls   []Call
	Metrics map[string]float64
}

// Reply is what one client got.
type Reply struct {
	Step    int           // queries of one step are sent at once
	Asked   time.Duration // since the episode began
	Got     time.Duration
	Query   string // what was asked, for people
	Name    string // lower case
	Spelled string // the name as the client spelled it
	Key     string // identical queries have the same
	ECS     bool
	TCP     bool
	Written int    // how many messages were written
	Msg     []byte // the last of them, packed without compression
	Code    int
	Failed  bool // there was an error
}

// Call is a query that reached the upstream.
type Call struct {
	At, Done time.Duration
	Name     string
	Key      string
	TCP      bool
	What     string // what the upstream did
	Rcode    int
	Denial   bool // it has an SOA record
}

// Open makes the plugin from a Corefile, in front of next. It returns a
// function to close it.
type Open func(t *testing.T, corefile string, next plugin.Handler) (plugin.Handler, func())

// Steps is the number of steps of an episode.
const Steps = 250

// Run plays episode number n of the seed in a bubble of its own.
func Run(t *testing.T, seed uint64, n int, open Open, metrics func() map[string]float64) *Episode {
	e := &Episode{Number: n}
	synctest.Test(t, func(t *testing.T) { e.play(t, seed, open, metrics) })
	return e
}

func (e *Episode) play(t *testing.T, seed uint64, open Open, metrics func() map[string]float64) {
	r := rand.New(rand.NewPCG(seed, uint64(e.Number)))
	e.Config = Configs[r.IntN(len(Configs))]
	up := &upstream{seed: seed ^ uint64(e.Number)<<20, start: time.Now()}
	// Half of the episodes are calm: without what makes the two differ, so
	// that sums can be compared too.
	calm := r.IntN(2) == 0
	before := metrics()
	h, done := open(t, e.Config, up)
	up.self = h

	var mu sync.Mutex
	var wg sync.WaitGroup
	var last *client // whose question is asked again at once
	for step := range Steps {
		qs := clients(r, calm, last)
		for _, q := range qs {
			reply := Reply{Step: step, Asked: time.Since(up.start), Query: q.String(), Name: strings.ToLower(q.name), Spelled: q.name, Key: q.key(), ECS: q.ecs, TCP: q.tcp}
			wg.Go(func() {
				w := &writer{tcp: q.tcp}
				code, err := h.ServeDNS(context.Background(), w, q.message())
				reply.Got = time.Since(up.start)
				reply.Written, reply.Msg, reply.Code, reply.Failed = w.written, w.msg, code, err != nil
				mu.Lock()
				e.Replies = append(e.Replies, reply)
				mu.Unlock()
			})
			// Who comes first matters at times. No time passes meanwhile.
			synctest.Wait()
		}
		last = nil
		seldom := 250
		if strings.HasPrefix(qs[0].name, "lost") || strings.HasPrefix(qs[0].name, "dead") {
			seldom = 3
		}
		if !calm && r.IntN(seldom) == 0 { // the next one meets the query of this one
			last = &qs[0]
			time.Sleep(time.Duration(1+r.IntN(20)) * time.Millisecond)
			continue
		}
		time.Sleep(gap(r))
	}
	wg.Wait()
	time.Sleep(time.Minute) // refreshes end
	synctest.Wait()
	done()
	e.Calls = up.calls
	e.Metrics = metrics()
	for name, v := range before {
		e.Metrics[name] -= v
	}
}

// gap is the time to the next step: whole milliseconds, which the upstream's
// answers never take, so that nothing happens at the same time.
func gap(r *rand.Rand) time.Duration {
	switch n := r.IntN(100); {
	case n < 30:
		return time.Duration(100+r.IntN(900)) * time.Millisecond
	case n < 80:
		return time.Duration(1+r.IntN(4)) * time.Second
	case n < 95:
		return time.Duration(5+r.IntN(30)) * time.Second
	case n < 99:
		return time.Duration(1+r.IntN(5)) * time.Minute
	}
	return time.Hour + 10*time.Second
}

// client is one query.
type client struct {
	id                   uint16
	name                 string
	qtype, qclass        uint16
	rd, do, cd, ad, edns bool
	ecs, tcp, update     bool
	cookie               byte  // 0: none
	network              uint8 // source prefix length, with ecs
	size                 uint16
}

// clients draws the queries of a step: mostly one, at times some identical
// ones, for the question of last if that is given.
func clients(r *rand.Rand, calm bool, last *client) []client {
	names := names
	if calm {
		names = slices.DeleteFunc(slices.Clone(names), func(name string) bool { return strings.HasSuffix(name, "0.example.org.") && name != names[0] })
	}
	var name string // half of the questions are for a few names
	switch r.IntN(4) {
	case 0:
		name = names[r.IntN(3)]
	case 1:
		name = names[r.IntN(6)]
	case 2: // the last are special, and set aside once they differ
		name = names[r.IntN(len(names))]
	default:
		name = names[r.IntN(min(len(names), 14))]
	}
	c := client{qtype: types[r.IntN(len(types))], qclass: dns.ClassINET, rd: true, cd: r.IntN(12) == 0}
	if strings.HasPrefix(name, "tc") || strings.HasPrefix(name, "n") && r.IntN(2) == 0 {
		c.qtype = dns.TypeA
	}
	c.do = r.IntN(6) == 0
	c.update = r.IntN(200) == 0
	if r.IntN(100) == 0 {
		c.qclass = dns.ClassCHAOS
	}
	if last != nil {
		name, c = strings.ToLower(last.name), *last
	}
	n := 1
	if !calm && r.IntN(60) == 0 {
		n = 2 + r.IntN(5)
	}
	out := make([]client, 0, n)
	for range n {
		c.id = uint16(r.Uint32())
		c.name = mixCase(r, name)
		c.ad = r.IntN(8) == 0
		c.tcp = r.IntN(8) == 0
		c.edns = c.do || r.IntN(2) == 0
		c.size = []uint16{512, 1232, 4096}[r.IntN(3)]
		c.ecs = strings.HasPrefix(name, "ecs") && r.IntN(2) == 0
		c.network = uint8(24 * r.IntN(2))
		c.rd = !strings.HasPrefix(name, "rd") || r.IntN(2) == 0
		if c.cookie = 0; strings.HasPrefix(name, "opt") {
			c.cookie = byte(r.IntN(3))
		}
		out = append(out, c)
	}
	return out
}

func (c client) String() string {
	return fmt.Sprintf("id %d %s %s %s rd=%t do=%t cd=%t ad=%t edns=%t ecs=%t cookie=%d tcp=%t update=%t size=%d", c.id, c.name, dns.Class(c.qclass), dns.Type(c.qtype),
		c.rd, c.do, c.cd, c.ad, c.edns, c.ecs, c.cookie, c.tcp, c.update, c.size)
}

func (c client) key() string { return key(c.name, c.qtype, c.qclass, c.do, c.cd, c.rd) }

func key(name string, qtype, qclass uint16, do, cd, rd bool) string {
	return fmt.Sprintf("%s %s %s %t %t %t", strings.ToLower(name), dns.Class(qclass), dns.Type(qtype), do, cd, rd)
}

func (c client) message() *dns.Msg {
	m := new(dns.Msg)
	m.SetQuestion(c.name, c.qtype)
	m.Question[0].Qclass = c.qclass
	m.Id, m.RecursionDesired, m.CheckingDisabled, m.AuthenticatedData = c.id, c.rd, c.cd, c.ad
	if c.update {
		m.Opcode = dns.OpcodeUpdate
	}
	if c.edns || c.ecs || c.cookie > 0 {
		m.SetEdns0(c.size, c.do)
	}
	if c.ecs {
		opt := m.IsEdns0()
		opt.Option = append(opt.Option, &dns.EDNS0_SUBNET{Code: dns.EDNS0SUBNET, Family: 1, SourceNetmask: c.network, Address: net.IPv4(192, 0, 2, 0).Mask(net.CIDRMask(int(c.network), 32)).To4()})
	}
	if c.cookie > 0 {
		opt := m.IsEdns0()
		opt.Option = append(opt.Option, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: fmt.Sprintf("%016x", c.cookie)})
	}
	return m
}

func mixCase(r *rand.Rand, name string) string {
	if r.IntN(3) > 0 {
		return name
	}
	b := []byte(name)
	for i, c := range b {
		if 'a' <= c && c <= 'z' && r.IntN(2) == 0 {
			b[i] = c &^ 0x20
		}
	}
	return string(b)
}

// writer is a client's connection.
type writer struct {
	tcp     bool
	written int
	msg     []byte
}

func (w *writer) WriteMsg(m *dns.Msg) error {
	w.written++
	m.Compress = false
	if m.Rcode > 0xf && m.IsEdns0() == nil {
		m = m.Copy().SetEdns0(1232, false) // as the server does for clients with EDNS
	}
	b, err := m.Pack()
	w.msg = b
	return err
}

func (w *writer) addr(port int) net.Addr {
	if w.tcp {
		return &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: port}
	}
	return &net.UDPAddr{IP: net.IPv4(10, 0, 0, 1), Port: port}
}

func (w *writer) Write([]byte) (int, error) {
	return 0, errors.New("a message is written, not bytes")
}
func (w *writer) LocalAddr() net.Addr  { return w.addr(53) }
func (w *writer) RemoteAddr() net.Addr { return w.addr(40000) }
func (w *writer) Close() error         { return nil }
func (w *writer) TsigStatus() error    { return nil }
func (w *writer) TsigTimersOnly(bool)  {}
func (w *writer) Hijack()              {}

// draw makes a source of numbers that depends on the words only.
func draw(words ...any) *rand.Rand {
	h := fnv.New64a()
	_, _ = fmt.Fprintln(h, words...)
	return rand.New(rand.NewPCG(h.Sum64(), 0))
}
