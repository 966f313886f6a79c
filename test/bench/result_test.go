package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// kept is a report of a Trackless that keeps every bar.
func kept() *report {
	r := &report{
		Idle: []row{{Kind: coredns, Addresses: 2, CPU: 90}, {Kind: bare, Addresses: 2, CPU: 0.2}},
		Busy: []row{{Kind: bare, Addresses: 2, CPU: 3}},
	}
	for _, backend := range []string{"nftables", "iptables"} {
		for _, n := range []int{1, 2, 4} {
			r.Idle = append(r.Idle, row{Server: fmt.Sprint(backend, n), Kind: trackless, Backend: backend, Addresses: n, CPU: 1.4, Wakeups: 14, SetBytes: 1 << 19})
		}
		r.Busy = append(r.Busy, row{Server: backend, Kind: trackless, Backend: backend, Addresses: 2, CPU: 4.9})
	}
	return r
}

func TestJudge(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(nftables1, nftables2, iptables2, busy *row)
		fails  []string // the servers that do not keep a bar
	}{
		{name: "every bar kept", change: func(_, _, _, _ *row) {}},
		{name: "CPU", change: func(_, nftables2, _, _ *row) { nftables2.CPU = 1.6 }, fails: []string{"nftables2"}},
		{name: "wake-ups", change: func(_, nftables2, _, _ *row) { nftables2.Wakeups = 16 }, fails: []string{"nftables2"}},
		{name: "one address has no bar of its own", change: func(nftables1, _, _, _ *row) { nftables1.Wakeups = 16 }},
		{name: "sets", change: func(nftables1, _, _, _ *row) { nftables1.SetBytes = 2 << 20 }, fails: []string{"nftables1"}},
		{name: "the other backend", change: func(_, nftables2, iptables2, _ *row) { nftables2.CPU, iptables2.CPU = 0.5, 1.4 }, fails: []string{"iptables2"}},
		{name: "asked", change: func(_, _, _, busy *row) { busy.CPU = 5.1 }, fails: []string{"nftables"}},
		{name: "another binary has no bars", change: func(_, nftables2, _, busy *row) {
			*nftables2 = row{Kind: trackless, Backend: "nftables", Addresses: 2, Other: true, CPU: 30, Wakeups: 300, SetBytes: 9 << 20}
			*busy = row{Kind: trackless, Backend: "nftables", Addresses: 2, Other: true, CPU: 30}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := kept()
			c.change(&r.Idle[2], &r.Idle[3], &r.Idle[6], &r.Busy[1])
			r.judge()
			var fails []string
			for _, f := range r.Failures {
				server, _, _ := strings.Cut(f, ",")
				fails = append(fails, server)
			}
			if !slices.Equal(fails, c.fails) || r.Kept != (len(c.fails) == 0) {
				t.Errorf("kept: %t; these servers do not keep a bar: %q, want %q", r.Kept, r.Failures, c.fails)
			}
		})
	}
}

func TestCopySets(t *testing.T) {
	const listed = `table ip kube-proxy {
	set ips {
		type ipv4_addr
	}
}
table inet trackless-0badcafe {
	flags owner
	set listen4 {
		type ipv4_addr
		flags timeout
	}
}
`
	got := copySets(listed)
	if n := strings.Count(got, "set listen4 {"); n != copies {
		t.Errorf("%d copies of our set, want %d:\n%s", n, copies, got)
	}
	for _, wrong := range []string{"set ips", "flags owner", "table inet trackless-"} {
		if strings.Contains(got, wrong) {
			t.Errorf("the copy contains %q:\n%s", wrong, got)
		}
	}
	if !strings.Contains(got, "flags timeout") {
		t.Errorf("the copy lacks the flags of the set:\n%s", got)
	}
}
