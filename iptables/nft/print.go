package nft

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/trackless-dns/trackless/iptables"
)

// Print writes a plan as nft syntax, as `nft list table` shows the table that
// Install and Attach make of it, packet counts aside. attached tells whether
// the queries are untracked.
func Print(table string, p iptables.Plan, checks []iptables.Check, attached bool) string {
	var b strings.Builder
	line := func(depth int, format string, args ...any) {
		b.WriteString(strings.Repeat("\t", depth))
		fmt.Fprintf(&b, format+"\n", args...)
	}
	line(0, "table inet %s {", table)
	for _, k := range iptables.CounterKeys() {
		line(1, "counter %s {", counterName(k))
		line(2, "packets 0 bytes 0")
		line(1, "}")
		line(0, "")
	}
	live := []iptables.Endpoint(nil)
	if attached {
		live = p.Endpoints()
	}
	var checkEndpoints []iptables.Endpoint
	for _, c := range checks {
		checkEndpoints = append(checkEndpoints, c.Endpoint)
	}
	for _, f := range families {
		printSet(line, "listen", f, p.Endpoints())
		printSet(line, "live", f, live)
		printSet(line, "check", f, checkEndpoints)
	}
	for _, d := range []iptables.Direction{iptables.Query, iptables.Response} {
		name := "queries"
		if d == iptables.Response {
			name = "responses"
		}
		line(1, "chain %s {", name)
		line(2, "notrack")
		for _, k := range iptables.CounterKeys() {
			if k.Direction == d {
				line(2, "meta nfproto %s meta l4proto %s counter name %q", k.Family, k.Proto, counterName(k))
			}
		}
		line(1, "}")
		line(0, "")
	}
	for i, h := range p.Hooks() {
		line(1, "chain %s {", h)
		line(2, "type filter hook %s priority raw; policy accept;", h)
		lo, query, response := "iif", "goto queries", "notrack accept"
		if h == iptables.Output {
			lo, query, response = "oif", "notrack accept", "goto responses"
		}
		for _, f := range families {
			src, dst := matchers(f)
			line(2, "%s \"lo\" %s @check%d %s @listen%d notrack accept", lo, src, f, dst, f)
			line(2, "%s \"lo\" %s @listen%d %s @check%d notrack accept", lo, src, f, dst, f)
			line(2, "%s @live%d %s", dst, f, query)
			line(2, "%s @listen%d %s", src, f, response)
		}
		line(1, "}")
		if i == 0 {
			line(0, "")
		}
	}
	line(0, "}")
	return b.String()
}

func matchers(f iptables.Family) (src, dst string) {
	ip := "ip"
	if f == iptables.IPv6 {
		ip = "ip6"
	}
	return ip + " saddr . meta l4proto . th sport", ip + " daddr . meta l4proto . th dport"
}

func printSet(line func(int, string, ...any), name string, f iptables.Family, endpoints []iptables.Endpoint) {
	addr := "ipv4_addr"
	if f == iptables.IPv6 {
		addr = "ipv6_addr"
	}
	var elems []string
	// The order in which nft prints concatenated keys: the last part first.
	endpoints = slices.SortedFunc(slices.Values(endpoints), func(a, b iptables.Endpoint) int {
		return cmp.Or(cmp.Compare(a.Port, b.Port), cmp.Compare(a.Proto, b.Proto), a.Addr.Compare(b.Addr))
	})
	for _, e := range endpoints {
		if iptables.FamilyOf(e.Addr) == f {
			elems = append(elems, fmt.Sprintf("%s . %s . %d", e.Addr, e.Proto, e.Port))
		}
	}
	line(1, "set %s%d {", name, f)
	line(2, "type %s . inet_proto . inet_service", addr)
	if len(elems) > 0 {
		line(2, "elements = { %s }", strings.Join(elems, ",\n\t\t\t     "))
	}
	line(1, "}")
	line(0, "")
}
