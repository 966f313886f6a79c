package iptables

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/trackless-dns/trackless/internal/testgolden"
)

func at(addr string, port uint16, proto Proto) Endpoint {
	a, _ := netip.ParseAddr(addr)
	return Endpoint{Addr: a, Port: port, Proto: proto}
}

func TestMerge(t *testing.T) {
	a := Plan{Link: "nodelocaldns", Listen: []Endpoint{at("fd00::a", 53, TCP), at("10.96.0.10", 53, UDP)}}
	b := Plan{
		Link:    "nodelocaldns",
		Listen:  []Endpoint{at("10.96.0.10", 53, UDP), at("10.96.0.10", 53, TCP)},
		Untrack: []Endpoint{at("10.96.0.10", 8080, TCP), at("10.96.0.10", 53, TCP)},
	}
	got, err := a.Merge(b)
	if err != nil {
		t.Fatal(err)
	}
	want := Plan{
		Link:    "nodelocaldns",
		Listen:  []Endpoint{at("10.96.0.10", 53, TCP), at("10.96.0.10", 53, UDP), at("fd00::a", 53, TCP)},
		Untrack: []Endpoint{at("10.96.0.10", 8080, TCP)},
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("merged plan (-want +got):\n%s", diff)
	}
	if other, err := b.Merge(a); err != nil || !other.Equal(got) {
		t.Errorf("the order of blocks matters: %v, %v", other, err)
	}
	if empty, err := (Plan{}).Merge(a); err != nil || !empty.Equal(a.Normalize()) {
		t.Errorf("merging with nothing: %v, %v", empty, err)
	}
	var conflict *LinkConflictError
	if _, err := a.Merge(Plan{Link: "dns0", Listen: b.Listen}); !errors.As(err, &conflict) || *conflict != (LinkConflictError{Link: "nodelocaldns", Other: "dns0"}) {
		t.Errorf("two links: %v", err)
	}
}

// TestValidate compares the errors of plans with testdata/plan-errors.txt.
func TestValidate(t *testing.T) {
	if err := planFor("10.96.0.10", "fd00::a").Validate(); err != nil {
		t.Errorf("addresses of both families: %v", err)
	}
	var out strings.Builder
	for _, tc := range []struct {
		name string
		plan Plan
	}{
		{"nothing to listen on", Plan{}},
		{"no address", Plan{Listen: []Endpoint{at("", 53, UDP)}}},
		{"wildcard", planFor("0.0.0.0")},
		{"IPv6 wildcard", planFor("::")},
		{"IPv4 in IPv6", planFor("::ffff:10.96.0.10")},
		{"zone", planFor("fe80::1%eth0")},
		{"link-local of IPv6", planFor("fe80::10")},
		{"multicast", planFor("224.0.0.251")},
		{"port 0", Plan{Listen: []Endpoint{at("10.96.0.10", 0, UDP)}}},
		{"protocol", Plan{Listen: []Endpoint{at("10.96.0.10", 53, 132)}}},
		{"untracked service", Plan{Listen: planFor("10.96.0.10").Listen, Untrack: []Endpoint{at("10.96.0.10", 0, TCP)}}},
	} {
		fmt.Fprintf(&out, "%s: %v\n", tc.name, tc.plan.Validate())
	}
	testgolden.Compare(t, "plan-errors.txt", out.String())
}

func TestPlanString(t *testing.T) {
	p := planFor("10.96.0.10")
	p.Untrack = []Endpoint{at("10.96.0.10", 8080, TCP)}
	want := `link     nodelocaldns
address  10.96.0.10
hook     prerouting, priority raw (-300)
hook     output, priority raw (-300)
notrack  tcp 10.96.0.10:53, queries and responses
notrack  udp 10.96.0.10:53, queries and responses
notrack  tcp 10.96.0.10:8080, not served by us
lease    1s
`
	if diff := cmp.Diff(want, p.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func planFor(addrs ...string) Plan {
	p := Plan{Link: "nodelocaldns", Lease: time.Second}
	for _, a := range addrs {
		for _, proto := range []Proto{UDP, TCP} {
			p.Listen = append(p.Listen, Endpoint{Addr: netip.MustParseAddr(a), Port: 53, Proto: proto})
		}
	}
	return p.Normalize()
}
