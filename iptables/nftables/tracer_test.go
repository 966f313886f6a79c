package nftables

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/internal/nfnl"
	"github.com/trackless-dns/trackless/iptables/internal/tracetest"
)

// traceElement is an element of a set: the set's name without the family, and
// the key.
type traceElement struct{ set, key string }

// expiry says when an element runs out, between two times since reading takes
// a while.
type expiry struct{ earliest, latest time.Time }

// watch looks for elements that run out later than they did. Grain is what
// expiries can tell apart.
func watch(t *testing.T, b interface {
	expiries(*testing.T) map[traceElement]expiry
}, grain time.Duration) func(int) []string {
	t.Helper()
	// A renewal shows only in elements that are not quite new.
	before, started := b.expiries(t), time.Now()
	if len(before) > 0 {
		tracetest.Await(t, "the elements have aged", func() bool { return time.Since(started) > grain })
	}
	// What shows in one reading is there; what does not may be hidden by a slow
	// reading, so what is wanted is looked for again.
	return func(wanted int) (put []string) {
		deadline := time.Now().Add(30 * grain)
		for {
			put = nil
			now := b.expiries(t)
			for e, earlier := range before {
				if _, is := now[e]; !is && time.Now().Before(earlier.earliest) {
					put = append(put, "-"+e.set)
				}
			}
			for e, after := range now {
				earlier, was := before[e]
				if !was || after.earliest.After(earlier.latest.Add(grain/2)) {
					put = append(put, "+"+e.set)
				}
			}
			slices.Sort(put)
			if wanted <= len(put) || time.Now().After(deadline) {
				return put
			}
		}
	}
}

// twinTrace lets the twin take part in the table.
type twinTrace struct{ *Twin }

func (b twinTrace) Send(_ *testing.T, h iptables.Hook, p tracetest.Packet) string {
	return b.Trace(h, p).String()
}

func (b twinTrace) Watch(t *testing.T) func(int) []string { return watch(t, b, 0) }

func (b twinTrace) expiries(*testing.T) map[traceElement]expiry {
	out := map[traceElement]expiry{}
	for _, k := range tracedSets() {
		for _, f := range k.families() {
			for key, at := range b.elements[k.instance(f)] {
				if k.dynamic && !at.IsZero() && b.contains(k.instance(f), key) {
					out[traceElement{k.name, key}] = expiry{at, at}
				}
			}
		}
	}
	return out
}

// traceTable is the table for this backend.
var traceTable = slices.Concat(tracetest.Table, tracetest.QuarantineTable)

// tracedSets are those of which a row tells. Those that note who asked a moment
// ago have a test of their own: TestLost.
func tracedSets() []setKind {
	return slices.DeleteFunc(slices.Clone(setKinds), func(k setKind) bool { return k.name == askedSet.name || k.name == arrivedSet.name })
}

func TestTwinTraces(t *testing.T) {
	for _, f := range nfnl.Families {
		for _, tc := range traceTable {
			t.Run(fmt.Sprintf("%s/%s", f, tc.Name), func(t *testing.T) {
				for _, d := range tracetest.Differing(tc, tracetest.Row(t, f, tc, twinTrace{NewTwin()}, nil)) {
					t.Error(d)
				}
			})
		}
	}
}

// ruleID names a rule of one variant of the ruleset.
type ruleID struct {
	lease  bool
	dryRun bool
	chain  string
	index  int
}

// String gives the variant, the chain and the rule as nft prints it.
func (id ruleID) String() string { return fmt.Sprintf("lease %t, %s", id.lease, id.text()) }

func (id ruleID) text() string {
	for _, c := range variantChains(id.lease, id.dryRun) {
		if c.name == id.chain {
			var words []string
			for _, s := range c.rules[id.index] {
				words = append(words, s.text(c.rules[id.index]))
			}
			return fmt.Sprintf("dry-run %t, chain %s: %s", id.dryRun, id.chain, strings.Join(words, " "))
		}
	}
	return "no such rule"
}

func variantChains(lease, dryRun bool) []chain {
	d := time.Duration(0)
	if lease {
		d = tracetest.Long
	}
	return chains(d, dryRun)
}

// hits reports whether a row runs on the variant of the rule.
func (id ruleID) hits(f iptables.Family, tc tracetest.Case) bool {
	r := tracetest.Rules(f)
	if tc.Rules != nil {
		tc.Rules(&r)
	}
	return id.lease == (r.Plan.Lease > 0) && id.dryRun == r.Plan.DryRun
}

// without makes the ruleset less one rule.
func (id ruleID) without(lease time.Duration, dryRun bool) []chain {
	all := chains(lease, dryRun)
	if id.lease != (lease > 0) || id.dryRun != dryRun {
		return all
	}
	for i := range all {
		if all[i].name == id.chain {
			all[i].rules = slices.Delete(slices.Clone(all[i].rules), id.index, id.index+1)
		}
	}
	return all
}

// biting returns, of the rows that a ruleset without the rule gets wrong, the
// one that takes the fewest steps until then, what it gives, and those steps
// only.
func (id ruleID) biting(t *testing.T) (in iptables.Family, shortest tracetest.Case, given []string) {
	t.Helper()
	for _, f := range nfnl.Families {
		for _, tc := range traceTable {
			if !id.hits(f, tc) || slices.ContainsFunc(tc.Steps, func(s tracetest.Step) bool { return s.Do == "expire" }) {
				continue
			}
			twin := NewTwin()
			twin.variant = id.without
			got := tracetest.Row(t, f, tc, twinTrace{twin}, nil)
			for i, step := range tc.Steps {
				if got[i] != step.Want && (given == nil || i+1 < len(given)) {
					in, shortest, given = f, tracetest.Case{Name: tc.Name, Rules: tc.Rules, Steps: tc.Steps[:i+1]}, got[:i+1]
				}
			}
		}
	}
	return in, shortest, given
}
