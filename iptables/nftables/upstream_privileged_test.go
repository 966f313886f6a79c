//go:build privileged

package nftables

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/iptables/owner"
)

func TestUpstreamsInTheKernel(t *testing.T) {
	testns.Program(t, "nft")
	u := &Upstreams{Config: Config{NetNS: int(testns.Enter(t))}}
	list := func(args ...string) string {
		t.Helper()
		out, err := exec.Command("nft", append([]string{"list"}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return string(out)
	}
	if err := u.Close(); err != nil {
		t.Errorf("close what is not open: %v", err)
	}
	if err := u.Set(upstreamEndpoints(t)); err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	rules := list("ruleset")
	for _, want := range []string{
		"table inet " + owner.UpstreamPrefix, "flags owner", "10.244.0.3 . udp . 53", "10.244.0.3 . tcp . 53", "fd00:244::3 . udp . 53",
		"ip daddr . meta l4proto . th dport @upstream4 update @expected4 { ip daddr . meta l4proto . th dport . ip saddr . th sport timeout 1m } notrack accept",
		"ip6 saddr . meta l4proto . th sport . ip6 daddr . th dport @expected6 notrack accept",
		"type filter hook output priority raw", "type filter hook prerouting priority raw",
	} {
		if !strings.Contains(rules, want) {
			t.Errorf("no %q in\n%s", want, rules)
		}
	}
	// It is no instance: neither is the link kept for it nor does anybody show
	// or remove it as one.
	if instances, err := Instances(u.Config); len(instances) != 0 || err != nil {
		t.Errorf("instances %v, error %v", instances, err)
	}
	if err := u.Set(upstreamEndpoints(t)[:1]); err != nil {
		t.Fatal(err)
	}
	if rules := list("ruleset"); strings.Contains(rules, "fd00:244::3") || strings.Contains(rules, "tcp . 53") || strings.Count(rules, "table inet") != 1 {
		t.Errorf("after a change:\n%s", rules)
	}
	if err := u.Set(nil); err != nil {
		t.Fatal(err)
	}
	if rules := list("ruleset"); strings.Contains(rules, "table") {
		t.Errorf("left behind:\n%s", rules)
	}
	if err := u.Set(upstreamEndpoints(t)); err != nil {
		t.Errorf("once more: %v", err)
	}
}
