package main

import (
	"strings"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/lab"
)

// agreeing is a result in which both are the same all the time.
func agreeing() *Result {
	r := &Result{ConntrackL: ConntrackL{Before: 10, Lines: 9, After: 8}}
	for second := 1; second <= int(watchTime/time.Second); second++ {
		r.Seconds = append(r.Seconds, Second{Second: second, Kernel: 1000, Ledger: 1000})
	}
	return r
}

func TestJudge(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*Result)
		want   string // of the failures, "" for none
	}{
		{"all the same", func(*Result) {}, ""},
		{"off by little, once", func(r *Result) { r.Seconds[20].Ledger = 1019 }, ""},
		{"off by much before the 10th second", func(r *Result) { r.Seconds[8].Ledger = 0 }, ""},
		{"off by much in the 10th second", func(r *Result) { r.Seconds[9].Ledger = 979 }, "second 10: 979 of 1000 entries, -2.1 %"},
		{"off by much in the last", func(r *Result) { r.Seconds[89].Ledger = 1021 }, "second 90"},
		{"off by what came while it was counted", func(r *Result) { r.Seconds[20].Ledger, r.Seconds[20].Moved = 1060, 50 }, ""},
		{"off by more than that", func(r *Result) { r.Seconds[20].Ledger, r.Seconds[20].Moved = 1080, 50 }, "second 21"},
		{"one node was sent less so far", func(r *Result) { r.Seconds[20].Ledger, r.Seconds[20].Apart = 960, -30 }, ""},
		{"and not that much less", func(r *Result) { r.Seconds[20].Ledger, r.Seconds[20].Apart = 940, -30 }, "second 21"},
		{"counted slowly all the time", func(r *Result) {
			for i := range r.Seconds {
				r.Seconds[i].Moved = 50
			}
		}, "changed much"},
		{"off by little all the time", func(r *Result) {
			for i := range r.Seconds {
				r.Seconds[i].Ledger = 1011
			}
		}, "1.1 % on average"},
		{"entries where there is none", func(r *Result) { r.Seconds[50].Kernel, r.Seconds[50].Ledger = 0, 5 }, "second 51"},
		{"conntrack -L lists more", func(r *Result) { r.ConntrackL.Lines = 11 }, "conntrack -L"},
		{"conntrack -L lists fewer", func(r *Result) { r.ConntrackL.Lines = 7 }, "conntrack -L"},
		{"tracked on the second node", func(r *Result) { r.LeftOnUntracked = 1 }, "the node that tracks none"},
		{"disturbed", func(r *Result) { r.Disturbances = []string{"busy"} }, "busy"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := agreeing()
			tt.change(r)
			r.judge()
			got := strings.Join(r.Failures, "; ")
			if r.Agree != (tt.want == "") || !strings.Contains(got, tt.want) {
				t.Errorf("agree %v, %q; want %q", r.Agree, got, tt.want)
			}
		})
	}
}

func TestCompareSent(t *testing.T) {
	began := time.Now()
	stream := func(perSecond int, late time.Duration, loss string) [][]lab.Sent {
		var sent []lab.Sent
		for i := range perSecond * int(loadTime/time.Second) {
			at := began.Add(late + time.Duration(i)*time.Second/time.Duration(perSecond))
			sent = append(sent, lab.Sent{At: at, Port: uint16(i), Loss: loss})
		}
		return [][]lab.Sent{sent}
	}
	for _, tt := range []struct {
		name   string
		second [][]lab.Sent
		want   string
	}{
		{"the same", stream(100, 0, ""), ""},
		{"a little late", stream(100, 30*time.Millisecond, ""), ""},
		{"late", stream(100, 300*time.Millisecond, ""), "by second 10"},
		{"fewer", stream(96, 0, ""), "differ by 4.0 %"},
		{"lost", stream(100, 0, "timeout"), "50.0 % of the queries were lost"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := agreeing()
			r.compareSent(began, [2][][]lab.Sent{stream(100, 0, ""), tt.second})
			got := strings.Join(r.Disturbances, "; ")
			if (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
}
