package chaos

import (
	"fmt"
	"slices"
	"strings"
)

// Cases are all faults, in the order of the table.
func Cases() []*Case {
	return slices.Concat(deaths(), hangs(), floods(), foreign(), firewalls(), links(), forgeries(), predecessors())
}

// onIPTables are the faults of the nftables backend that are played on iptables,
// too: those in which the backends differ, and the firewalls, whose rules stand in
// the programs' own tables beside ours.
var onIPTables = []string{
	"sigkill", "sigterm", "start", "restart", "second-instance", "sigstop", "deadlock", "stuck-reader", "flood", "deaf-tcp",
	"address-deleted", "link-down", "forged-martian", "syn-flood", "iptables-flush", "iptables-restore", "foreign-zone", "node-cache-killed",
	"input-drop", "policy-drop", "policy-drop-ufw", "policy-drop-legacy", "firewalld",
}

// CasesOn are the faults that are played on a backend.
func CasesOn(backend string) ([]*Case, error) {
	switch backend {
	case NFTables:
		return append(Cases(), switches()...), nil
	case IPTablesLegacy, IPTablesNFT:
	default:
		return nil, fmt.Errorf("no backend is called %q; there are %s", backend, strings.Join(Backends(), ", "))
	}
	var out []*Case
	for _, c := range Cases() {
		if slices.Contains(onIPTables, c.Name) {
			out = append(out, c)
		}
	}
	out = append(out, locks(backend)...)
	for _, c := range out {
		c.Backend = backend
		if c.Name == "sigkill" {
			c.Bar = "at most 1.5 s of queries, restart 0 lost"
		}
	}
	return out, nil
}
