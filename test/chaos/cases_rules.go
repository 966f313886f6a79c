package chaos

import (
	"fmt"
	"strings"
	"time"

	"github.com/trackless-dns/trackless/lab"
)

// foreign are faults that others make in the rules of the node.
func foreign() []*Case {
	cases := []*Case{
		{
			Name: "nft-flush-ruleset", Fault: "`nft flush ruleset`", Bar: "at most 1 s of queries",
			Prime: func(s *Scene) error {
				if err := runAll(s.Node.Namespace, "nft flush ruleset"); err != nil {
					return err
				}
				return applyProxy(s, proxyNFTables)
			},
			Sabotage: Sabotage{
				What:  "the ownership of the table",
				Fails: FailResponder, Server: withoutReconciler(leaveRules),
			},
			Play: func(s *Scene) error {
				return disturb(s, "flushed", func() error {
					if err := runAll(s.Node.Namespace, "nft flush ruleset"); err != nil {
						return err
					}
					return applyProxy(s, proxyNFTables) // as kube-proxy's sync does
				})
			},
		},
		{
			Name: "iptables-flush", Fault: "`iptables -F` in all tables", Bar: "at most 1 s of queries",
			Prime: flushIPTables,
			Sabotage: Sabotage{
				What:  "rules of our own table instead of the raw table",
				Fails: FailResponder, Server: withoutReconciler(plainIPTables),
			},
			Play: func(s *Scene) error {
				return disturb(s, "flushed", func() error { return flushIPTables(s) })
			},
		},
		{
			Name: "iptables-restore", Fault: "`iptables-restore` of a foreign set, raw ACCEPT for DNS on top", Bar: "at most 1 s of queries",
			Prime: func(s *Scene) error {
				return firstError(func() error { return restore(s, foreignSet) }, func() error { return restore(s, emptySet) })
			},
			Undo: func(s *Scene) error { return restore(s, emptySet) },
			Sabotage: Sabotage{
				What:  "rules of our own table instead of the raw table",
				Fails: FailResponder, Server: withoutReconciler(plainIPTables),
			},
			Play: func(s *Scene) error {
				return disturb(s, "restored", func() error { return restore(s, foreignSet) })
			},
		},
		{
			Name: "foreign-transaction", Fault: "a foreign transaction of 100,000 rules", Bar: "0 lost, no lapse of the lease",
			Undo: func(s *Scene) error { return runAll(s.Node.Namespace, "nft delete table ip foreign") },
			Sabotage: Sabotage{
				What:  "the renewal of the lease in the packet path: it is renewed over netlink",
				Fails: FailEntries, Server: withoutReconciler(leasedOverNetlink),
			},
			Play: playForeignTransaction,
		},
		{
			Name: "kube-proxy-restart", Fault: "kube-proxy stopped with `--cleanup`, started again", Bar: "0 lost",
			Sabotage: Sabotage{What: "trackless", Fails: FailLost, Server: nothing, Instead: lab.KubeDNS},
			Play: func(s *Scene) error {
				return switchProxy(s, proxyNFTables, proxyNFTables)
			},
		},
	}
	cases = append(cases, foreignZone())
	for _, change := range []struct{ from, to proxyMode }{
		{proxyNFTables, proxyIPTablesLegacy},
		{proxyIPTablesLegacy, proxyIPTablesNFT},
		{proxyIPTablesNFT, proxyNFTables},
	} {
		cases = append(cases, &Case{
			Name:  "kube-proxy-to-" + string(change.to),
			Fault: fmt.Sprintf("kube-proxy switched from %s to %s", change.from, change.to), Bar: "0 lost",
			Sabotage: Sabotage{What: "trackless", Fails: FailLost, Server: nothing, Instead: lab.KubeDNS},
			Prime: func(s *Scene) error {
				return firstError(
					func() error { return removeProxy(s, proxyNFTables) },
					func() error { return applyProxy(s, change.to) },
					func() error { return removeProxy(s, change.to) },
					func() error { return applyProxy(s, change.from) },
				)
			},
			Play: func(s *Scene) error { return switchProxy(s, change.from, change.to) },
			Undo: func(s *Scene) error {
				return firstError(
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
func switchProxy(s *Scene, from, to proxyMode) error {
	if err := s.Fault("kube-proxy away", noLoss); err != nil {
		return err
	}
	if err := removeProxy(s, from); err != nil {
		return err
	}
	s.Let(200 * time.Millisecond)
	if err := applyProxy(s, to); err != nil {
		return err
	}
	s.Steady("kube-proxy back", lab.Trackless, outage)
	if s.Server == nil {
		return nil // sabotaged
	}
	return s.proveTakeover()
}

func flushIPTables(s *Scene) error {
	for _, program := range []string{"iptables", "ip6tables", "iptables-legacy", "ip6tables-legacy"} {
		for _, table := range []string{"raw", "mangle", "nat", "filter"} {
			if err := runAll(s.Node.Namespace, program+" -w 5 -t "+table+" -F"); err != nil {
				return err
			}
		}
	}
	return nil
}

func restore(s *Scene, set string) error {
	for _, program := range []string{"iptables-restore", "ip6tables-restore"} {
		if _, err := run(s.Node.Namespace, inFamily(set, program == "ip6tables-restore"), program, "-w", "5"); err != nil {
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

func playForeignTransaction(s *Scene) error {
	var script strings.Builder
	script.WriteString("table ip foreign {\n\tchain rules {\n")
	for i := range foreignRules {
		fmt.Fprintf(&script, "ip saddr 198.18.%d.%d tcp dport %d counter drop\n", i/250%250, i%250, 1+i%60000)
	}
	script.WriteString("\t}\n}\n")
	if err := s.Fault("transaction", noLoss); err != nil {
		return err
	}
	began := time.Now()
	if _, err := run(s.Node.Namespace, script.String(), "nft", "-f", "-"); err != nil {
		return err
	}
	if took := time.Since(began); took < time.Second {
		return fmt.Errorf("the transaction took %s only, which no lease would have noticed", took)
	}
	s.Steady("after", lab.Trackless, outage)
	if s.sabotaged {
		return nil
	}
	if err := s.noLapses(); err != nil {
		return err
	}
	return s.proveTakeover()
}
