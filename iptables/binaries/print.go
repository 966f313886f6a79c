package binaries

import (
	"fmt"
	"strings"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/owner"
)

// PlanID stands for the id of an instance in the output of Print.
const PlanID = "plan"

// Print writes the raw tables that Install makes of rules, as iptables-save shows them,
// without counters. The commands of ipset that make the sets are in comments.
func Print(r iptables.Rules) string {
	rs := ruleset{
		id: PlanID, mark: owner.Mark{Format: format}, lease: Lease, rules: r,
		features: features{recent: true, ipset: true},
	}
	var b strings.Builder
	for _, f := range rs.families() {
		restore, family := "iptables-restore", "inet"
		if f == iptables.IPv6 {
			restore, family = "ip6tables-restore", "inet6"
		}
		for _, s := range rs.connectionSets(f) {
			fmt.Fprintf(&b, "# ipset create %s %s family %s timeout %s\n", s.name, setOfTuples, family, seconds(s.timeout))
		}
		fmt.Fprintf(&b, "# ipset create %s %s family %s\n", rs.drainSet(f), setOfAddresses, family)
		fmt.Fprintf(&b, "# %s --noflush\n*raw\n:%s ACCEPT [0:0]\n:%s ACCEPT [0:0]\n", restore, preroutingChain, outputChain)
		chains := rs.chains(f)
		for _, name := range chainNames {
			fmt.Fprintf(&b, ":%s - [0:0]\n", rs.chain(name))
		}
		for _, base := range []string{preroutingChain, outputChain} {
			fmt.Fprintf(&b, "-A %s %s\n", base, rs.jump(base))
		}
		for _, name := range chainNames {
			for _, rule := range chains[name] {
				fmt.Fprintf(&b, "-A %s %s\n", rs.chain(name), rule)
			}
		}
		b.WriteString("COMMIT\n")
	}
	return b.String()
}
