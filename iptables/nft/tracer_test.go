package nft

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/iptables"
)

// tracedBackend is a backend and a way to send it packets: the twin, or the
// kernel.
type tracedBackend interface {
	iptables.Backend
	// send gives the verdict on one packet.
	send(t *testing.T, h iptables.Hook, p Packet) string
	// grain is what expiries can tell apart.
	grain() time.Duration
	// expiries reads the sets that packets fill: when each element runs out.
	expiries(t *testing.T) map[traceElement]expiry
}

// traceElement is an element of a set: the set's name without the family, and
// the key.
type traceElement struct{ set, key string }

// expiry says when an element runs out, between two times since reading takes
// a while.
type expiry struct{ earliest, latest time.Time }

// tracePacket reads the words of a step that is a packet.
func tracePacket(f iptables.Family, words []string) (iptables.Hook, Packet) {
	hook := map[string]iptables.Hook{"prerouting": iptables.Prerouting, "output": iptables.Output}[words[0]]
	proto, flags, _ := strings.Cut(words[2], "[")
	return hook, Packet{
		Proto:  map[string]iptables.Proto{"udp": iptables.UDP, "tcp": iptables.TCP}[proto],
		SYN:    strings.Contains(flags, "S"),
		ACK:    strings.Contains(flags, "A"),
		Device: words[1],
		Src:    traceAddrPort(f, words[3]),
		Dst:    traceAddrPort(f, words[5]),
	}
}

// traceRow runs one row and returns what became of each step, in the order of
// the steps; steps that are no packets have nothing.
func traceRow(t *testing.T, f iptables.Family, tc traceCase, b tracedBackend, afterInstall func()) []string {
	t.Helper()
	rules := traceRules(f)
	if tc.rules != nil {
		tc.rules(&rules)
	}
	out := make([]string, 0, len(tc.steps))
	for _, step := range tc.steps {
		words, got := strings.Fields(step.do), ""
		var err error
		switch words[0] {
		case "install":
			err = b.Install(rules)
			if afterInstall != nil {
				afterInstall()
			}
		case "attach":
			err = b.Attach()
		case "detach":
			err = b.Detach()
		case "remove":
			err = b.Remove()
		case "exempt":
			err = b.Exempt([]iptables.Connection{{Client: traceAddrPort(f, words[1]), Listen: traceAddrPort(f, words[3])}})
		case "expire":
			await(t, "no address is live", func() bool {
				live, liveErr := b.Live()
				return liveErr == nil && len(live) == 0
			})
		default:
			hook, packet := tracePacket(f, words)
			got = observe(t, f, b, hook, packet, step.want)
		}
		if err != nil {
			t.Fatalf("%s: %v", step.do, err)
		}
		out = append(out, got)
	}
	return out
}

// observe sends a packet and describes what it did.
func observe(t *testing.T, f iptables.Family, b tracedBackend, h iptables.Hook, p Packet, want string) string {
	t.Helper()
	// A renewal shows only in elements that are not quite new.
	before, started := b.expiries(t), time.Now()
	if len(before) > 0 {
		await(t, "the elements have aged", func() bool { return time.Since(started) > b.grain() })
	}
	countersBefore, err := b.Counters()
	if err != nil {
		t.Fatal(err)
	}
	countersBefore = maps.Clone(countersBefore)
	verdict := b.send(t, h, p)
	countersAfter, err := b.Counters()
	if err != nil {
		t.Fatal(err)
	}
	out := []string{verdict}
	for _, k := range iptables.CounterKeys() {
		switch n := countersAfter[k] - countersBefore[k]; {
		case n == 0:
		case n == 1 && k.Family == f && k.Proto == p.Proto:
			out = append(out, k.Direction.String())
		default:
			out = append(out, fmt.Sprintf("%d times %s", n, counterName(k)))
		}
	}
	// What shows in one reading is there; what does not may be hidden by a
	// slow reading, so what is wanted is looked for again.
	var put []string
	deadline := time.Now().Add(30 * b.grain())
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
			if !was || after.earliest.After(earlier.latest.Add(b.grain()/2)) {
				put = append(put, "+"+e.set)
			}
		}
		slices.Sort(put)
		if strings.Count(want, " +")+strings.Count(want, " -") <= len(put) || time.Now().After(deadline) {
			return strings.Join(append(out, put...), " ")
		}
	}
}

func await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for !holds() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 5s: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// differing returns the steps whose outcome is not the wanted one.
func differing(tc traceCase, got []string) []string {
	var out []string
	for i, step := range tc.steps {
		if got[i] != step.want {
			out = append(out, fmt.Sprintf("step %d, %s: %s, want %s", i+1, step.do, got[i], step.want))
		}
	}
	return out
}

// twinTrace lets the twin take part in the table.
type twinTrace struct{ *Twin }

func (b twinTrace) send(_ *testing.T, h iptables.Hook, p Packet) string {
	return b.Trace(h, p).String()
}

func (twinTrace) grain() time.Duration { return 0 }

func (b twinTrace) expiries(*testing.T) map[traceElement]expiry {
	out := map[traceElement]expiry{}
	for _, k := range setKinds {
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

func TestTwinTraces(t *testing.T) {
	for _, f := range families {
		for _, tc := range traceTable {
			t.Run(fmt.Sprintf("%s/%s", f, tc.name), func(t *testing.T) {
				for _, d := range differing(tc, traceRow(t, f, tc, twinTrace{NewTwin()}, nil)) {
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
		d = traceLong
	}
	return chains(d, dryRun)
}

// allRules lists every rule of every variant.
func allRules() []ruleID {
	var out []ruleID
	for _, v := range []struct{ lease, dryRun bool }{{true, false}, {false, false}, {true, true}, {false, true}} {
		for _, c := range variantChains(v.lease, v.dryRun) {
			for i := range c.rules {
				out = append(out, ruleID{v.lease, v.dryRun, c.name, i})
			}
		}
	}
	return out
}

// hits reports whether a row runs on the variant of the rule.
func (id ruleID) hits(f iptables.Family, tc traceCase) bool {
	r := traceRules(f)
	if tc.rules != nil {
		tc.rules(&r)
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
func (id ruleID) biting(t *testing.T) (in iptables.Family, shortest traceCase, given []string) {
	t.Helper()
	for _, f := range families {
		for _, tc := range traceTable {
			if !id.hits(f, tc) || slices.ContainsFunc(tc.steps, func(s traceStep) bool { return s.do == "expire" }) {
				continue
			}
			twin := NewTwin()
			twin.variant = id.without
			got := traceRow(t, f, tc, twinTrace{twin}, nil)
			for i, step := range tc.steps {
				if got[i] != step.want && (given == nil || i+1 < len(given)) {
					in, shortest, given = f, traceCase{tc.name, tc.rules, tc.steps[:i+1]}, got[:i+1]
				}
			}
		}
	}
	return in, shortest, given
}

// The table notices when any rule is missing.
func TestEveryRuleHasARow(t *testing.T) {
	for _, id := range allRules() {
		if _, _, given := id.biting(t); given == nil {
			t.Errorf("no row fails without %s", id)
		}
	}
}
