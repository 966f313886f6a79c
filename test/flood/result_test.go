package main

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/lab/clients"
)

func TestJudge(t *testing.T) {
	good := result{LostPercent: 20, PeakMiB: 100, RecoveredMS: 50}
	for _, tc := range []struct {
		name   string
		change func(r *result)
		stock  *result
		want   string
	}{
		{"all is well", func(*result) {}, &result{LostPercent: 20}, ""},
		{"alone", func(r *result) { r.LostPercent = 90 }, nil, ""},
		{"killed", func(r *result) { r.Killed = true }, nil, "killed"},
		{"too much memory", func(r *result) { r.PeakMiB = 111 }, nil, "111 MiB"},
		{"a lapse", func(r *result) { r.Lapses = 1 }, nil, "lapsed 1"},
		{"slow to recover", func(r *result) { r.RecoveredMS = 1500 }, nil, "1500 ms after"},
		{"worse than CoreDNS", func(*result) {}, &result{LostPercent: 10}, "with CoreDNS 10.0 %"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := good
			tc.change(&r)
			r.judge(tc.stock)
			got := strings.Join(r.Failures, "; ")
			if (got == "") != (tc.want == "") || !strings.Contains(got, tc.want) {
				t.Errorf("failures %q, want %q", got, tc.want)
			}
		})
	}
}

func TestCount(t *testing.T) {
	began := time.Now()
	ended := began.Add(10 * time.Second)
	at := func(after time.Duration, latency time.Duration) clients.Sent {
		s := clients.Sent{At: began.Add(after), Latency: latency, By: lab.Trackless}
		if latency == 0 {
			s.By, s.Loss = "", "timeout"
		}
		return s
	}
	var r result
	r.count([]clients.Sent{
		at(-time.Second, 0), // before the flood
		at(time.Second, time.Millisecond), at(2*time.Second, 3*time.Millisecond), at(3*time.Second, 0), at(4*time.Second, 0),
		at(10*time.Second+200*time.Millisecond, 0), at(11*time.Second, time.Millisecond),
	}, began, ended)
	if r.Queries != 4 || r.Answers != 2 || r.LostPercent != 50 || r.P90MS != 3 || r.RecoveredMS != 200 {
		t.Errorf("%+v", r)
	}
}

func TestJudgeThrottled(t *testing.T) {
	good := throttledResult{LostPercent: 2, Seconds: 60}
	for _, tc := range []struct {
		name     string
		change   func(r *throttledResult)
		lossless bool
		want     string
	}{
		{"as much as the bare server", func(*throttledResult) {}, false, ""},
		{"a lapse", func(r *throttledResult) { r.Lapses = 1 }, false, ""},
		{"two lapses in a minute", func(r *throttledResult) { r.Lapses = 2 }, false, "lapsed 2 times"},
		{"two lapses in two", func(r *throttledResult) { r.Lapses, r.Seconds = 2, 120 }, false, ""},
		{"more than the bare server", func(r *throttledResult) { r.LostPercent = 3.5 }, false, "without notrack 2.00 %"},
		{"a load that must cost nothing", func(*throttledResult) {}, true, ""},
		{"costs a lease", func(r *throttledResult) { r.Lapses = 1 }, true, "lapsed 1 times"},
		{"costs a lease at the start", func(r *throttledResult) { r.Lapses, r.ElsewhereBySecond = 1, []int{0, 0, 7, 9} }, true, ""},
		{"costs a lease after the start", func(r *throttledResult) { r.Lapses, r.ElsewhereBySecond = 1, []int{0, 0, 0, 9} }, true, "lapsed 1 times"},
		{"costs two leases", func(r *throttledResult) { r.Lapses, r.ElsewhereBySecond = 2, []int{5, 9} }, true, "lapsed 2 times"},
		{"costs a query", func(r *throttledResult) { r.Lost = 3 }, true, "3 queries were lost"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := good
			tc.change(&r)
			r.judge(&throttledResult{LostPercent: 2, Lost: 2}, tc.lossless)
			got := strings.Join(r.Failures, "; ")
			if (got == "") != (tc.want == "") || !strings.Contains(got, tc.want) {
				t.Errorf("failures %q, want %q", got, tc.want)
			}
		})
	}
}

func TestCountThrottled(t *testing.T) {
	began := time.Now()
	at := func(after, latency time.Duration, by lab.Responder) clients.Sent {
		s := clients.Sent{At: began.Add(after), Latency: latency, By: by}
		if by == "" {
			s.Loss = "timeout"
		}
		return s
	}
	var r throttledResult
	r.count(nil)
	r.count([]clients.Sent{
		at(1500*time.Millisecond, time.Millisecond, lab.KubeDNS), at(0, 2*time.Millisecond, lab.Trackless),
		at(100*time.Millisecond, 0, ""), at(2*time.Second, 3*time.Millisecond, lab.Trackless),
	})
	if r.Queries != 4 || r.Lost != 1 || r.LostPercent != 25 || r.ElsewherePercent != 25 || r.P50MS != 2 ||
		!slices.Equal(r.LostBySecond, []int{1, 0, 0}) || !slices.Equal(r.ElsewhereBySecond, []int{0, 1, 0}) {
		t.Errorf("%+v", r)
	}
}
