package chaos

import (
	"fmt"
	"slices"
	"strings"

	"github.com/trackless-dns/trackless/test/chaos/network"
	"github.com/trackless-dns/trackless/test/chaos/process"
	"github.com/trackless-dns/trackless/test/chaos/rules"
	"github.com/trackless-dns/trackless/test/chaos/scene"
)

// Cases are all faults, in the order of the table.
func Cases() []*scene.Case {
	return slices.Concat(process.Deaths(), process.Hangs(), process.IdleHangs(), process.KernelHits(), process.Floods(), process.Starvations(), rules.Foreign(), rules.Firewalls(), network.Links(), network.Forgeries(), rules.Predecessors())
}

// onIPTables are the faults of the nftables backend that are played on iptables,
// too: those in which the backends differ, and the firewalls, whose rules stand in
// the programs' own tables beside ours.
var onIPTables = []string{
	"sigkill", "sigterm", "start", "restart", "second-instance", "sigstop", "deadlock", "stuck-reader", "sigstop-idle", "deadlock-idle", "flood", "deaf-tcp",
	"address-deleted", "link-down", "forged-martian", "syn-flood", "iptables-flush", "iptables-restore", "foreign-zone", "node-cache-killed",
	"input-drop", "policy-drop", "policy-drop-ufw", "policy-drop-legacy", "firewalld",
}

// CasesOn are the faults that are played on a backend.
func CasesOn(backend string) ([]*scene.Case, error) {
	switch backend {
	case scene.NFTables:
		return append(Cases(), rules.Switches()...), nil
	case scene.IPTablesLegacy, scene.IPTablesNFT:
	default:
		return nil, fmt.Errorf("no backend is called %q; there are %s", backend, strings.Join(scene.Backends(), ", "))
	}
	var out []*scene.Case
	for _, c := range Cases() {
		if slices.Contains(onIPTables, c.Name) {
			out = append(out, c)
		}
	}
	out = append(out, rules.Locks(backend)...)
	for _, c := range out {
		c.Backend = backend
		if c.Name == "sigkill" {
			c.Bar = "at most 1.5 s of queries, restart 0 lost"
		}
	}
	return out, nil
}
