package nftables

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/nftables"

	"github.com/trackless-dns/trackless/iptables/internal/nfnl"
	"github.com/trackless-dns/trackless/iptables/internal/tracetest"
)

// kernelTrace lets the kernel take part in the table.
type kernelTrace struct {
	*Backend
	*tracetest.Node
}

// Watch can tell apart some ticks of the kernel's clock, by which it times
// elements.
func (b kernelTrace) Watch(t *testing.T) func(int) []string { return watch(t, b, 30*time.Millisecond) }

func (b kernelTrace) expiries(t *testing.T) map[traceElement]expiry {
	t.Helper()
	out := map[traceElement]expiry{}
	if !b.installed() {
		return out
	}
	for _, k := range tracedSets() {
		for _, f := range k.families() {
			if !k.dynamic {
				continue
			}
			start := time.Now()
			elements, err := b.Conn.GetSetElements(b.rs.set(k, f))
			if err != nil {
				t.Fatal(err)
			}
			end := time.Now()
			for _, e := range elements {
				if e.Expires > 0 {
					out[traceElement{k.name, string(e.Key)}] = expiry{start.Add(e.Expires), end.Add(e.Expires)}
				}
			}
		}
	}
	return out
}

// takeAway deletes a rule of the installed table.
func (b kernelTrace) takeAway(t *testing.T, id ruleID) {
	t.Helper()
	chain := &nftables.Chain{Table: b.rs.table, Name: id.chain}
	rules, err := b.Conn.GetRules(b.rs.table, chain)
	if err != nil {
		t.Fatal(err)
	}
	err = b.change(fmt.Sprintf("take away a rule of chain %s", id.chain), func(c *nfnl.Encoder) error {
		return c.DelRule(&nftables.Rule{Table: b.rs.table, Chain: chain, Handle: rules[id.index].Handle})
	})
	if err != nil {
		t.Fatal(err)
	}
}
