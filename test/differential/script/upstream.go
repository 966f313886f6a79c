package script

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/pkg/nonwriter"
	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"
)

// upstream is the plugin below the cache. What it says depends on the
// question and the time, not on how often it was asked.
type upstream struct {
	seed  uint64
	start time.Time
	self  plugin.Handler // the cache
	mu    sync.Mutex
	calls []Call
}

func (u *upstream) Name() string { return "upstream" }

var errTimeout = errors.New("upstream did not answer")

// ServeDNS implements plugin.Handler.
func (u *upstream) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	state := request.Request{W: w, Req: r}
	q := r.Question[0]
	do := state.Do()
	k := key(q.Name, q.Qtype, q.Qclass, do, r.CheckingDisabled, r.RecursionDesired)
	call := Call{At: time.Since(u.start), Name: strings.ToLower(q.Name), Key: k, TCP: state.Proto() == "tcp"}

	// The name keeps to what it does for a while.
	period := []time.Duration{7 * time.Second, 20 * time.Second, time.Minute, 10 * time.Minute}[draw(u.seed, call.Name, "period").IntN(4)]
	rng := draw(u.seed, k, int64(call.At/period), r.Opcode)
	what := pick(rng, call.Name)
	call.What = what.name
	m, latency := what.respond(rng, r, call)
	if m != nil {
		call.Rcode = m.Rcode
		call.Denial = len(m.Ns) > 0 && m.Ns[0].Header().Rrtype == dns.TypeSOA
	}
	if strings.HasPrefix(call.Name, "lost") && draw(u.seed, k, int64(call.At/time.Millisecond), "lost").IntN(4) == 0 {
		what, m, latency = &lost, nil, lost.slow
		call.What, call.Rcode, call.Denial = what.name, 0, false
	}
	if strings.HasPrefix(call.Name, "self") {
		u.askSelf(ctx, w, r)
	}
	time.Sleep(latency)
	call.Done = time.Since(u.start)
	u.mu.Lock()
	u.calls = append(u.calls, call)
	u.mu.Unlock()
	if m == nil {
		return what.code, what.err
	}
	if err := w.WriteMsg(m); err != nil {
		return dns.RcodeServerFailure, err
	}
	return what.code, nil
}

// lost is what becomes of a query that does not arrive.
var lost = behaviour{name: "timeout", silent: true, code: dns.RcodeServerFailure, err: errTimeout, slow: 2 * time.Second}

// askSelf asks the cache the same, on behalf of the query, unless that comes
// of such a query itself.
func (u *upstream) askSelf(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) {
	type depth struct{}
	if ctx.Value(depth{}) == nil {
		_, _ = u.self.ServeDNS(context.WithValue(ctx, depth{}, true), nonwriter.New(w), r.Copy())
	}
}

// behaviour is something an upstream may do.
type behaviour struct {
	name   string
	of     string // it is for names with this prefix only
	weight int
	code   int
	err    error
	silent bool // no response
	slow   time.Duration
	edit   func(rng *rand.Rand, m *dns.Msg)
}

func pick(rng *rand.Rand, name string) *behaviour {
	total := 0
	for i := range behaviours {
		total += behaviours[i].weightFor(name)
	}
	n := rng.IntN(total)
	for i := range behaviours {
		if n -= behaviours[i].weightFor(name); n < 0 {
			return &behaviours[i]
		}
	}
	panic("weights do not add up")
}

func (b *behaviour) weightFor(name string) int {
	if !strings.HasPrefix(name, b.of) {
		return 0
	}
	return b.weight
}

func (b *behaviour) respond(rng *rand.Rand, r *dns.Msg, call Call) (*dns.Msg, time.Duration) {
	latency := time.Duration(1+rng.IntN(40))*time.Millisecond + time.Duration(1+rng.IntN(998))*time.Microsecond + b.slow
	if b.slow == 0 && rng.IntN(10) == 0 {
		latency += 150 * time.Millisecond // longer than verify waits
	}
	if b.silent {
		return nil, latency
	}
	m := new(dns.Msg)
	m.SetReply(r)
	m.RecursionAvailable = rng.IntN(8) > 0
	m.Authoritative = rng.IntN(6) == 0
	m.AuthenticatedData = rng.IntN(5) == 0
	// Draw whether or not it matters: clients that ask the same with and
	// without EDNS get the same.
	if opt, edns := r.IsEdns0(), rng.IntN(2) == 0; opt != nil && edns {
		m.SetEdns0(1232, opt.Do())
	}
	if rng.IntN(10) == 0 {
		m.Question[0].Name = strings.ToLower(m.Question[0].Name)
	}
	b.edit(rng, m)
	if strings.HasPrefix(call.Name, "tc") && !call.TCP && len(m.Answer) > 0 {
		m.Truncated = true
		m.Answer = m.Answer[:len(m.Answer)-1]
	}
	if hasOption(r, dns.EDNS0COOKIE) && rng.IntN(2) == 0 {
		m.Rcode, m.Answer, m.Ns, m.Extra = dns.RcodeBadCookie, nil, nil, nil
	}
	if !r.RecursionDesired && rng.IntN(3) > 0 {
		m.Rcode, m.Answer, m.Extra = dns.RcodeSuccess, nil, nil
		m.Ns = []dns.RR{rr("org. %d IN NS a.nic.org.", ttl(rng))}
	}
	if strings.HasPrefix(call.Name, "ecs") && hasOption(r, dns.EDNS0SUBNET) {
		addSubnet(m, uint8(24*rng.IntN(2)))
		m.Answer = append(m.Answer, a(rng, "ecs-only.example.org.", 30))
	}
	if strings.HasPrefix(call.Name, "spoof") && len(m.Question) > 0 && rng.IntN(3) == 0 {
		switch rng.IntN(4) {
		case 0:
			m.Question[0].Name = "evil.example.org."
		case 1:
			m.Question[0].Qtype = dns.TypeSRV
		case 2:
			m.Question[0].Qclass = dns.ClassHESIOD
		case 3:
			m.Response = false
		}
	}
	return m, latency
}

func hasOption(m *dns.Msg, code uint16) bool {
	opt := m.IsEdns0()
	return opt != nil && slices.ContainsFunc(opt.Option, func(o dns.EDNS0) bool { return o.Option() == code })
}

func addSubnet(m *dns.Msg, scope uint8) {
	if m.IsEdns0() == nil {
		m.SetEdns0(1232, false)
	}
	opt := m.IsEdns0()
	opt.Option = append(opt.Option, &dns.EDNS0_SUBNET{Code: dns.EDNS0SUBNET, Family: 1, SourceNetmask: 24, SourceScope: scope, Address: net.IPv4(192, 0, 2, 0).To4()})
}

var ttls = []uint32{0, 1, 2, 3, 5, 8, 10, 15, 30, 60, 120, 300, 3600, 7200, 1 << 31}

func ttl(rng *rand.Rand) uint32 { return ttls[rng.IntN(len(ttls))] }

func rr(format string, args ...any) dns.RR {
	out, err := dns.NewRR(fmt.Sprintf(format, args...))
	if err != nil {
		panic(err)
	}
	return out
}

func a(rng *rand.Rand, name string, ttl uint32) dns.RR {
	return rr("%s %d IN A 192.0.2.%d", name, ttl, rng.IntN(256))
}

func data(rng *rand.Rand, name string, qtype uint16) dns.RR {
	switch qtype {
	case dns.TypeAAAA:
		return rr("%s %d IN AAAA 2001:db8::%x", name, ttl(rng), rng.IntN(65536))
	case dns.TypeTXT:
		return rr("%s %d IN TXT \"t%d\"", name, ttl(rng), rng.IntN(1000))
	case dns.TypeMX:
		return rr("%s %d IN MX %d Mail.Example.ORG.", name, ttl(rng), rng.IntN(100))
	case dns.TypeCNAME:
		return rr("%s %d IN CNAME t%d.example.net.", name, ttl(rng), rng.IntN(100))
	}
	return a(rng, name, ttl(rng))
}

// soa is the record of a denial. As it must be, its TTL is not larger than its
// MINIMUM field, except for names that begin with soa.
func soa(rng *rand.Rand, name string) dns.RR {
	ttl, minimum := ttl(rng), ttl(rng)
	if !strings.HasPrefix(strings.ToLower(name), "soa") {
		minimum = max(ttl, minimum)
	}
	return rr("example.org. %d IN SOA ns.example.org. root.example.org. 1 2 3 4 %d", ttl, minimum)
}

func rrsig(rng *rand.Rand, name string, expired bool) dns.RR {
	until := "20300101000000"
	if expired {
		until = "19991231000000"
	}
	return rr("%s %d IN RRSIG A 8 2 300 %s 19990101000000 1 example.org. AAAA", name, ttl(rng), until)
}

var behaviours = []behaviour{
	{name: "positive", weight: 30, edit: func(rng *rand.Rand, m *dns.Msg) {
		q := m.Question[0]
		for range 1 + rng.IntN(5) {
			m.Answer = append(m.Answer, data(rng, q.Name, q.Qtype))
		}
		if rng.IntN(4) == 0 {
			m.Ns = append(m.Ns, rr("example.org. %d IN NS ns.example.org.", ttl(rng)))
			m.Extra = append(m.Extra, a(rng, "ns.example.org.", ttl(rng)))
		}
	}},
	{name: "alias", weight: 8, edit: func(rng *rand.Rand, m *dns.Msg) {
		q := m.Question[0]
		m.Answer = append(m.Answer, rr("%s %d IN CNAME Alias.Example.net.", q.Name, ttl(rng)),
			rr("alias.example.net. %d IN CNAME end.example.net.", ttl(rng)), data(rng, "end.example.net.", q.Qtype))
		rng.Shuffle(len(m.Answer), func(i, j int) { m.Answer[i], m.Answer[j] = m.Answer[j], m.Answer[i] })
	}},
	{name: "alias to nothing", weight: 4, edit: func(rng *rand.Rand, m *dns.Msg) {
		m.Answer = append(m.Answer, rr("%s %d IN CNAME nothing.example.net.", m.Question[0].Name, ttl(rng)))
	}},
	{name: "alias to nothing with SOA", weight: 4, edit: func(rng *rand.Rand, m *dns.Msg) {
		m.Answer = append(m.Answer, rr("%s %d IN CNAME nothing.example.net.", m.Question[0].Name, ttl(rng)))
		m.Ns = append(m.Ns, soa(rng, m.Question[0].Name))
	}},
	{name: "alias that forks", weight: 2, edit: func(rng *rand.Rand, m *dns.Msg) {
		q := m.Question[0]
		m.Answer = append(m.Answer, rr("%s %d IN CNAME one.example.net.", q.Name, ttl(rng)), rr("%s %d IN CNAME two.example.net.", q.Name, ttl(rng)), data(rng, "one.example.net.", q.Qtype))
	}},
	{name: "alias that loops", weight: 2, edit: func(rng *rand.Rand, m *dns.Msg) {
		q := m.Question[0]
		m.Answer = append(m.Answer, rr("%s %d IN CNAME one.example.net.", q.Name, ttl(rng)), rr("one.example.net. %d IN CNAME %s", ttl(rng), strings.ToLower(q.Name)))
	}},
	{name: "NXDOMAIN", weight: 12, edit: func(rng *rand.Rand, m *dns.Msg) {
		m.Rcode = dns.RcodeNameError
		m.Ns = append(m.Ns, soa(rng, m.Question[0].Name))
	}},
	{name: "NXDOMAIN without SOA", weight: 3, edit: func(_ *rand.Rand, m *dns.Msg) { m.Rcode = dns.RcodeNameError }},
	{name: "NXDOMAIN behind an alias", of: "nx", weight: 20, edit: func(rng *rand.Rand, m *dns.Msg) {
		m.Rcode = dns.RcodeNameError
		m.Answer = append(m.Answer, rr("%s %d IN CNAME nothing.example.net.", m.Question[0].Name, ttl(rng)))
		m.Ns = append(m.Ns, soa(rng, m.Question[0].Name))
	}},
	{name: "NODATA", weight: 8, edit: func(rng *rand.Rand, m *dns.Msg) { m.Ns = append(m.Ns, soa(rng, m.Question[0].Name)) }},
	{name: "empty", weight: 3, edit: func(*rand.Rand, *dns.Msg) {}},
	{name: "referral", weight: 3, edit: func(rng *rand.Rand, m *dns.Msg) {
		m.Ns = append(m.Ns, rr("example.org. %d IN NS ns.example.org.", ttl(rng)))
		m.Extra = append(m.Extra, a(rng, "ns.example.org.", ttl(rng)))
	}},
	{name: "additional only", weight: 2, edit: func(rng *rand.Rand, m *dns.Msg) {
		m.Extra = append(m.Extra, a(rng, m.Question[0].Name, ttl(rng)))
	}},
	{name: "SERVFAIL", weight: 8, edit: func(_ *rand.Rand, m *dns.Msg) { m.Rcode = dns.RcodeServerFailure }},
	{name: "NOTIMP", weight: 2, edit: func(_ *rand.Rand, m *dns.Msg) { m.Rcode = dns.RcodeNotImplemented }},
	{name: "REFUSED", weight: 3, edit: func(_ *rand.Rand, m *dns.Msg) { m.Rcode = dns.RcodeRefused }},
	{name: "timeout", of: "dead", weight: 50, silent: true, code: dns.RcodeServerFailure, err: errTimeout, slow: 2 * time.Second},
	{name: "failure code", weight: 2, silent: true, code: dns.RcodeRefused},
	{name: "truncated", weight: 3, edit: func(rng *rand.Rand, m *dns.Msg) {
		m.Answer = append(m.Answer, data(rng, m.Question[0].Name, m.Question[0].Qtype))
		m.Truncated = true
	}},
	{name: "signed", weight: 5, edit: func(rng *rand.Rand, m *dns.Msg) {
		m.Answer = append(m.Answer, data(rng, m.Question[0].Name, m.Question[0].Qtype), rrsig(rng, m.Question[0].Name, false))
	}},
	{name: "signature expired", weight: 3, edit: func(rng *rand.Rand, m *dns.Msg) {
		m.Answer = append(m.Answer, data(rng, m.Question[0].Name, m.Question[0].Qtype), rrsig(rng, m.Question[0].Name, true))
	}},
	{name: "no question", weight: 1, edit: func(_ *rand.Rand, m *dns.Msg) { m.Question = nil }},
}
