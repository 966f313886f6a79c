package failover

import (
	"fmt"
	"strings"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/owner"
)

// Print writes the table that Install makes in nft syntax, as `nft list table inet
// trackless-failover` shows it, without packet counts. Pairs that are not valid give an
// empty text.
func Print(pairs []Pair, outside Outside) string {
	pairs, err := normalizeFailover(pairs)
	if err != nil || len(pairs) == 0 {
		return ""
	}
	var b strings.Builder
	fmt.Fprintf(&b, "table inet %s {\n\tcomment %q\n", owner.FailoverTable, failoverComment)
	for i, k := range iptables.CounterKeys() {
		if i > 0 {
			b.WriteString("\n")
		}
		fmt.Fprintf(&b, "\tcounter %s {\n\t\tpackets 0 bytes 0\n\t}\n", failoverCounter(k))
	}
	for _, chain := range failoverChains(pairs, outside.normalize()) {
		fmt.Fprintf(&b, "\n\tchain %s {\n", chain.name)
		if chain.hook != nil {
			fmt.Fprintf(&b, "\t\ttype %s hook %s priority %s; policy accept;\n", chain.kind, chain.hookName, chain.prints)
		}
		for _, rule := range chain.rules {
			fmt.Fprintf(&b, "\t\t%s\n", rule.text)
		}
		b.WriteString("\t}\n")
	}
	b.WriteString("}\n")
	return b.String()
}
