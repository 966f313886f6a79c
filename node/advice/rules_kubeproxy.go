package advice

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/trackless-dns/trackless/conntrack/sysctl"
	"github.com/trackless-dns/trackless/internal/figure"
)

// kubeProxy tells what each kube-proxy sets, and where that contradicts the
// files that were to decide.
func kubeProxy(m *Measurements) []Finding {
	var findings []Finding
	for i := range m.KubeProxies {
		if k := &m.KubeProxies[i]; !k.SetsNothing() {
			findings = append(findings, kubeProxySets(m, k))
		}
	}
	return findings
}

func kubeProxySets(m *Measurements, k *KubeProxy) Finding {
	name := "kube-proxy"
	switch k.Distribution {
	case K3s, RKE2, MicroK8s:
		name = "the kube-proxy inside " + string(k.Distribution)
	case K0s:
		name = "the kube-proxy of k0s"
	}
	config := "its configuration could not be read; its defaults are assumed"
	if k.Path != "" {
		config = "its configuration is " + k.Path
	}
	f := Finding{
		Severity: Info,
		Title:    name + " sets limits and timeouts when it starts",
		Evidence: []string{config},
		Remedy:   []string{"set what shall last there: " + k.Where(), "what to set: trackless tune --for kube-proxy"},
		Risk:     "none in setting it; it counts from the next start on",
	}
	lost := func(name string, sets uint64) {
		wanted, file, ok := fromFiles(m.Settings, name)
		if ok && wanted != sets {
			f.Severity = Warning
			f.Title = kubeProxyOverrides(k)
			f.Evidence = append(f.Evidence, fmt.Sprintf("%s:%d asks for %s: lost when kube-proxy starts", file.Path, file.Line, settingText(name, wanted)))
		}
	}
	limits := k.Limits()
	for _, l := range limits {
		f.Evidence = append(f.Evidence, fmt.Sprintf("it sets nf_conntrack_max to %s (%s)", figure.Thousands(l.Entries), l.How))
	}
	if len(limits) > 0 {
		f.Evidence = append(f.Evidence, limitBounds(m, k))
		if wanted, _, ok := fromFiles(m.Settings, "nf_conntrack_max"); len(limits) == 1 && ok && (wanted < limits[0].Entries || k.Lowers()) {
			lost("nf_conntrack_max", limits[0].Entries)
		}
	}
	sets := k.Sets()
	for _, name := range slices.Sorted(maps.Keys(sets)) {
		f.Evidence = append(f.Evidence, fmt.Sprintf("it sets %s to %s whatever it was", name, settingText(name, sets[name])))
		lost(name, sets[name])
	}
	return f
}

func kubeProxyOverrides(k *KubeProxy) string {
	switch k.Distribution {
	case K3s, RKE2, MicroK8s:
		return "kube-proxy, inside " + string(k.Distribution) + ", overrides what the sysctl files set"
	}
	return "kube-proxy overrides what the sysctl files set"
}

// limitBounds says what becomes of a limit that differs from kube-proxy's.
func limitBounds(m *Measurements, k *KubeProxy) string {
	if m.Limit == 0 {
		return "there is no limit now: nf_conntrack_max is 0. When kube-proxy starts there is one again; maxPerCore 0 leaves it alone"
	}
	switch {
	case !k.Lowers():
		return "it raises a lower limit and leaves a higher one (Kubernetes 1.37 and later)"
	case k.Distribution == K3s || k.Distribution == RKE2 || !k.maybeSince(minorRaisesOnly):
		return "it raises a lower limit, and lowers a higher one"
	}
	return "it raises a lower limit; it lowers a higher one too before Kubernetes 1.37"
}

// fromFiles returns what the sysctl files set a setting to, and the file that wins.
func fromFiles(settings []sysctl.Setting, name string) (uint64, sysctl.SettingFile, bool) {
	for _, s := range settings {
		if s.Name != "net.netfilter."+name || len(s.Files) == 0 {
			continue
		}
		last := s.Files[len(s.Files)-1]
		v, err := strconv.ParseUint(last.Value, 10, 64)
		return v, last, err == nil
	}
	return 0, sysctl.SettingFile{}, false
}

// settingText writes a value of kube-proxy's with its unit.
func settingText(name string, v uint64) string {
	switch name {
	case "nf_conntrack_tcp_be_liberal":
		return strconv.FormatUint(v, 10)
	case "nf_conntrack_max":
		return figure.Thousands(v)
	}
	return (time.Duration(v) * time.Second).String()
}
