// Package searchpath is the directive searchpath: it answers a client's walk along the search
// path of a pod with one reply.
//
// A pod asks for api.example.com.NAMESPACE.svc.ZONE first, then for the same name below the
// other domains of its search path, and for api.example.com in the end. If all but the last are
// denied, the first query gets the answer of the last. CoreDNS's autopath does the same and has
// to know the namespace of each pod. Here the namespace stands in the name.
//
// The directive stands above the cache, which has the answers and the denials.
package searchpath

import (
	"context"
	"strings"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/metrics"
	"github.com/coredns/coredns/plugin/pkg/nonwriter"
	"github.com/miekg/dns"
)

// SearchPath is the plugin of one server block.
type SearchPath struct {
	Next    plugin.Handler
	zone    string   // of the cluster, in lower case
	domains []string // of the search path after the zone

	// rewrites: names of the zone go through the whole server block, since rewrite, above, may
	// make others of them.
	rewrites bool
}

// Name implements plugin.Handler.
func (*SearchPath) Name() string { return directive }

// asksItself marks the context of the queries that this plugin makes.
type asksItself struct{}

// ServeDNS implements plugin.Handler.
func (s *SearchPath) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	if !mayWalk(r) || ctx.Value(asksItself{}) != nil {
		return plugin.NextOrFailure(directive, s.Next, ctx, w, r)
	}
	name := r.Question[0].Name
	path, ok := walkOf(strings.ToLower(name), s.zone, s.domains)
	if !ok {
		return plugin.NextOrFailure(directive, s.Next, ctx, w, r)
	}
	path.absolute = name[:len(path.absolute)-1] + "." // as the client spells it
	first := nonwriter.New(w)
	code, err := plugin.NextOrFailure(directive, s.Next, ctx, first, r)
	if first.Msg == nil {
		return code, err
	}
	if reply := s.answer(context.WithValue(ctx, asksItself{}, true), w, r, path, first.Msg); reply != nil {
		first.Msg = reply
	}
	return code, w.WriteMsg(first.Msg)
}

// mayWalk reports whether the query can be one of a walk: clients walk for addresses. Where
// signatures were asked for, an alias of ours would have none.
func mayWalk(r *dns.Msg) bool {
	if len(r.Question) != 1 || r.Opcode != dns.OpcodeQuery || !r.RecursionDesired || r.CheckingDisabled {
		return false
	}
	q := r.Question[0]
	opt := r.IsEdns0()
	return q.Qclass == dns.ClassINET && (q.Qtype == dns.TypeA || q.Qtype == dns.TypeAAAA) && (opt == nil || !opt.Do())
}

// answer returns the reply to the query r that ends the walk, or nil if the client has to walk:
// r is not denied, or one of the other names exists. denial is the response to r.
//
// A and AAAA of one walk must end alike, since clients ask for both at once: musl takes one
// denial for both, and glibc takes the other answer alone. So a failure on the walk is a failure
// of the reply, and no denial.
func (s *SearchPath) answer(ctx context.Context, w dns.ResponseWriter, r *dns.Msg, path walk, denial *dns.Msg) *dns.Msg {
	life, denied := denies(denial)
	if !denied {
		return nil
	}
	namespace := s.ask(ctx, w, r, path.namespace, dns.TypeA)
	switch {
	case !usable(namespace):
		return failure(r)
	case namespace.Rcode == dns.RcodeNameError:
		return nil // a later name of a walk
	}
	for _, name := range path.others {
		m := s.ask(ctx, w, r, name, r.Question[0].Qtype)
		if !usable(m) {
			return failure(r)
		}
		left, denied := denies(m)
		if !denied {
			return nil
		}
		life = min(life, left)
	}
	m := s.ask(ctx, w, r, path.absolute, r.Question[0].Qtype)
	switch {
	case m != nil && m.Truncated:
		reply := new(dns.Msg).SetReply(r)
		reply.Truncated = true // the client asks again over TCP
		return reply
	case !usable(m):
		return failure(r)
	case m.Rcode == dns.RcodeNameError:
		return nil
	}
	answers.WithLabelValues(metrics.WithServer(ctx)).Inc()
	saved.Add(uint64(len(path.others) + 1))
	return alias(r, path.absolute, m, life)
}

// ask asks the server for another name, for the client of r. It returns nil if there is no
// response. The name may belong to another server block.
func (s *SearchPath) ask(ctx context.Context, w dns.ResponseWriter, r *dns.Msg, name string, qtype uint16) *dns.Msg {
	query := r.Copy()
	query.Question[0].Name, query.Question[0].Qtype = name, qtype
	answer := nonwriter.New(w)
	server, ok := ctx.Value(dnsserver.Key{}).(*dnsserver.Server)
	if !ok || !s.rewrites && dns.IsSubDomain(s.zone, name) {
		if _, err := plugin.NextOrFailure(directive, s.Next, ctx, answer, query); err != nil {
			return nil
		}
		return answer.Msg
	}
	server.ServeDNS(ctx, answer, query)
	return answer.Msg
}

// usable reports whether a response says that a name exists, or that it does not.
func usable(m *dns.Msg) bool {
	return m != nil && !m.Truncated && (m.Rcode == dns.RcodeSuccess || m.Rcode == dns.RcodeNameError)
}

// denies reports whether a response denies its name, and for how many seconds. A name that is an
// alias of a denied one exists.
func denies(m *dns.Msg) (seconds uint32, ok bool) {
	if m.Rcode != dns.RcodeNameError || len(m.Answer) > 0 {
		return 0, false
	}
	for _, rr := range m.Ns {
		if soa, ok := rr.(*dns.SOA); ok {
			return soa.Hdr.Ttl, true
		}
	}
	return 0, true
}

// failure is the reply if a query of the walk failed.
func failure(r *dns.Msg) *dns.Msg {
	return new(dns.Msg).SetRcode(r, dns.RcodeServerFailure)
}

// alias makes the reply to r of the response to the absolute name: an alias to that name, as
// autopath has it, and the answer. The alias lives no longer than the denials that it stands
// for, so that a Service with one of the names comes first then.
func alias(r *dns.Msg, absolute string, m *dns.Msg, life uint32) *dns.Msg {
	reply := new(dns.Msg).SetReply(r)
	reply.RecursionAvailable = m.RecursionAvailable
	reply.Answer = append(reply.Answer, &dns.CNAME{
		Hdr:    dns.RR_Header{Name: r.Question[0].Name, Rrtype: dns.TypeCNAME, Class: dns.ClassINET, Ttl: life},
		Target: absolute,
	})
	reply.Answer = append(reply.Answer, m.Answer...)
	if len(m.Answer) == 0 {
		reply.Ns = m.Ns // why there is none (RFC 2308 section 2.2)
	}
	return reply
}
