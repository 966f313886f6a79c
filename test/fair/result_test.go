package main

import (
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func TestJudge(t *testing.T) {
	good := result{Upstream: fast, Cached: 1000, Uncached: 1000, UncachedLost: 1, QuietP99MS: 6, UncachedP99MS: 12, IdleMiB: 40, PeakMiB: 80, NamedAfterMS: 500}
	for _, tc := range []struct {
		name   string
		change func(r *result)
		want   string
	}{
		{"all is well", func(*result) {}, ""},
		{"killed", func(r *result) { r.Killed = true }, "killed"},
		{"a cached name", func(r *result) { r.CachedLost = 1 }, "1 of 1000 queries for cached names"},
		{"cached names without an upstream", func(r *result) { r.Upstream, r.CachedLost = closed, 10 }, ""},
		{"more cached names without an upstream", func(r *result) { r.Upstream, r.CachedLost = closed, 11 }, "11 of 1000 queries for cached names"},
		{"uncached names", func(r *result) { r.UncachedFailed = 1 }, "2 of 1000 queries for uncached names"},
		{"uncached names without an upstream", func(r *result) { r.Upstream, r.UncachedLost, r.UncachedP99MS = closed, 1000, 0 }, ""},
		{"slow", func(r *result) { r.UncachedP99MS = 12.5 }, "12.5 ms"},
		{"memory", func(r *result) { r.PeakMiB = 81 }, "81 MiB"},
		{"named late", func(r *result) { r.NamedAfterMS = 10_001 }, "name the client"},
		{"never named", func(r *result) { r.NamedAfterMS = 0 }, "name the client"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := good
			tc.change(&r)
			r.judge()
			got := strings.Join(r.Failures, "; ")
			if (got == "") != (tc.want == "") || !strings.Contains(got, tc.want) {
				t.Errorf("failures %q, want %q", got, tc.want)
			}
		})
	}
}

func TestDuring(t *testing.T) {
	var r result
	r.during([]asked{
		{cached: true, latency: time.Millisecond}, {cached: true, latency: 2 * time.Millisecond}, {cached: true}, {cached: true, latency: 1, rcode: dns.RcodeServerFailure},
		{latency: 5 * time.Millisecond}, {}, {latency: 1, rcode: dns.RcodeRefused},
	})
	if r.Cached != 4 || r.CachedLost != 2 || r.Uncached != 3 || r.UncachedLost != 1 || r.UncachedFailed != 1 || r.UncachedP50MS != 5 {
		t.Errorf("%+v", r)
	}
}

func TestResponseTo(t *testing.T) {
	query, err := new(dns.Msg).SetQuestion("new-1.lab.", dns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	for rcode, answers := range map[int]int{dns.RcodeSuccess: 1, dns.RcodeNameError: 0, dns.RcodeRefused: 0} {
		m := new(dns.Msg)
		if err := m.Unpack(responseTo(query, rcode)); err != nil || !m.Response || m.Rcode != rcode || len(m.Answer) != answers {
			t.Errorf("%s: %v, %v", dns.RcodeToString[rcode], m, err)
		}
	}
}
