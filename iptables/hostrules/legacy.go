package hostrules

import (
	"math/bits"
	"strings"

	"github.com/google/nftables"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/hostrules/evaluator"
	"github.com/trackless-dns/trackless/iptables/internal/nfnl"
	"github.com/trackless-dns/trackless/iptables/legacy"
)

// legacySuffix distinguishes a table of iptables-legacy from a table of nf_tables with
// the same name. No table of nf_tables can have such a name.
const legacySuffix = " (iptables-legacy)"

// legacyPriorities are the priorities of the tables (include/uapi/linux/netfilter_ipv4.h).
// Untracked packets do not pass the table nat.
var legacyPriorities = map[string]int32{"raw": -300, "mangle": -150, "filter": 0, "security": 50}

// addLegacy reads the legacy tables and adds their rules to those of nf_tables, in the
// form in which iptables-nft would write them.
func (s *search) addLegacy(cfg Config) ([]nfnl.BaseChain, error) {
	var out []nfnl.BaseChain
	for _, f := range nfnl.Families {
		names, err := legacy.Names(legacy.Config{NetNS: cfg.NetNS}, f)
		if err != nil {
			return nil, err
		}
		family := nftables.TableFamilyIPv4
		if f == iptables.IPv6 {
			family = nftables.TableFamilyIPv6
		}
		for _, name := range names {
			priority, known := legacyPriorities[name]
			if !known {
				continue
			}
			t, found, err := legacy.Read(legacy.Config{NetNS: cfg.NetNS}, f, name, func(_ string, r legacy.Rule) bool {
				return s.wanted(family, evaluator.LegacyRule(r))
			})
			if err != nil {
				return nil, err
			}
			if !found {
				continue
			}
			for _, c := range t.Chains {
				id := chainID{family, name + legacySuffix, c.Name}
				s.rules[id] = evaluator.LegacyRules(c)
				if c.Base {
					header := nfnl.BaseChain{Family: family, Table: id.table, Name: c.Name, Kind: "filter", Hook: c.Hook, Priority: priority, Policy: nfnl.VerdictAccept}
					if c.Policy == legacy.Drop {
						header.Policy = nfnl.VerdictDrop
					}
					out = append(out, header)
				}
			}
		}
	}
	return out, nil
}

// LegacySum returns a sum of all rules that addLegacy reads, without their counters. It
// changes when a rule does; 0: there is no such table.
func LegacySum(cfg Config) (sum uint64, err error) {
	for _, f := range nfnl.Families {
		names, err := legacy.Names(legacy.Config{NetNS: cfg.NetNS}, f)
		if err != nil {
			return 0, err
		}
		for _, name := range names {
			if _, known := legacyPriorities[name]; !known {
				continue
			}
			one, err := legacy.Sum(legacy.Config{NetNS: cfg.NetNS}, f, name)
			if err != nil {
				return 0, err
			}
			sum = bits.RotateLeft64(sum, 7) ^ one
		}
	}
	return sum, nil
}

// legacyTable returns the name of the table of a chain, and whether it is one of
// iptables-legacy.
func legacyTable(c nfnl.BaseChain) (table string, is bool) {
	return strings.CutSuffix(c.Table, legacySuffix)
}
