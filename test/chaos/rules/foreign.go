// Package rules has the faults that other programs make in the rules of the node, and
// changes of the backend.
package rules

import (
	"fmt"
	"strings"
	"time"

	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/test/chaos/scene"
)

// Foreign are faults that others make in the rules of the node.
func Foreign() []*scene.Case {
	cases := []*scene.Case{
		{
			Name: "nft-flush-ruleset", Fault: "`nft flush ruleset`", Bar: "at most 1 s of queries",
			Prime: func(s *scene.Scene) error {
				if err := scene.RunAll(s.Node.Namespace, "nft flush ruleset"); err != nil {
					return err
				}
				return applyProxy(s, proxyNFTables)
			},
			Sabotage: scene.Sabotage{
				What:  "the ownership of the table",
				Fails: scene.FailResponder, Server: scene.WithoutReconciler(scene.LeaveRules),
			},
			Play: func(s *scene.Scene) error {
				return scene.Disturb(s, "flushed", func() error {
					if err := scene.RunAll(s.Node.Namespace, "nft flush ruleset"); err != nil {
						return err
					}
					return applyProxy(s, proxyNFTables) // as kube-proxy's sync does
				})
			},
		},
		{
			Name: "iptables-flush", Fault: "`iptables -F` in all tables", Bar: "at most 1 s of queries",
			Prime: flushIPTables,
			Sabotage: scene.Sabotage{
				What:  "rules of our own table instead of the raw table",
				Fails: scene.FailResponder, Server: scene.WithoutReconciler(scene.PlainIPTables),
			},
			Play: func(s *scene.Scene) error {
				return scene.Disturb(s, "flushed", func() error { return flushIPTables(s) })
			},
		},
		{
			Name: "iptables-restore", Fault: "`iptables-restore` of a foreign set, raw ACCEPT for DNS on top", Bar: "at most 1 s of queries",
			Prime: func(s *scene.Scene) error {
				return scene.FirstError(func() error { return restore(s, foreignSet) }, func() error { return restore(s, emptySet) })
			},
			Undo: func(s *scene.Scene) error { return restore(s, emptySet) },
			Sabotage: scene.Sabotage{
				What:  "rules of our own table instead of the raw table",
				Fails: scene.FailResponder, Server: scene.WithoutReconciler(scene.PlainIPTables),
			},
			Play: func(s *scene.Scene) error {
				return scene.Disturb(s, "restored", func() error { return restore(s, foreignSet) })
			},
		},
		{
			Name: "foreign-transaction", Fault: "a foreign transaction of 100,000 rules", Bar: "0 lost, no lapse of the lease",
			Undo: func(s *scene.Scene) error { return scene.RunAll(s.Node.Namespace, "nft delete table ip foreign") },
			Sabotage: scene.Sabotage{
				What:  "the renewal of the lease in the packet path: it is renewed over netlink",
				Fails: scene.FailEntries, Server: scene.WithoutReconciler(scene.LeasedOverNetlink),
			},
			Play: playForeignTransaction,
		},
		{
			Name: "kube-proxy-restart", Fault: "kube-proxy stopped with `--cleanup`, started again", Bar: "0 lost",
			Sabotage: scene.Sabotage{What: "trackless", Fails: scene.FailLost, Server: scene.Nothing, Instead: lab.KubeDNS},
			Play: func(s *scene.Scene) error {
				return switchProxy(s, proxyNFTables, proxyNFTables)
			},
		},
	}
	cases = append(cases, foreignZone())
	return append(cases, proxySwitches()...)
}

// proxySwitches are changes of kube-proxy's mode, from each to the next.
func proxySwitches() []*scene.Case {
	var cases []*scene.Case
	for _, change := range []struct{ from, to proxyMode }{
		{proxyNFTables, proxyIPTablesLegacy},
		{proxyIPTablesLegacy, proxyIPTablesNFT},
		{proxyIPTablesNFT, proxyNFTables},
	} {
		cases = append(cases, &scene.Case{
			Name:  "kube-proxy-to-" + string(change.to),
			Fault: fmt.Sprintf("kube-proxy switched from %s to %s", change.from, change.to), Bar: "0 lost",
			Sabotage: scene.Sabotage{What: "trackless", Fails: scene.FailLost, Server: scene.Nothing, Instead: lab.KubeDNS},
			Prime: func(s *scene.Scene) error {
				return scene.FirstError(
					func() error { return removeProxy(s, proxyNFTables) },
					func() error { return applyProxy(s, change.to) },
					func() error { return removeProxy(s, change.to) },
					func() error { return applyProxy(s, change.from) },
				)
			},
			Play: func(s *scene.Scene) error { return switchProxy(s, change.from, change.to) },
			Undo: func(s *scene.Scene) error {
				return scene.FirstError(
					func() error { return removeProxy(s, change.to) },
					func() error { return applyProxy(s, change.from) },
				)
			},
		})
	}
	return cases
}

// switchProxy restarts kube-proxy, with a fifth of a second in which the node
// has none of its rules.
func switchProxy(s *scene.Scene, from, to proxyMode) error {
	if err := s.Fault("kube-proxy away", scene.NoLoss); err != nil {
		return err
	}
	if err := removeProxy(s, from); err != nil {
		return err
	}
	s.Let(200 * time.Millisecond)
	if err := applyProxy(s, to); err != nil {
		return err
	}
	s.Steady("kube-proxy back", lab.Trackless, scene.Outage)
	if s.Server == nil {
		return nil // sabotaged
	}
	return s.ProveTakeover()
}

func flushIPTables(s *scene.Scene) error {
	for _, program := range []string{"iptables", "ip6tables", "iptables-legacy", "ip6tables-legacy"} {
		for _, table := range []string{"raw", "mangle", "nat", "filter"} {
			if err := scene.RunAll(s.Node.Namespace, program+" -w 5 -t "+table+" -F"); err != nil {
				return err
			}
		}
	}
	return nil
}

func restore(s *scene.Scene, set string) error {
	for _, program := range []string{"iptables-restore", "ip6tables-restore"} {
		if _, err := scene.RunProgram(s.Node.Namespace, inFamily(set, program == "ip6tables-restore"), program, "-w", "5"); err != nil {
			return err
		}
	}
	return nil
}

// inFamily writes a set for the other family.
func inFamily(set string, ipv6 bool) string {
	if !ipv6 {
		return set
	}
	return strings.NewReplacer("198.18.0.0/15", "2001:2::/48", "-p icmp", "-p ipv6-icmp").Replace(set)
}

// foreignSet is a host firewall that means no harm: it accepts DNS in the raw
// table, above anybody's NOTRACK there.
const foreignSet = `*raw
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A PREROUTING -p udp --dport 53 -j ACCEPT
-A PREROUTING -p tcp --dport 53 -j ACCEPT
-A OUTPUT -p udp --dport 53 -j ACCEPT
-A OUTPUT -p tcp --dport 53 -j ACCEPT
COMMIT
*mangle
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
-A PREROUTING -s 198.18.0.0/15 -j MARK --set-mark 0x1
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -s 198.18.0.0/15 -j DROP
-A FORWARD -s 198.18.0.0/15 -j DROP
COMMIT
`

// emptySet is what is left of such sets.
const emptySet = `*raw
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
COMMIT
*mangle
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
COMMIT
`

// foreignRules is how many rules the foreign transaction has.
const foreignRules = 100_000

func playForeignTransaction(s *scene.Scene) error {
	var script strings.Builder
	script.WriteString("table ip foreign {\n\tchain rules {\n")
	for i := range foreignRules {
		fmt.Fprintf(&script, "ip saddr 198.18.%d.%d tcp dport %d counter drop\n", i/250%250, i%250, 1+i%60000)
	}
	script.WriteString("\t}\n}\n")
	if err := s.Fault("transaction", scene.NoLoss); err != nil {
		return err
	}
	began := time.Now()
	if _, err := scene.RunProgram(s.Node.Namespace, script.String(), "nft", "-f", "-"); err != nil {
		return err
	}
	if took := time.Since(began); took < time.Second {
		return fmt.Errorf("the transaction took %s only, which no lease would have noticed", took)
	}
	s.Steady("after", lab.Trackless, scene.Outage)
	if s.Sabotaged {
		return nil
	}
	if err := s.NoLapses(); err != nil {
		return err
	}
	return s.ProveTakeover()
}
