// Package classify tells whether a response is an answer, a denial or a failure, whether
// it may be stored, and whether it answers its question.
package classify

import (
	"slices"
	"strings"
	"time"

	"github.com/coredns/coredns/plugin/pkg/response"
	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/plugin/cache/store"
)

// Type returns the type of a response. It knows two denials that CoreDNS does not: a
// NOERROR response whose answer section ends in an alias, with an SOA record (RFC 2308
// section 2.2, NODATA with a CNAME), and NXDOMAIN behind an alias (section 2.1).
func Type(m *dns.Msg, now time.Time) response.Type {
	t, _ := response.Typify(m, now)
	switch {
	case t == response.NoError && hasSOA(m) && leavesOpen(m):
		return response.NoData
	case t == response.OtherError && m.Rcode == dns.RcodeNameError && deniesTarget(m) && !signatureExpired(m, now):
		return response.NameError
	}
	return t
}

// deniesTarget reports whether the answer section of m holds nothing but aliases, which
// lead from the name of the question to another one.
func deniesTarget(m *dns.Msg) bool {
	if len(m.Question) == 0 {
		return false
	}
	q := m.Question[0]
	end, ok := canonical(m.Answer, q.Name, q.Qclass)
	if !ok || strings.EqualFold(end, q.Name) || q.Qtype == dns.TypeCNAME || q.Qtype == dns.TypeANY {
		return false
	}
	for _, rr := range m.Answer {
		switch rr.Header().Rrtype {
		case dns.TypeCNAME, dns.TypeDNAME, dns.TypeRRSIG:
		default:
			return false
		}
	}
	return true
}

// signatureExpired reports whether the response to a query with the DO bit has a
// signature in its answer section that is not valid now.
func signatureExpired(m *dns.Msg, now time.Time) bool {
	if opt := m.IsEdns0(); opt == nil || !opt.Do() {
		return false
	}
	return slices.ContainsFunc(m.Answer, func(rr dns.RR) bool {
		sig, ok := rr.(*dns.RRSIG)
		return ok && !sig.ValidityPeriod(now)
	})
}

// Storable reports whether a response of the type may be stored at all.
func Storable(m *dns.Msg, t response.Type) bool {
	switch t {
	case response.NoError:
		// Aliases without a target are a denial. It is not stored without an SOA
		// record, which says for how long (RFC 2308 section 5).
		return !m.Truncated && len(m.Question) > 0 && (hasSOA(m) || !leavesOpen(m))
	case response.NameError:
		return !m.Truncated && len(m.Question) > 0 && hasSOA(m)
	case response.NoData, response.Delegation, response.ServerError:
		return !m.Truncated && len(m.Question) > 0
	}
	return false
}

// Kind is the kind under which a response of the type is stored.
func Kind(t response.Type) store.Kind {
	if t == response.NoError || t == response.Delegation {
		return store.Positive
	}
	return store.Negative
}

func hasSOA(m *dns.Msg) bool {
	for _, rr := range m.Ns {
		if rr.Header().Rrtype == dns.TypeSOA {
			return true
		}
	}
	return false
}

// leavesOpen reports whether a response has an answer section that does not answer the
// question. It is false for an empty answer section: the other sections tell more.
func leavesOpen(m *dns.Msg) bool { return len(m.Answer) > 0 && !Answers(m) }

// Answers reports whether the answer section of a NOERROR response answers
// the question: a record of the type asked for, at the name asked for or at
// the end of the chain of aliases from there (RFC 1034 section 3.6.2). Records of other
// names do not count. Any record at the name answers ANY.
func Answers(m *dns.Msg) bool {
	if m.Rcode != dns.RcodeSuccess || len(m.Question) == 0 || len(m.Answer) == 0 {
		return false
	}
	q := m.Question[0]
	name, qtype := q.Name, q.Qtype
	switch qtype {
	case dns.TypeCNAME:
		target, ok := alias(m.Answer, name, q.Qclass)
		return ok && target != ""
	case dns.TypeANY:
	default:
		var ok bool
		if name, ok = canonical(m.Answer, name, q.Qclass); !ok {
			return false
		}
	}
	for _, rr := range m.Answer {
		h := rr.Header()
		if (qtype == dns.TypeANY || h.Rrtype == qtype) && inClass(h.Class, q.Qclass) && strings.EqualFold(h.Name, name) {
			return true
		}
	}
	return false
}

// canonical returns the name at the end of the chain of aliases from name. It reports
// false if the chain forks or loops, and so has no end.
func canonical(rrs []dns.RR, name string, qclass uint16) (string, bool) {
	// Without a loop there are no more aliases than records.
	for range len(rrs) + 1 {
		target, ok := alias(rrs, name, qclass)
		if !ok {
			return "", false
		}
		if target == "" {
			return name, true
		}
		name = target
	}
	return "", false
}

// alias returns the target of the CNAME record at the name, empty if there is none. It
// reports false if there are several targets, which RFC 2181 section 10.1 forbids.
func alias(rrs []dns.RR, name string, qclass uint16) (string, bool) {
	target := ""
	for _, rr := range rrs {
		cname, ok := rr.(*dns.CNAME)
		if !ok || !inClass(cname.Hdr.Class, qclass) || !strings.EqualFold(cname.Hdr.Name, name) {
			continue
		}
		if target != "" && !strings.EqualFold(target, cname.Target) {
			return "", false
		}
		target = cname.Target
	}
	return target, true
}

func inClass(class, qclass uint16) bool { return qclass == dns.ClassANY || class == qclass }

// Usable reports whether m is a positive answer to its question, and is not truncated.
func Usable(m *dns.Msg, now time.Time) bool {
	return !m.Truncated && Type(m, now) == response.NoError && Answers(m)
}

// AnswersTo reports whether m is the response to the question.
func AnswersTo(m *dns.Msg, q dns.Question) bool {
	if !m.Response || len(m.Question) != 1 {
		return false
	}
	got := m.Question[0]
	return got.Qtype == q.Qtype && got.Qclass == q.Qclass && strings.EqualFold(got.Name, q.Name)
}
