package advice

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/trackless-dns/trackless/conntrack"
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

// kubeProxy tells what kube-proxy sets, and where that contradicts the files
// that were to decide.
func kubeProxy(m *Measurements) []Finding {
	k := m.KubeProxy
	if k == nil {
		return nil
	}
	config := "its configuration could not be read; its defaults are assumed"
	if k.Path != "" {
		config = "its configuration is " + k.Path
	}
	f := Finding{
		Severity: Info,
		Title:    "kube-proxy sets limits and timeouts when it starts",
		Evidence: []string{config},
		Remedy:   []string{"set what shall last in KubeProxyConfiguration.conntrack: trackless tune --for kube-proxy"},
		Risk:     "kube-proxy has to be restarted on each node",
	}
	if limit := k.Max(m.CPUs); limit > 0 {
		f.Evidence = append(f.Evidence, fmt.Sprintf("it raises nf_conntrack_max to %s (maxPerCore x %d CPUs, at least min) and never lowers it", thousands(limit), m.CPUs))
	}
	sets := k.Sets()
	for _, name := range slices.Sorted(maps.Keys(sets)) {
		f.Evidence = append(f.Evidence, fmt.Sprintf("it sets %s to %s whatever it was", name, seconds(name, sets[name])))
		wanted, file, ok := fromFiles(m.Settings, name)
		if ok && wanted != sets[name] {
			f.Severity = Warning
			f.Title = "kube-proxy overrides what the sysctl files set"
			f.Evidence = append(f.Evidence, fmt.Sprintf("%s:%d asks for %s: lost when kube-proxy starts", file.Path, file.Line, seconds(name, wanted)))
		}
	}
	return []Finding{f}
}

// fromFiles returns what the sysctl files set a setting to, and the file that wins.
func fromFiles(settings []conntrack.Setting, name string) (uint64, conntrack.SettingFile, bool) {
	for _, s := range settings {
		if s.Name != "net.netfilter."+name || len(s.Files) == 0 {
			continue
		}
		last := s.Files[len(s.Files)-1]
		v, err := strconv.ParseUint(last.Value, 10, 64)
		return v, last, err == nil
	}
	return 0, conntrack.SettingFile{}, false
}

func seconds(name string, v uint64) string {
	if name == "nf_conntrack_tcp_be_liberal" {
		return strconv.FormatUint(v, 10)
	}
	return (time.Duration(v) * time.Second).String()
}
