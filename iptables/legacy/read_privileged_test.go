//go:build privileged

package legacy

import (
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/iptables"
)

var sameAddr = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

func restore(t testing.TB, program, rules string) {
	t.Helper()
	testns.Program(t, program)
	cmd := exec.Command(program, "--noflush")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", program, err, out)
	}
}

const filter4 = `*filter
:INPUT DROP [0:0]
:OUTPUT ACCEPT [0:0]
:deep - [0:0]
:empty - [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT ! -i eth+ -s 10.0.0.0/8 ! -d 10.96.0.10 -p udp -m udp --dport 53 -m comment --comment "a word" -j deep
-A INPUT ! -p tcp -g empty
-A INPUT -f -j DROP
-A INPUT ! -f -p tcp -j REJECT
-A INPUT -i veth0
-A deep -j RETURN
-A deep -j DROP
COMMIT
`

func TestRead(t *testing.T) {
	cfg := Config{NetNS: int(testns.Enter(t))}
	restore(t, "iptables-legacy-restore", filter4)
	got, found, err := Read(cfg, iptables.IPv4, "filter", nil)
	if err != nil || !found {
		t.Fatalf("%v, %v", found, err)
	}
	for i := range got.Chains {
		for j := range got.Chains[i].Rules {
			r := &got.Chains[i].Rules[j]
			for k := range r.Matches {
				r.Matches[k].Info = nil // the kernel's own; the comment is checked below
			}
			r.Target.Info = nil
		}
	}
	host := netip.MustParseAddr("255.255.255.255")
	want := Table{Family: iptables.IPv4, Name: "filter", Chains: []Chain{
		{Name: "INPUT", Base: true, Hook: 1, Policy: Drop, Rules: []Rule{
			{Place: 1, Input: Interface{Name: "lo"}, Verdict: &Verdict{Code: Accept}},
			{
				Place:       2,
				Input:       Interface{Name: "eth", Prefix: true, Not: true},
				Source:      Masked{Addr: netip.MustParseAddr("10.0.0.0"), Mask: netip.MustParseAddr("255.0.0.0")},
				Destination: Masked{Addr: netip.MustParseAddr("10.96.0.10"), Mask: host, Not: true},
				Proto:       17,
				Matches:     []Extension{{Name: "udp"}, {Name: "comment"}},
				Verdict:     &Verdict{Code: Jump, Chain: "deep"},
			},
			{Place: 3, Proto: 6, NotProto: true, Verdict: &Verdict{Code: Goto, Chain: "empty"}},
			{Place: 4, Fragment: true, Verdict: &Verdict{Code: Drop}},
			{Place: 5, NotFragment: true, Proto: 6, Target: Extension{Name: "REJECT"}},
			{Place: 6, Input: Interface{Name: "veth0"}},
		}},
		{Name: "FORWARD", Base: true, Hook: 2, Policy: Accept},
		{Name: "OUTPUT", Base: true, Hook: 3, Policy: Accept},
		{Name: "deep", Rules: []Rule{{Place: 1, Verdict: &Verdict{Code: Return}}, {Place: 2, Verdict: &Verdict{Code: Drop}}}},
		{Name: "empty"},
	}}
	if diff := cmp.Diff(want, got, sameAddr, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	again, _, err := Read(cfg, iptables.IPv4, "filter", nil)
	if err != nil {
		t.Fatal(err)
	}
	if c := again.Chain("INPUT").Rules[1].Comment(); c != "a word" {
		t.Errorf("comment %q", c)
	}
}

func TestReadIPv6(t *testing.T) {
	cfg := Config{NetNS: int(testns.Enter(t))}
	restore(t, "ip6tables-legacy-restore", `*nat
:KUBE-SERVICES - [0:0]
:KUBE-SVC-X - [0:0]
-A PREROUTING -j KUBE-SERVICES
-A KUBE-SERVICES -d fd00:10:96::a/128 -p udp -m udp --dport 53 -j KUBE-SVC-X
-A KUBE-SERVICES -d fd00:10:97::/64 -i cni0 -j RETURN
COMMIT
`)
	got, found, err := Read(cfg, iptables.IPv6, "nat", nil)
	if err != nil || !found {
		t.Fatalf("%v, %v", found, err)
	}
	services := got.Chain("KUBE-SERVICES")
	if services == nil || len(services.Rules) != 2 {
		t.Fatalf("%+v", got)
	}
	first, second := services.Rules[0], services.Rules[1]
	if !first.Destination.IsAddr(netip.MustParseAddr("fd00:10:96::a")) || first.Proto != 17 || first.Verdict.Chain != "KUBE-SVC-X" {
		t.Errorf("%+v", first)
	}
	if second.Destination.IsAddr(netip.MustParseAddr("fd00:10:97::")) || second.Proto != 0 || second.Input.Name != "cni0" {
		t.Errorf("%+v", second)
	}
}

// Reading creates no table: iptables-nft would warn about it, and its hooks would cost
// time for every packet.
func TestReadCreatesNoTable(t *testing.T) {
	cfg := Config{NetNS: int(testns.Enter(t))}
	for _, f := range []iptables.Family{iptables.IPv4, iptables.IPv6} {
		for _, name := range []string{"raw", "nat", "filter"} {
			if _, found, err := Read(cfg, f, name, nil); err != nil || found {
				t.Errorf("%s %s: %v, %v", f, name, found, err)
			}
		}
		if names, err := Names(cfg, f); err != nil || len(names) != 0 {
			t.Errorf("%s: %v, %v", f, names, err)
		}
	}
	restore(t, "iptables-legacy-restore", "*raw\nCOMMIT\n")
	if names, err := Names(cfg, iptables.IPv4); err != nil || !slices.Equal(names, []string{"raw"}) {
		t.Errorf("%v, %v", names, err)
	}
}

// A table that is replaced between the two requests is read again.
func TestReadWhileItChanges(t *testing.T) {
	cfg := Config{NetNS: int(testns.Enter(t))}
	restore(t, "iptables-legacy-restore", "*filter\nCOMMIT\n")
	var script strings.Builder
	for i := range 40 {
		fmt.Fprintf(&script, "*filter\n-A INPUT -s 198.18.0.%d -j DROP\nCOMMIT\n", i)
	}
	done := make(chan error, 1)
	cmd := exec.Command("iptables-legacy-restore", "--noflush")
	cmd.Stdin = strings.NewReader(script.String())
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { done <- cmd.Wait() }()
	for {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			got, _, err := Read(cfg, iptables.IPv4, "filter", nil)
			if err != nil || len(got.Chain("INPUT").Rules) != 40 {
				t.Errorf("%d rules, %v", len(got.Chain("INPUT").Rules), err)
			}
			return
		default:
			if _, _, err := Read(cfg, iptables.IPv4, "filter", nil); err != nil {
				t.Fatal(err)
			}
		}
	}
}
