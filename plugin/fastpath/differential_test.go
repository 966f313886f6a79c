package fastpath

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/pkg/reuseport"
	"github.com/coredns/coredns/plugin/pkg/transport"
	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/internal/testwait"
	"github.com/trackless-dns/trackless/plugin/cache"
	"github.com/trackless-dns/trackless/plugin/notrack"
)

// handler is a plugin with a name.
type handler struct {
	name  string
	serve plugin.HandlerFunc
}

func (h handler) Name() string { return h.name }

func (h handler) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	return h.serve(ctx, w, r)
}

// add adds a plugin that the next one follows.
func add(cfg *dnsserver.Config, name string, serve func(next plugin.Handler) plugin.HandlerFunc) {
	cfg.AddPlugin(func(next plugin.Handler) plugin.Handler { return handler{name, serve(next)} })
}

func passing(next plugin.Handler) plugin.HandlerFunc { return next.ServeDNS }

// upstream answers all queries, always in the same way. Those for slow names wait for held.
func upstream(mark byte, held <-chan struct{}) func(plugin.Handler) plugin.HandlerFunc {
	return func(plugin.Handler) plugin.HandlerFunc {
		return func(_ context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
			switch name := r.Question[0].Name; {
			case strings.HasPrefix(name, "panic"):
				panic(name)
			case strings.HasPrefix(name, "slow"):
				<-held
			}
			m := new(dns.Msg).SetReply(r)
			m.RecursionAvailable = true
			fill(m, mark)
			if opt := r.IsEdns0(); opt != nil {
				m.SetEdns0(1232, opt.Do())
			}
			_ = w.WriteMsg(m)
			return dns.RcodeSuccess, nil
		}
	}
}

func fill(m *dns.Msg, mark byte) {
	q := m.Question[0]
	header := func(qtype uint16) dns.RR_Header {
		return dns.RR_Header{Name: q.Name, Rrtype: qtype, Class: dns.ClassINET, Ttl: 300}
	}
	soa := &dns.SOA{Hdr: header(dns.TypeSOA), Ns: "ns.example.", Mbox: "root.example.", Serial: 1, Minttl: 300}
	soa.Hdr.Name = "."
	name := strings.ToLower(q.Name)
	switch {
	case strings.HasPrefix(name, "fails"):
		m.Rcode = dns.RcodeServerFailure
	case strings.HasPrefix(name, "refused"):
		m.Rcode = dns.RcodeRefused
	case q.Qtype == dns.TypeA && strings.HasPrefix(name, "many"):
		for i := range byte(100) {
			m.Answer = append(m.Answer, &dns.A{Hdr: header(dns.TypeA), A: net.IPv4(192, 0, i, mark)})
		}
	case q.Qtype == dns.TypeA && strings.HasPrefix(name, "alias"):
		m.Answer = []dns.RR{&dns.CNAME{Hdr: header(dns.TypeCNAME), Target: "Edge.example.net."}}
		a := &dns.A{Hdr: header(dns.TypeA), A: net.IPv4(192, 0, 2, mark)}
		a.Hdr.Name = "Edge.example.net."
		m.Answer = append(m.Answer, a)
	case q.Qtype == dns.TypeA && strings.HasPrefix(name, "n"):
		m.AuthenticatedData = strings.HasPrefix(name, "n1")
		m.Answer = []dns.RR{&dns.A{Hdr: header(dns.TypeA), A: net.IPv4(192, 0, 2, mark)}}
	case q.Qtype == dns.TypeTXT && strings.HasPrefix(name, "n"):
		m.Answer = []dns.RR{&dns.TXT{Hdr: header(dns.TypeTXT), Txt: []string{strings.Repeat("x", 200), strings.Repeat("y", 250)}}}
	case strings.HasPrefix(name, "n"):
		m.Ns = []dns.RR{soa}
	default:
		m.Rcode = dns.RcodeNameError
		m.Ns = []dns.RR{soa}
	}
}

// both is a server with its own socket, and the same one behind sockets of ours.
type both struct {
	ordinary, fast *net.UDPAddr
	listener       *listener
	tier           *tier
	config         *configuration
	server         *dnsserver.Server
	held           chan struct{} // slow answers
}

// block returns a server block with a cache.
func newBlock(t *testing.T, held <-chan struct{}, zone string, mark byte, above ...string) (*dnsserver.Config, *block) {
	t.Helper()
	c := cache.New()
	c.Zones = []string{"cached.test.", "sub.test.", "other.test.", "example."}
	if err := c.Open(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	cfg := &dnsserver.Config{Zone: zone, ListenHosts: []string{"127.0.0.1"}, Transport: transport.DNS}
	add(cfg, "notrack", passing)
	for _, name := range above {
		add(cfg, name, passing)
	}
	n := len(cfg.Plugin)
	cfg.AddPlugin(func(next plugin.Handler) plugin.Handler {
		c.Next = next
		return c
	})
	add(cfg, "upstream", upstream(mark, held))
	return cfg, &block{config: cfg, configs: []*dnsserver.Config{cfg}, above: n, keys: zone}
}

func newBoth(t *testing.T) *both {
	t.Helper()
	before := dnsserver.Directives
	dnsserver.Directives = []string{"notrack", "errors", "log", "cache", "upstream"}
	t.Cleanup(func() { dnsserver.Directives = before })
	conn := func() *net.UDPConn {
		c, err := reuseport.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return c.(*net.UDPConn)
	}
	own, ordinary := conn(), conn()
	at := own.LocalAddr().(*net.UDPAddr)
	config, held := &configuration{options: options{sockets: 2}}, make(chan struct{})
	var configs []*dnsserver.Config
	for i, row := range []struct {
		zone  string
		above []string
	}{{".", []string{"errors"}}, {"sub.test.", nil}, {"logged.sub.test.", []string{"log"}}} {
		cfg, b := newBlock(t, held, row.zone, byte(i+1), row.above...)
		cfg.Port = fmt.Sprint(at.Port)
		configs = append(configs, cfg)
		config.blocks = append(config.blocks, b)
	}
	// The block of sub.test has another key.
	other := *configs[1]
	other.Zone = "other.test."
	configs, config.blocks[1].configs = append(configs, &other), append(config.blocks[1].configs, &other)
	server, err := dnsserver.NewServer(transport.DNS+"://"+at.String(), configs)
	if err != nil {
		t.Fatal(err)
	}
	sockets := &tier{join: notrack.JoinGate}
	sockets.follow(config, config.decide())
	b := &both{fast: at, ordinary: ordinary.LocalAddr().(*net.UDPAddr), listener: sockets.commit(config, server, nil), tier: sockets, config: config, server: server, held: held}
	if b.listener == nil {
		t.Fatal("no sockets of ours")
	}
	var tasks sync.WaitGroup
	tasks.Go(func() { _ = server.ServePacket(ordinary) })
	t.Cleanup(func() {
		sockets.stop()
		_ = ordinary.Close()
		_ = server.Stop()
		tasks.Wait()
		_ = own.Close()
	})
	b.listener.group.Until(time.Now().Add(time.Hour))
	testwait.True(t, 5*time.Second, "queries come to our sockets", b.listener.group.Steered)
	return b
}

// clients are connected to both, from the same address.
type clients [2]*net.UDPConn

func (b *both) clients(t *testing.T) (c clients) {
	t.Helper()
	for i, to := range []*net.UDPAddr{b.ordinary, b.fast} {
		conn, err := net.DialUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 3, byte(rand.IntN(250)))}, to)
		if err != nil {
			t.Fatal(err)
		}
		c[i] = conn
	}
	return c
}

func (c clients) close() {
	for _, conn := range c {
		_ = conn.Close()
	}
}

// receive returns the reply, nil if there is none before the deadline.
func receive(conn *net.UDPConn, until time.Time) []byte {
	_ = conn.SetReadDeadline(until)
	b := make([]byte, 65535)
	n, err := conn.Read(b)
	if err != nil {
		return nil
	}
	return b[:n]
}

const (
	// inOne is how many messages are under way at once.
	inOne = 128
	// silence is how long no reply is waited for.
	silence = 20 * time.Millisecond
	// patience is how long a reply may take that the other has given.
	patience = 3 * time.Second
)

// compare sends messages to both, and compares what they answer.
func (b *both) compare(t *testing.T, msgs [][]byte) {
	t.Helper()
	all := make([]clients, len(msgs))
	for i := range all {
		all[i] = b.clients(t)
		defer all[i].close()
	}
	warm := b.clients(t)
	defer warm.close()
	for _, msg := range msgs {
		_, _ = warm[0].Write(msg)
	}
	until := time.Now().Add(patience)
	_, _ = warm[0].Write(last(t)) // the others are read then
	for m := receive(warm[0], until); m != nil && binary.BigEndian.Uint16(m) != lastID; m = receive(warm[0], until) {
	}
	time.Sleep(2 * time.Millisecond) // until they are stored, mostly
	for i, msg := range msgs {
		for _, conn := range all[i] {
			_, _ = conn.Write(msg)
		}
	}
	until = time.Now().Add(silence)
	for i, msg := range msgs {
		replies := [2][]byte{receive(all[i][0], until), receive(all[i][1], until)}
		for k := range replies {
			if replies[k] == nil && replies[1-k] != nil {
				replies[k] = receive(all[i][k], time.Now().Add(patience))
			}
		}
		// One of them may have been the first to be answered, before its reply was stored.
		for range 3 {
			if same(replies[0], replies[1]) {
				break
			}
			replies = b.once(t, msg)
		}
		if !same(replies[0], replies[1]) {
			t.Fatalf("query\n%s%s\nordinary\n%s%s\nat a socket of ours\n%s%s", hex.Dump(msg), text(msg), hex.Dump(replies[0]), text(replies[0]), hex.Dump(replies[1]), text(replies[1]))
		}
	}
}

// once sends a message to both, and returns their replies.
func (b *both) once(t *testing.T, msg []byte) (replies [2][]byte) {
	t.Helper()
	c := b.clients(t)
	defer c.close()
	for i, conn := range c {
		_, _ = conn.Write(msg)
		replies[i] = receive(conn, time.Now().Add(patience))
	}
	return replies
}

// lastID is the id of the query that is sent after all others.
const lastID = 0xeeee

func last(t *testing.T) []byte {
	m := new(dns.Msg).SetQuestion("n0.cached.test.", dns.TypeA)
	m.Id = lastID
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func text(msg []byte) string {
	m := new(dns.Msg)
	if err := m.Unpack(msg); err != nil {
		return err.Error()
	}
	return m.String()
}

// same reports whether replies are equal but for TTLs.
func same(a, b []byte) bool {
	if bytes.Equal(a, b) {
		return true
	}
	if len(a) != len(b) {
		return false
	}
	var m [2]dns.Msg
	for i, msg := range [][]byte{a, b} {
		if m[i].Unpack(msg) != nil {
			return false
		}
		for _, section := range [][]dns.RR{m[i].Answer, m[i].Ns, m[i].Extra} {
			for _, rr := range section {
				if rr.Header().Rrtype != dns.TypeOPT {
					rr.Header().Ttl = 0
				}
			}
		}
	}
	return m[0].String() == m[1].String()
}

func pick[T any](from ...T) T { return from[rand.IntN(len(from))] }

// randomQuery returns a query as clients send, or nearly.
func randomQuery() []byte {
	name := pick("n", "n", "n1", "n1", "many", "alias", "fails", "refused", "x", "n-_", "n\\.") + pick("0", "1", "2", "33") +
		pick(".cached.test.", ".cached.test.", ".cached.test.", ".sub.test.", ".sub.test.", ".other.test.", ".logged.sub.test.", ".passed.test.", ".example.", ".")
	m := new(dns.Msg).SetQuestion(randomCase(name), pick(dns.TypeA, dns.TypeA, dns.TypeA, dns.TypeAAAA, dns.TypeTXT, dns.TypeMX, dns.TypeDS, dns.TypeHINFO, dns.TypeANY, dns.TypeAXFR, dns.TypeHTTPS, uint16(rand.IntN(300))))
	m.Id = uint16(rand.Uint32())
	if rand.IntN(20) == 0 {
		m.Question[0].Name = "."
	}
	if rand.IntN(10) == 0 {
		m.Question[0].Qclass = pick[uint16](0, dns.ClassCHAOS, dns.ClassANY, dns.ClassNONE)
	}
	m.RecursionDesired = rand.IntN(8) > 0
	m.CheckingDisabled, m.AuthenticatedData = rand.IntN(6) == 0, rand.IntN(6) == 0
	if rand.IntN(10) == 0 {
		m.Authoritative, m.Truncated, m.RecursionAvailable, m.Zero = pick(true, false), pick(true, false), pick(true, false), pick(true, false)
		m.Rcode = rand.IntN(16)
	}
	if rand.IntN(40) == 0 {
		m.Opcode = rand.IntN(16)
	}
	if rand.IntN(40) == 0 {
		m.Response = true
	}
	if rand.IntN(2) == 0 {
		m.Extra = append(m.Extra, randomOPT())
	}
	if rand.IntN(20) == 0 {
		rr := pick[dns.RR](randomOPT(), &dns.A{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeA, Class: dns.ClassINET}, A: net.IPv4zero}, &dns.TSIG{
			Hdr: dns.RR_Header{Name: "key.", Rrtype: dns.TypeTSIG, Class: dns.ClassANY}, Algorithm: dns.HmacSHA256, Fudge: 300, MACSize: 2, MAC: "abcd",
		})
		section := pick(&m.Answer, &m.Ns, &m.Extra)
		*section = append(*section, rr)
	}
	if rand.IntN(40) == 0 {
		m.Question = append(m.Question, m.Question[0])
	}
	b, err := m.Pack()
	if err != nil {
		return nil
	}
	return b
}

func randomOPT() dns.RR {
	opt := &dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT, Class: pick[uint16](0, 100, 511, 512, 513, 700, 1232, 1232, 1472, 1473, 4096, 65535)}}
	if rand.IntN(4) == 0 {
		opt.SetDo()
	}
	if rand.IntN(8) == 0 {
		opt.Hdr.Ttl |= rand.Uint32() & 0xff007fff
	}
	if rand.IntN(30) == 0 {
		opt.SetVersion(1)
	}
	if rand.IntN(5) == 0 {
		opt.Option = append(opt.Option, pick[dns.EDNS0](
			&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0123456789abcdef"}, &dns.EDNS0_NSID{Code: dns.EDNS0NSID},
			&dns.EDNS0_PADDING{Padding: make([]byte, rand.IntN(500))}, &dns.EDNS0_LOCAL{Code: 65001, Data: []byte("x")},
			&dns.EDNS0_SUBNET{Code: dns.EDNS0SUBNET, Family: 1, SourceNetmask: 24, Address: net.IPv4(192, 0, 2, 0)}))
	}
	return opt
}

func randomCase(name string) string {
	b := []byte(name)
	for i, c := range b {
		if 'a' <= c && c <= 'z' && rand.IntN(3) == 0 {
			b[i] = c - 'a' + 'A'
		}
	}
	return string(b)
}

// mutated returns a query with some faults.
func mutated() []byte {
	b := randomQuery()
	for range 1 + rand.IntN(2) {
		if len(b) == 0 {
			return nil
		}
		at := rand.IntN(pick(len(b), min(len(b), 30)))
		switch rand.IntN(9) {
		case 0, 6, 7, 8:
			b[at] ^= 1 << rand.IntN(8)
		case 1:
			b[at] = byte(rand.Uint32())
		case 2:
			b = append(b[:at], b[at+1:]...)
		case 3:
			b = append(b[:at], append([]byte{byte(rand.Uint32())}, b[at:]...)...)
		case 4:
			b = b[:at]
		case 5:
			b = append(b, make([]byte, rand.IntN(600))...)
		}
	}
	return b
}

func (b *both) compareMany(t *testing.T, n int, make func() []byte) {
	t.Helper()
	for n > 0 && !t.Failed() {
		var msgs [][]byte
		for range min(n, inOne) {
			msgs = append(msgs, make())
		}
		n -= len(msgs)
		b.compare(t, msgs)
	}
	counts := b.listener.group.Counts()
	t.Logf("%+v", counts)
	if counts.Hits == 0 || counts.Passed == 0 || counts.Dropped > 0 {
		t.Errorf("queries at our sockets: %+v", counts)
	}
}

// What a client gets is the same, whether or not sockets of ours are there.
func TestTheSameReplies(t *testing.T) {
	b := newBoth(t)
	b.compareMany(t, 3000, randomQuery)
	b.compareMany(t, 3000, mutated)
}
