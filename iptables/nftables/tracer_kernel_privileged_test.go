//go:build privileged

package nftables

import (
	"slices"
	"testing"

	"github.com/trackless-dns/trackless/iptables/internal/nfnl"
	"github.com/trackless-dns/trackless/iptables/internal/tracetest"
)

func newKernelTrace(t *testing.T, n *tracetest.Node) kernelTrace {
	t.Helper()
	b, err := New(Config{NetNS: n.NetNS})
	if err != nil {
		t.Fatal(err)
	}
	return kernelTrace{b, n}
}

func TestKernelTraces(t *testing.T) {
	node := tracetest.NewNode(t)
	for _, f := range nfnl.Families {
		for _, tc := range traceTable {
			b := newKernelTrace(t, node)
			got := tracetest.Row(t, f, tc, b, nil)
			for _, d := range tracetest.Differing(tc, got) {
				t.Errorf("%s, %s: %s", f, tc.Name, d)
			}
			if err := b.Remove(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// The kernel without a rule goes wrong where the twin without it does: the
// table bites there too.
func TestKernelWithoutARule(t *testing.T) {
	node := tracetest.NewNode(t)
	seen := map[string]bool{}
	for _, id := range allRules() {
		if seen[id.text()] {
			continue // with and without a lease
		}
		seen[id.text()] = true
		f, tc, want := id.biting(t)
		if want == nil {
			continue // TestEveryRuleHasARow fails
		}
		b := newKernelTrace(t, node)
		got := tracetest.Row(t, f, tc, b, func() { b.takeAway(t, id) })
		if !slices.Equal(want, got) {
			t.Errorf("without %s\n%s, %s: the twin gives\n%q\nand the kernel\n%q", id, f, tc.Name, want, got)
		}
		if err := b.Remove(); err != nil {
			t.Fatal(err)
		}
	}
}
