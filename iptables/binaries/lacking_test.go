//go:build privileged

package binaries

import (
	"testing"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/internal/tracetest"
)

// Without ip_set there is one rule for each connection: those that were tracked before,
// and those that sockets hold at the detach.
func TestConnectionsWithoutSets(t *testing.T) {
	for _, v := range variants {
		t.Run(string(v), func(t *testing.T) {
			testns.Program(t, "iptables-"+string(v))
			node := tracetest.NewNode(t)
			for _, f := range families {
				b, err := New(Config{Variant: v, lease: tracetest.Long, lacking: features{ipset: true}})
				if err != nil {
					t.Fatal(err)
				}
				trace := kernelTrace{b, node}
				vip := tracetest.AddrPort(f, "vip:53")
				check := func(step, want string) {
					t.Helper()
					h, p := tracetest.ReadPacket(f, words(step))
					if got := trace.Send(t, h, p); got != want {
						t.Errorf("%s, %s: %s, want %s", f, step, got, want)
					}
				}
				must := func(err error) {
					t.Helper()
					if err != nil {
						t.Fatal(err)
					}
				}
				must(b.Install(tracetest.Rules(f)))
				must(b.Exempt([]iptables.Connection{{Client: tracetest.AddrPort(f, "pod:5000"), Listen: vip}}))
				must(b.Attach())
				check("prerouting pod0 tcp[A] pod:5000 > vip:53", "tracked")
				check("prerouting pod0 tcp[A] pod:5001 > vip:53", "untracked")
				must(b.ExemptOnly(nil))
				check("prerouting pod0 tcp[A] pod:5000 > vip:53", "untracked")

				// No packet passes the observer of the node, so the test sets
				// the connections.
				must(b.change(func(rs *ruleset) {
					rs.draining, rs.rules.Leases = true, nil
					rs.held = []iptables.Connection{{Client: tracetest.AddrPort(f, "pod:6000"), Listen: vip}}
				}))
				must(b.end())
				check("prerouting pod0 tcp[A] pod:6000 > vip:53", "untracked")
				check("prerouting pod0 tcp[A] pod:6001 > vip:53", "tracked")
				check("output lo udp vip:53 > vip:42000", "untracked")
				check("prerouting pod0 udp pod:4000 > vip:53", "tracked")
				must(b.Remove())
			}
		})
	}
}

// Without a lease the query rules stay until they are removed.
func TestRulesWithoutALease(t *testing.T) {
	node := tracetest.NewNode(t)
	b := newBackend(t, Config{Variant: NFT, lacking: features{recent: true, ipset: true}})
	rules := tracetest.Rules(iptables.IPv4)
	rules.Plan.Lease = 0
	if err := b.Install(rules); err != nil {
		t.Fatal(err)
	}
	h, p := tracetest.ReadPacket(iptables.IPv4, words("prerouting pod0 udp pod:4000 > vip:53"))
	for _, step := range []struct {
		do   func() error
		want string
	}{
		{func() error { return nil }, "tracked"}, {b.Attach, "untracked"}, {func() error { return b.Detach(nil) }, "tracked"},
		{func() error { return b.Install(rules) }, "tracked"}, {b.Attach, "untracked"},
	} {
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		if got := node.Send(t, h, p); got != step.want {
			t.Errorf("%s, want %s", got, step.want)
		}
	}
}
