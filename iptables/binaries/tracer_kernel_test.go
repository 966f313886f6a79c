//go:build privileged

package binaries

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/internal/tracetest"
)

// kernelTrace plays the table of package tracetest to the kernel, with rules of this
// backend.
type kernelTrace struct {
	*Backend
	*tracetest.Node
}

// aged is a timeout that no rule sets.
const aged = 6 * time.Hour

// Watch finds the elements that packets add by their timeouts: elements that are there
// before get a timeout that no rule sets.
func (b kernelTrace) Watch(t *testing.T) func(int) []string {
	t.Helper()
	sawBefore := b.seen(t)
	before := b.elements(t, func(s *sets, set string, e element) error {
		if b.ages(set) {
			e.timeout = aged
			return s.add(set, e)
		}
		return nil
	})
	return func(int) (put []string) {
		after := b.elements(t, nil)
		for at := range before {
			if _, is := after[at]; !is && b.ages(at.set) {
				put = append(put, "-"+at.kind)
			}
		}
		for at, e := range after {
			if _, was := before[at]; e.timeout < aged/2 && (!was || b.ages(at.set)) {
				put = append(put, "+"+at.kind)
			}
		}
		for e, last := range b.seen(t) {
			if was, ok := sawBefore[e]; !ok || was != last {
				put = append(put, "+live")
			}
		}
		slices.Sort(put)
		return put
	}
}

// ages reports whether the timeouts of the set may be changed: not if a row waits for
// them to run out.
func (b kernelTrace) ages(set string) bool {
	return b.rs.lease >= time.Minute || !slices.ContainsFunc(families, func(f iptables.Family) bool { return set == b.rs.liveSet(f) })
}

type elementKey struct {
	kind, set string
	element   element
}

func (b kernelTrace) elements(t *testing.T, each func(*sets, string, element) error) map[elementKey]element {
	t.Helper()
	out := map[elementKey]element{}
	err := withSets(func(s *sets) error {
		for _, f := range b.families {
			for kind, set := range map[string]string{"exempt": b.rs.exemptSet(f), "held": b.rs.heldSet(f), "opening": b.rs.openingSet(f), "closing": b.rs.closingSet(f), "live": b.rs.liveSet(f)} {
				if kind == "live" && b.rs.features.recent {
					continue
				}
				all, err := s.list(set)
				if err != nil {
					return err
				}
				for _, e := range all {
					key := e
					key.timeout = 0
					out[elementKey{kind, set, key}] = e
					if each != nil {
						if err := each(s, set, e); err != nil {
							return err
						}
					}
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// seen returns how often xt_recent saw each address.
func (b kernelTrace) seen(t *testing.T) map[string]uint64 {
	t.Helper()
	out := map[string]uint64{}
	for _, f := range b.families {
		entries, err := readRecent(b.rs.liveSet(f))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if !e.addr.IsUnspecified() {
				out[e.addr.String()] = e.index
			}
		}
	}
	return out
}

func words(step string) []string { return strings.Fields(step) }

// adapt changes the rules of a row to rules that this backend accepts. It returns the
// lease; 0 for a row about rules that it refuses.
func adapt(tc tracetest.Case) (tracetest.Case, time.Duration) {
	r := tracetest.Rules(iptables.IPv4)
	if tc.Rules != nil {
		tc.Rules(&r)
	}
	lease := r.Plan.Lease
	switch {
	case lease == tracetest.Short:
		lease = Lease
	case lease == 0 && r.Plan.DryRun:
		lease = tracetest.Long
	}
	change := tc.Rules
	tc.Rules = func(r *iptables.Rules) {
		if change != nil {
			change(r)
		}
		r.Plan.Lease = lease
	}
	return tc, lease
}

func TestKernelTraces(t *testing.T) {
	everything := func(tracetest.Case) bool { return true }
	for _, cfg := range []struct {
		name string
		Config
		plays func(tracetest.Case) bool
	}{
		{"legacy", Config{Variant: Legacy}, everything},
		{"nft", Config{Variant: NFT}, everything},
		{"without xt_recent", Config{Variant: NFT, lacking: features{recent: true}}, aboutTheLease},
	} {
		t.Run(cfg.name, func(t *testing.T) {
			testns.Program(t, "iptables-"+string(cfg.Variant))
			node := tracetest.NewNode(t)
			for _, f := range families {
				for _, tc := range tracetest.Cases {
					tc, lease := adapt(tc)
					if lease == 0 || !cfg.plays(tc) {
						continue
					}
					config := cfg.Config
					config.lease = lease
					for _, d := range traceRow(t, f, tc, config, node, nil) {
						t.Errorf("%s, %s: %s", f, tc.Name, d)
					}
				}
			}
		})
	}
}

func aboutTheLease(tc tracetest.Case) bool {
	return slices.ContainsFunc(tc.Steps, func(s tracetest.Step) bool { return strings.Contains(s.Want, "+live") })
}

// traceRow plays a row and returns the steps with other results.
func traceRow(t *testing.T, f iptables.Family, tc tracetest.Case, cfg Config, n *tracetest.Node, damage func(*Backend)) []string {
	t.Helper()
	b, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	got := tracetest.Row(t, f, tc, kernelTrace{b, n}, func() {
		if damage != nil {
			damage(b)
		}
	})
	if err := b.Remove(); err != nil {
		t.Fatal(err)
	}
	return tracetest.Differing(tc, got)
}

// The rows fail when a rule is missing.
func TestKernelWithoutARule(t *testing.T) {
	testns.Program(t, "iptables-nft")
	node := tracetest.NewNode(t)
	for _, missing := range []struct {
		chain  string
		number string // of the rule
		row    string
	}{
		{inChain, "1", "attached until detached"},
		{inChain, "3", "attached until detached"},
		{inChain, "4", "attached until detached"},
		{arrivingChain, "1", "checks are untracked in every state"},
		{arrivingChain, "2", "an uplink: tracked, or dropped if no Service owns the address"},
		{foreignChain, "1", "an uplink: tracked, or dropped if no Service owns the address"},
		{queryingChain, "1", "a connection that its client resets"},
		{queryingChain, "2", "a connection that its client resets"},
		{queryingChain, "3", "connections that are tracked already"},
		{queryingChain, "4", "connections that are tracked already"},
		{queryingChain, "5", "attached until detached"},
		{queryingChain, "6", "a connection from before the rules were repaired"},
		{queryingChain, "7", "a handshake that ends in the drain"},
		{queryingChain, "8", "a connection that we end"},
		{queryingChain, "9", "installed: connections that begin are noted"},
		{takeChain, "1", "attached until detached"},
		{takeChain, "2", "attached until detached"},
		{outChain, "1", "attached until detached"},
		{leavingChain, "1", "checks are untracked in every state"},
		{answeringChain, "1", "only the answer to the lease probe renews"},
		{localChain, "1", "only the answer to the lease probe renews"},
		{replyingChain, "1", "a handshake that ends in the drain"},
		{replyingChain, "2", "a connection that another instance untracks"},
		{replyingChain, "3", "the port of a connection that has ended"},
		{replyingChain, "4", "a connection that we end"},
		{replyingChain, "5", "a connection that we end"},
		{replyingChain, "6", "a connection that we end"},
		{replyingChain, "7", "a connection that we end"},
		{replyingChain, "8", "a connection through the drain, from a pod"},
		{untrackChain, "1", "checks are untracked in every state"},
		{queriesChain, "1", "attached until detached"},
		{responsesChain, "1", "installed: late responses are untracked"},
	} {
		at := slices.IndexFunc(tracetest.Cases, func(tc tracetest.Case) bool { return tc.Name == missing.row })
		tc, lease := adapt(tracetest.Cases[at])
		differing := traceRow(t, iptables.IPv4, tc, Config{Variant: NFT, lease: lease}, node, func(b *Backend) {
			testns.Run(t, "iptables-nft", "-t", "raw", "-D", b.rs.chain(missing.chain), missing.number)
		})
		if len(differing) == 0 {
			t.Errorf("without rule %s of chain %s the row %q passes", missing.number, missing.chain, missing.row)
		}
	}
}
