//go:build privileged || load

package nftables

import (
	"slices"
)

// allRules lists every rule of every variant of which a row can tell.
func allRules() []ruleID {
	var out []ruleID
	for _, v := range []struct{ lease, dryRun bool }{{true, false}, {false, false}, {true, true}, {false, true}} {
		for _, c := range variantChains(v.lease, v.dryRun) {
			for i, r := range c.rules {
				noted := slices.ContainsFunc(r, func(s statement) bool {
					p, is := s.(put)
					return is && !slices.ContainsFunc(tracedSets(), func(k setKind) bool { return k.name == p.set.name })
				})
				if !noted {
					out = append(out, ruleID{v.lease, v.dryRun, c.name, i})
				}
			}
		}
	}
	return out
}
