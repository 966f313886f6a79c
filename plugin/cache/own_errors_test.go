package cache

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coredns/coredns/plugin/test"
	"github.com/miekg/dns"
)

// overShare is an error that brings its reply.
type overShare struct{}

func (overShare) Error() string { return "more than its share" }

func (overShare) Reply(r *dns.Msg) *dns.Msg {
	m := new(dns.Msg).SetRcode(r, dns.RcodeServerFailure)
	m.RecursionAvailable = true // so that a reply shows from where it is
	return m
}

const greedy = "10.244.0.1"

// An error that concerns the query of one client is that client's alone: nothing of it is
// stored, and who waits for the same answer gets it.
func TestOwnErrors(t *testing.T) {
	for _, waits := range []bool{false, true} {
		t.Run(fmt.Sprintf("another one waits %t", waits), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				up := &upstream{f: func(_ context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
					time.Sleep(20 * time.Millisecond)
					if addrPort(w.RemoteAddr()).Addr().String() == greedy {
						return dns.RcodeServerFailure, fmt.Errorf("plugin: %w", overShare{})
					}
					m := new(dns.Msg).SetReply(r)
					rr, err := dns.NewRR(www + " 300 IN A 192.0.2.1")
					m.Answer = []dns.RR{rr}
					return 0, errors.Join(err, w.WriteMsg(m))
				}}
				c := newCache(t, up, nil)
				serve := func(ip string) *dns.Msg {
					w := &client{ResponseWriter: test.ResponseWriter{RemoteIP: ip}}
					if code, err := c.ServeDNS(t.Context(), w, question(www, nil)); code != dns.RcodeSuccess || err != nil {
						t.Errorf("%s: %s, %v", ip, dns.RcodeToString[code], err)
					}
					if len(w.got) != 1 {
						t.Fatalf("%s: %d replies", ip, len(w.got))
					}
					return w.got[0]
				}
				first := make(chan *dns.Msg, 1)
				go func() { first <- serve(greedy) }()
				synctest.Wait()
				if !waits {
					time.Sleep(time.Second / 2)
				}
				began := time.Now()
				if m := serve("10.244.0.2"); m.Rcode != dns.RcodeSuccess || time.Since(began) > 50*time.Millisecond {
					t.Errorf("the other client got %s after %v", dns.RcodeToString[m.Rcode], time.Since(began))
				}
				if m := <-first; m.Rcode != dns.RcodeServerFailure || !m.RecursionAvailable {
					t.Errorf("the client got %v", m)
				}
				if n := up.count(); n != 2 {
					t.Errorf("the upstream was asked %d times, want 2", n)
				}
				noFlights(t, c)
			})
		})
	}
}

// Queries that had to give way say nothing about the upstream: its next response ends no
// silence.
func TestOwnErrorsAreNoSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := &upstream{f: func(context.Context, dns.ResponseWriter, *dns.Msg) (int, error) {
			return dns.RcodeServerFailure, overShare{}
		}}
		c := newCache(t, up, nil)
		for range 3 {
			ask(t, c, question(www, nil))
			time.Sleep(silence)
		}
		if c.flights.responses.silent.Load() {
			t.Error("the upstream counts as silent")
		}
	})
}

// Queries that are not for the cache and had to give way are answered, too, and leave no line
// in the log for each.
func TestOwnErrorsOfOtherQueries(t *testing.T) {
	for _, tc := range []struct {
		name  string
		query func() *dns.Msg
	}{
		{"zone transfer", func() *dns.Msg { return new(dns.Msg).SetAxfr(www) }},
		{"notify", func() *dns.Msg { return new(dns.Msg).SetNotify(www) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			up := &upstream{f: func(context.Context, dns.ResponseWriter, *dns.Msg) (int, error) {
				return dns.RcodeServerFailure, overShare{}
			}}
			c := newCache(t, up, nil)
			if m := ask(t, c, tc.query()); m == nil || !m.RecursionAvailable {
				t.Errorf("the reply is %v", m)
			}
			up.f = func(context.Context, dns.ResponseWriter, *dns.Msg) (int, error) {
				return dns.RcodeServerFailure, errors.New("the upstream does not respond")
			}
			reported := 0
			for range 100 {
				code, err := c.ServeDNS(t.Context(), &client{}, tc.query())
				if code != dns.RcodeServerFailure {
					t.Errorf("%s", dns.RcodeToString[code])
				}
				if err != nil {
					reported++
				}
			}
			if reported == 0 || reported > 20 {
				t.Errorf("%d of 100 errors are reported", reported)
			}
		})
	}
}

// A client that had to give way does not keep others from asking anew for a stale answer.
func TestOwnErrorsAreNoFailedRefresh(t *testing.T) {
	for _, within := range []time.Duration{0, 100 * time.Millisecond} {
		t.Run(fmt.Sprintf("verify %v", within), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				shed := false
				up := &upstream{f: func(_ context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
					if shed {
						return dns.RcodeServerFailure, fmt.Errorf("plugin: %w", overShare{})
					}
					m := new(dns.Msg).SetReply(r)
					rr, err := dns.NewRR(www + " 10 IN A 192.0.2.1")
					m.Answer = []dns.RR{rr}
					return 0, errors.Join(err, w.WriteMsg(m))
				}}
				c := newCache(t, up, func(c *Cache) {
					c.staleUpTo, c.verifyStale, c.verifyTimeout, c.staleRecheck = time.Hour, true, within, 10*time.Second
				})
				ask(t, c, question(www, nil))
				time.Sleep(11 * time.Second)
				shed = true
				ask(t, c, question(www, nil))
				synctest.Wait()
				shed = false
				ask(t, c, question(www, nil))
				if n := up.count(); n != 3 {
					t.Errorf("the upstream was asked %d times, want 3", n)
				}
			})
		})
	}
}
