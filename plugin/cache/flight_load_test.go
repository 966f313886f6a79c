//go:build load

package cache

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coredns/coredns/plugin/test"
	"github.com/miekg/dns"
)

func cookie(hex string) dns.EDNS0 { return &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: hex} }

var askers = []asker{
	{name: "plain"},
	{name: "plain over TCP", tcp: true},
	{name: "no RD", edit: func(m *dns.Msg) { m.RecursionDesired = false }},
	{name: "EDNS", edit: edns()},
	{name: "cookie", edit: edns(cookie("0102030405060708"))},
	{name: "another cookie", edit: edns(cookie("1112131415161718"))},
	{name: "DO", edit: func(m *dns.Msg) { m.SetEdns0(1232, true) }},
	{name: "CD", edit: func(m *dns.Msg) { m.CheckingDisabled = true }},
	{name: "no network", edit: withSubnet(0)},
	{name: "a network", edit: withSubnet(24)},
	{name: "AAAA", edit: func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAAAA }},
	{name: "transfer", edit: func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAXFR }, tcp: true},
}

var manners = map[string]func(w dns.ResponseWriter, m *dns.Msg) (int, error){
	"refuses late": func(w dns.ResponseWriter, m *dns.Msg) (int, error) {
		time.Sleep(600 * time.Millisecond)
		m.Rcode = dns.RcodeRefused
		return 0, w.WriteMsg(m)
	},
	"wants a cookie": func(w dns.ResponseWriter, m *dns.Msg) (int, error) {
		time.Sleep(time.Millisecond)
		m.Rcode = dns.RcodeBadCookie
		return 0, w.WriteMsg(m)
	},
	"cuts off": func(w dns.ResponseWriter, m *dns.Msg) (int, error) {
		time.Sleep(5 * time.Millisecond)
		m.Truncated = true
		return 0, w.WriteMsg(m)
	},
	"is lost": func(dns.ResponseWriter, *dns.Msg) (int, error) {
		time.Sleep(2 * time.Second)
		return dns.RcodeServerFailure, errTest
	},
	"fails at once": func(dns.ResponseWriter, *dns.Msg) (int, error) {
		time.Sleep(time.Millisecond)
		return dns.RcodeServerFailure, errTest
	},
	"says nothing": func(dns.ResponseWriter, *dns.Msg) (int, error) { return dns.RcodeSuccess, nil },
	"panics": func(dns.ResponseWriter, *dns.Msg) (int, error) {
		time.Sleep(10 * time.Millisecond)
		panic("upstream")
	},
}

// TestFollowersGetWhatTheyWouldAlone: one client asks in each way and is treated badly, and
// another asks in each way beside it. The other gets the answer that it would get without
// coalescing or a better one, at most 300 ms later.
func TestFollowersGetWhatTheyWouldAlone(t *testing.T) {
	for manner, f := range manners {
		t.Run(manner, func(t *testing.T) {
			for _, leader := range askers {
				for _, follower := range askers {
					off, offTook := beside(t, false, &moody{leader, f}, leader, follower)
					on, onTook := beside(t, true, &moody{leader, f}, leader, follower)
					if on != off && !strings.HasPrefix(on, "NOERROR [www") {
						t.Errorf("%s, who asks beside %s, got %q, without coalescing %q", follower.name, leader.name, on, off)
					}
					if onTook > offTook+300*time.Millisecond {
						t.Errorf("%s, who asks beside %s, waited %v, without coalescing %v", follower.name, leader.name, onTook, offTook)
					}
				}
			}
		})
	}
}

// beside has the leader ask, then the follower, and returns what the follower
// got and when.
func beside(t *testing.T, coalesce bool, up *moody, leader, follower asker) (got string, took time.Duration) {
	synctest.Test(t, func(t *testing.T) {
		c := newCache(t, up, func(c *Cache) { c.coalesce = coalesce })
		serve := func(a asker) (string, time.Duration) {
			start := time.Now()
			w := &client{ResponseWriter: test.ResponseWriter{TCP: a.tcp}}
			code, err := 0, error(nil)
			func() {
				defer func() {
					if recover() != nil { // as the server does
						code = dns.RcodeServerFailure
					}
				}()
				code, err = c.ServeDNS(context.Background(), w, question(www, a.edit))
			}()
			if len(w.got) == 0 {
				return fmt.Sprint(dns.RcodeToString[code], err), time.Since(start)
			}
			return fmt.Sprint(dns.RcodeToString[w.got[0].Rcode], w.got[0].Answer, w.got[0].Truncated), time.Since(start)
		}
		go serve(leader)
		time.Sleep(500 * time.Microsecond)
		got, took = serve(follower)
		time.Sleep(time.Minute)
		noFlights(t, c)
	})
	return got, took
}
