package advice

import (
	"fmt"
	"slices"
)

func inactive(m *Measurements) []Finding {
	if m.Active == nil || *m.Active {
		return nil
	}
	return []Finding{{
		Severity: Info,
		Title:    "connection tracking is loaded, but nothing is tracked here",
		Evidence: []string{"a packet sent over the loopback device left no entry: no rule of this namespace needs connection tracking, so the kernel does not hook it in, or a rule exempts the loopback device"},
		Remedy:   []string{"nothing to do; limits do not matter here and NOTRACK rules save nothing"},
	}}
}

func datapath(m *Measurements) []Finding {
	d := m.Datapath
	var what string
	switch {
	case d.SocketLB:
		what = "Cilium translates Services in the pods' sockets"
	case d.KubeProxyReplacement:
		what = "Cilium translates Services in eBPF, before the hooks of netfilter"
	case d.CalicoEBPF:
		what = "Calico's eBPF datapath is in use"
	default:
		return nil
	}
	f := Finding{
		Severity: Info,
		Title:    what,
		Evidence: append(slices.Clone(d.Evidence), "pods' packets need not pass the hooks of iptables and nftables; Services are translated elsewhere, in a table of its own (cilium bpf ct list)"),
		Remedy: []string{
			"Cilium: redirect DNS with a CiliumLocalRedirectPolicy to Trackless in node-cache mode with -setupiptables=false",
			"Calico: exempt the addresses with BPFExcludeCIDRsFromNAT, or give pods the link-local address as their DNS server",
		},
		Risk: "NOTRACK rules that nothing passes do no harm, and no good",
	}
	if len(m.Listeners) > 0 {
		f.Severity = Warning
		f.Evidence = append(f.Evidence, fmt.Sprintf("a DNS cache listens on %v: queries to a Service address may never reach it", m.Listeners))
	}
	return []Finding{f}
}

// SaveOthers is a command that prints all tables of nftables but those of
// Trackless, in a form that nft -f loads.
const SaveOthers = "nft list tables | grep -v ' inet trackless-' | while read -r table; do nft list $table; done"

func savedRuleset(m *Measurements) []Finding {
	if len(m.SavedTables) == 0 {
		return nil
	}
	f := Finding{
		Severity: Warning,
		Title:    "a saved ruleset holds a table of Trackless",
		Remedy: []string{
			"take the tables out of the file",
			"save the rules of others alone: " + SaveOthers,
		},
		Risk: "none: Trackless makes its tables by itself when it starts",
	}
	for _, t := range m.SavedTables {
		f.Evidence = append(f.Evidence, fmt.Sprintf("%s:%d names table inet %s", t.Path, t.Line, t.Table))
	}
	f.Evidence = append(f.Evidence,
		"the table of a running Trackless belongs to its process: nft -f refuses the whole file with \"Operation not permitted\", and nothing of it is loaded, edits included",
		"a table of another time is of no use: loaded at boot it stays until somebody removes it, or goes with nft")
	return []Finding{f}
}
