package cache

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coredns/caddy"
	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/plugin/cache/failures"
)

// step is a query of a client at one time, and the answer of the upstream at that time.
type step struct {
	at   time.Duration // since the start
	up   string        // what the upstream does from now on: see act
	want string        // what the client gets: see summary
	// calls is how many queries the upstream has got when none is under way.
	calls int
}

// act makes the answer of the upstream from a word: A1 and A2 are answers, @ and a number is
// the TTL.
func act(word string, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	kind, ttlText, _ := strings.Cut(word, "@")
	ttl, err := strconv.Atoi(ttlText)
	if err != nil {
		ttl = 10
	}
	m := new(dns.Msg)
	m.SetReply(r)
	rr := func(format string, args ...any) dns.RR {
		out, err := dns.NewRR(fmt.Sprintf(format, args...))
		if err != nil {
			panic(err)
		}
		return out
	}
	minimum := ttl
	if kind == "NXmin" { // the MINIMUM field is smaller than the TTL
		minimum = ttl / 2
	}
	soa := rr("example.org. %d IN SOA ns.example.org. root.example.org. 1 2 3 4 %d", ttl, minimum)
	switch kind {
	case "A1", "A2":
		m.Answer = []dns.RR{rr("%s %d IN A 192.0.2.%s", www, ttl, kind[1:])}
	case "NX", "NXmin":
		m.Rcode, m.Ns = dns.RcodeNameError, []dns.RR{soa}
	case "NXbare":
		m.Rcode = dns.RcodeNameError
	case "NODATA":
		m.Ns = []dns.RR{soa}
	case "CNAME":
		m.Answer = []dns.RR{rr("%s %d IN CNAME else.example.org.", www, ttl)}
	case "CNAMEsoa":
		m.Answer, m.Ns = []dns.RR{rr("%s %d IN CNAME else.example.org.", www, ttl)}, []dns.RR{soa}
	case "CNAMENX", "CNAMENXmin", "CNAMENXlong", "CNAMENXbare", "forkNX", "A1NX":
		m.Rcode, m.Ns = dns.RcodeNameError, []dns.RR{soa}
		m.Answer = []dns.RR{rr("%s %d IN CNAME else.example.org.", www, ttl)}
		switch strings.TrimPrefix(kind, "CNAME") {
		case "NXmin":
			m.Ns[0].(*dns.SOA).Minttl /= 2
		case "NXlong":
			m.Ns[0].(*dns.SOA).Minttl *= 2
			m.Ns[0].Header().Ttl *= 2
		case "NXbare":
			m.Ns = nil
		case "forkNX":
			m.Answer = append(m.Answer, rr("%s %d IN CNAME other.example.org.", www, ttl))
		case "A1NX":
			m.Answer = []dns.RR{rr("%s %d IN A 192.0.2.1", www, ttl)}
		}
	case "empty":
	case "SERVFAIL":
		m.Rcode = dns.RcodeServerFailure
	case "NOTIMP":
		m.Rcode = dns.RcodeNotImplemented
	case "REFUSED":
		m.Rcode = dns.RcodeRefused
	case "TC":
		m.Truncated = true
	case "timeout":
		time.Sleep(2 * time.Second)
		return dns.RcodeServerFailure, errTest
	case "slow":
		time.Sleep(time.Second)
		m.Answer = []dns.RR{rr("%s %d IN A 192.0.2.1", www, ttl)}
	case "spoof":
		m.Question[0].Name = "evil.example.org."
	case "signed", "expired":
		until := map[string]string{"signed": "20300101000000", "expired": "19991231000000"}[kind]
		m.SetEdns0(1232, true)
		m.Answer = []dns.RR{rr("%s %d IN A 192.0.2.1", www, ttl), rr("%s %d IN RRSIG A 8 2 300 %s 19990101000000 1 example.org. AAAA", www, ttl, until)}
	default:
		panic(word)
	}
	return dns.RcodeSuccess, w.WriteMsg(m)
}

// summary is a client's answer as a word: its number or RCODE, and its TTL.
func summary(m *dns.Msg, code int, err error) string {
	if m == nil {
		return fmt.Sprintf("code %d error %t", code, err != nil)
	}
	word := dns.RcodeToString[m.Rcode]
	if m.Truncated {
		word = "TC"
	}
	rrs := slices.Concat(m.Answer, m.Ns)
	for _, rr := range rrs {
		if m.Rcode != dns.RcodeSuccess {
			break
		}
		switch rr := rr.(type) {
		case *dns.A:
			word = "A" + strconv.Itoa(int(rr.A.To4()[3]))
		case *dns.CNAME:
			word = "CNAME"
		}
	}
	if len(rrs) > 0 {
		word += "@" + strconv.Itoa(int(rrs[0].Header().Ttl))
	}
	return word
}

func TestConformance(t *testing.T) {
	const s, ms = time.Second, time.Millisecond
	for _, tc := range []struct {
		name    string
		options string
		steps   []step
	}{
		// Stored answers, and their lifetime.
		{"positive", "", []step{{0, "A1@300", "A1@300", 1}, {299 * s, "A2", "A1@1", 1}, {300 * s, "A2", "A2@10", 2}}},
		{"TTL is capped for the first client too", "", []step{{0, "A1@7200", "A1@3600", 1}, {s, "A2", "A1@3599", 1}}},
		{"TTL 0 becomes the minimum", "", []step{{0, "A1@0", "A1@5", 1}, {4 * s, "A2", "A1@1", 1}, {5 * s, "A2", "A2@10", 2}}},
		{"TTL 0 with minimum 0", "success 1024 3600 0", []step{{0, "A1@0", "A1@0", 1}, {0, "A2@0", "A2@0", 2}}},
		{"minimum TTL of denials", "denial 1024 1800 30", []step{{0, "NX@1", "NXDOMAIN@30", 1}, {29 * s, "A1", "NXDOMAIN@1", 1}}},
		{"NXDOMAIN", "", []step{{0, "NX@60", "NXDOMAIN@60", 1}, {59 * s, "A1", "NXDOMAIN@1", 1}, {60 * s, "A1", "A1@10", 2}}},
		{"NXDOMAIN with a small MINIMUM", "", []step{{0, "NXmin@60", "NXDOMAIN@30", 1}, {29 * s, "A1", "NXDOMAIN@1", 1}, {30 * s, "A1", "A1@10", 2}}},
		{"NXDOMAIN is capped", "", []step{{0, "NX@3600", "NXDOMAIN@1800", 1}}},
		{"NXDOMAIN without SOA", "", []step{{0, "NXbare", "NXDOMAIN", 1}, {0, "A1", "A1@10", 2}}},
		{"NXDOMAIN behind an alias", "", []step{{0, "CNAMENX@60", "NXDOMAIN@60", 1}, {59 * s, "A1", "NXDOMAIN@1", 1}, {60 * s, "A1", "A1@10", 2}}},
		{"NXDOMAIN behind an alias is bounded by MINIMUM", "", []step{{0, "CNAMENXmin@60", "NXDOMAIN@30", 1}, {30 * s, "A1", "A1@10", 2}}},
		{"NXDOMAIN behind an alias is bounded by the alias", "", []step{{0, "CNAMENXlong@60", "NXDOMAIN@60", 1}, {60 * s, "A1", "A1@10", 2}}},
		{"NXDOMAIN behind an alias without SOA", "", []step{{0, "CNAMENXbare", "NXDOMAIN@10", 1}, {0, "A1", "A1@10", 2}}},
		{"NXDOMAIN with an address", "", []step{{0, "A1NX@60", "NXDOMAIN@5", 1}, {0, "A1", "A1@10", 2}}},
		{"NXDOMAIN behind a fork", "", []step{{0, "forkNX@60", "NXDOMAIN@5", 1}, {0, "A1", "A1@10", 2}}},
		{"NODATA", "", []step{{0, "NODATA@60", "NOERROR@60", 1}, {s, "A1", "NOERROR@59", 1}}},
		{"empty NOERROR", "", []step{{0, "empty", "NOERROR", 1}, {4 * s, "A1", "NOERROR", 1}, {5 * s, "A1", "A1@10", 2}}},
		{"alias to nothing", "", []step{{0, "CNAME", "CNAME@10", 1}, {0, "A1", "A1@10", 2}}},
		{"alias to nothing with SOA is a denial", "denial 1024 20", []step{{0, "CNAMEsoa@60", "CNAME@20", 1}, {19 * s, "A1", "CNAME@1", 1}}},
		{"SERVFAIL", "", []step{{0, "SERVFAIL", "SERVFAIL", 1}, {4 * s, "A1", "SERVFAIL", 1}, {5 * s, "A1", "A1@10", 2}}},
		{"NOTIMP", "", []step{{0, "NOTIMP", "NOTIMP", 1}, {4 * s, "A1", "NOTIMP", 1}}},
		{"servfail 0", "servfail 0", []step{{0, "SERVFAIL", "SERVFAIL", 1}, {0, "A1", "A1@10", 2}}},
		{"servfail 1m", "servfail 1m", []step{{0, "SERVFAIL", "SERVFAIL", 1}, {59 * s, "A1", "SERVFAIL", 1}}},
		{"timeout is a failure for a second", "", []step{{0, "timeout", "code 2 error true", 1}, {2*s + 999*ms, "A1", "SERVFAIL", 1}, {3 * s, "A1", "A1@10", 2}}},
		{"timeout with servfail 1m", "servfail 1m", []step{{0, "timeout", "code 2 error true", 1}, {3 * s, "A1", "A1@10", 2}}},
		{"timeout with servfail 0", "servfail 0", []step{{0, "timeout", "code 2 error true", 1}, {3 * s, "A1", "A1@10", 2}}},
		{"REFUSED", "", []step{{0, "REFUSED", "REFUSED", 1}, {0, "A1", "A1@10", 2}}},
		{"truncated", "", []step{{0, "TC", "TC", 1}, {0, "A1", "A1@10", 2}}},
		{"signature", "", []step{{0, "signed@60", "A1@60", 1}, {s, "A2", "A1@59", 1}}},
		{"expired signature", "", []step{{0, "expired@60", "A1@5", 1}, {0, "A2", "A2@10", 2}}},
		{"disable success", "disable success example.org", []step{{0, "A1", "A1@10", 1}, {0, "NX@60", "NXDOMAIN@60", 2}, {s, "A1", "NXDOMAIN@59", 2}}},
		{"disable denial", "disable denial example.org", []step{{0, "NX", "NXDOMAIN@10", 1}, {0, "A1@60", "A1@60", 2}, {s, "NX", "A1@59", 2}}},
		{"disable elsewhere", "disable success example.net", []step{{0, "A1", "A1@10", 1}, {s, "A2", "A1@9", 1}}},
		{"keepttl", "keepttl", []step{{0, "A1@60", "A1@60", 1}, {59 * s, "A2", "A1@60", 1}, {60 * s, "A2", "A2@10", 2}}},

		// Prefetch.
		{"prefetch", "prefetch 2 1m 20%", []step{{0, "A1@100", "A1@100", 1}, {50 * s, "A2@100", "A1@50", 1}, {79 * s, "A2@100", "A1@21", 1}, {80 * s, "A2@100", "A1@20", 2}, {81 * s, "A1", "A2@99", 2}}},
		{"unpopular", "prefetch 3 1m 20%", []step{{0, "A1@100", "A1@100", 1}, {85 * s, "A2", "A1@15", 1}, {86 * s, "A2", "A1@14", 1}, {87 * s, "A2", "A1@13", 2}}},
		{"gap ends popularity", "prefetch 2 10s 20%", []step{{0, "A1@100", "A1@100", 1}, {70 * s, "A2", "A1@30", 1}, {85 * s, "A2", "A1@15", 1}, {86 * s, "A2", "A1@14", 2}}},
		{"failed prefetch leaves the answer", "prefetch 1 1m 50%\nservfail 1s", []step{{0, "A1@10", "A1@10", 1}, {6 * s, "SERVFAIL", "A1@4", 2}, {7 * s, "SERVFAIL", "A1@3", 3}, {11 * s, "A2", "A2@10", 4}}},

		// Stale answers.
		{"stale", "serve_stale 1m", []step{{0, "A1", "A1@10", 1}, {69 * s, "A2", "A1@0", 2}, {70 * s, "A1", "A2@9", 2}}},
		{"too stale", "serve_stale 1m", []step{{0, "A1", "A1@10", 1}, {70 * s, "A2", "A2@10", 2}}},
		{"stale for an hour", "serve_stale", []step{{0, "A1", "A1@10", 1}, {3609 * s, "SERVFAIL", "A1@0", 2}, {3610 * s, "A2", "A2@10", 3}}},
		{"stale TTL", "serve_stale 1m immediate 30s", []step{{0, "A1", "A1@10", 1}, {20 * s, "timeout", "A1@30", 2}}},
		{"stale denial", "serve_stale 1m", []step{{0, "NX", "NXDOMAIN@10", 1}, {20 * s, "A1", "NXDOMAIN@0", 2}, {21 * s, "A1", "A1@9", 2}}},
		{"failures leave the stale answer", "serve_stale 1m", []step{{0, "A1", "A1@10", 1}, {20 * s, "SERVFAIL", "A1@0", 2}, {21 * s, "timeout", "A1@0", 3}, {24 * s, "REFUSED", "A1@0", 4}, {25 * s, "spoof", "A1@0", 5}, {26 * s, "NX", "A1@0", 6}, {27 * s, "A2", "NXDOMAIN@9", 6}}},
		{"failure recheck", "serve_stale 1m immediate 0 10s", []step{{0, "A1", "A1@10", 1}, {20 * s, "SERVFAIL", "A1@0", 2}, {29 * s, "A2", "A1@0", 2}, {30 * s, "A2", "A1@0", 3}, {31 * s, "A1", "A2@9", 3}}},
		{"keepttl and stale", "keepttl\nserve_stale 1m", []step{{0, "A1", "A1@10", 1}, {20 * s, "timeout", "A1@10", 2}}},
		{"a failure does not hide a fresh answer", "prefetch 1 1h 90%\nservfail 1m", []step{{0, "A1@100", "A1@100", 1}, {50 * s, "SERVFAIL", "A1@50", 2}, {51 * s, "SERVFAIL", "A1@49", 3}}},

		{"verify", "serve_stale 1m verify", []step{{0, "A1", "A1@10", 1}, {20 * s, "A2", "A2@10", 2}, {21 * s, "A1", "A2@9", 2}}},
		{"verify fails", "serve_stale 1m verify", []step{{0, "A1", "A1@10", 1}, {20 * s, "SERVFAIL", "A1@0", 2}, {21 * s, "timeout", "A1@0", 3}, {30 * s, "A2", "A2@10", 4}}},
		{"verify finds a denial", "serve_stale 1m verify", []step{{0, "A1", "A1@10", 1}, {20 * s, "NX", "NXDOMAIN@10", 2}, {21 * s, "A1", "NXDOMAIN@9", 2}}},
		{"verify finds a denial behind an alias", "serve_stale 1m verify", []step{{0, "A1", "A1@10", 1}, {20 * s, "CNAMENX@10", "NXDOMAIN@10", 2}, {21 * s, "A1", "NXDOMAIN@9", 2}}},
		{"verify finds a denial that cannot be stored", "serve_stale 1m verify", []step{{0, "A1", "A1@10", 1}, {20 * s, "CNAMENXbare@10", "NXDOMAIN@10", 2}, {21 * s, "CNAMENXbare@10", "NXDOMAIN@10", 3}}},
		{"verify displaces a denial", "serve_stale 1m verify", []step{{0, "NX", "NXDOMAIN@10", 1}, {20 * s, "A1", "A1@10", 2}, {21 * s, "A2", "A1@9", 2}}},
		{"verify in time", "serve_stale 1m verify 100ms", []step{{0, "A1", "A1@10", 1}, {20 * s, "A2", "A2@10", 2}}},
		{"verify too late", "serve_stale 1m verify 100ms 7s", []step{{0, "A1", "A1@10", 1}, {20 * s, "slow@60", "A1@7", 2}, {22 * s, "A2", "A1@59", 2}}},
		{"verify recheck", "serve_stale 1m verify 100ms 0 10s", []step{{0, "A1", "A1@10", 1}, {20 * s, "SERVFAIL", "A1@0", 2}, {29 * s, "A2", "A1@0", 2}, {30*s + ms, "A2", "A2@10", 3}}},

		// prefer_positive.
		{"preferred to a denial", "serve_stale 1m\nserve_stale_policy prefer_positive", []step{{0, "A1", "A1@10", 1}, {20 * s, "NX@100", "A1@0", 2}, {21 * s, "NX@100", "A1@0", 3}, {70 * s, "A2", "NXDOMAIN@51", 3}}},
		{"what does not answer does not replace", "serve_stale 1m\nserve_stale_policy prefer_positive", []step{{0, "A1", "A1@10", 1}, {20 * s, "empty", "A1@0", 2}, {21 * s, "A2", "A1@0", 3}, {22 * s, "A1", "A2@9", 3}}},
		{"verify with what does not answer", "serve_stale 1m verify\nserve_stale_policy prefer_positive", []step{{0, "A1", "A1@10", 1}, {20 * s, "empty", "A1@0", 2}, {21 * s, "NX", "A1@0", 3}, {22 * s, "A2", "A2@10", 4}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := caddy.NewTestController("dns", "cache {\n"+tc.options+"\n}")
				d.ServerBlockKeys = []string{"."}
				c, err := parse(d)
				if err != nil {
					t.Fatal(err)
				}
				c.size = 1 << 20
				c.errors = new(failures.Limit) // every row begins in the same second
				c.Jitter = func(time.Duration) time.Duration { return 0 }
				word := ""
				up := &upstream{}
				up.f = func(_ context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) { return act(word, w, r) }
				c.Next = up
				if err := c.Open(); err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				start := time.Now()
				for _, st := range tc.steps {
					time.Sleep(st.at - time.Since(start))
					word = st.up
					w := &client{}
					code, err := c.ServeDNS(context.Background(), w, question(www, nil))
					synctest.Wait()
					var m *dns.Msg
					if len(w.got) == 1 {
						m = w.got[0]
					}
					if got := summary(m, code, err); got != st.want || up.count() != st.calls {
						t.Errorf("at %v, upstream says %s: client gets %s after %d queries upstream, want %s after %d", st.at, st.up, got, up.count(), st.want, st.calls)
					}
				}
				time.Sleep(time.Minute)
			})
		})
	}
}
