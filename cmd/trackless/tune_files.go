package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/trackless-dns/trackless/conntrack/advice"
)

// The files of a tuning. The name sorts after those of distributions and of
// Kubernetes installers, so that it wins, and before 99-sysctl.conf, so that an
// administrator's own file does.
const (
	sysctlFile      = "/etc/sysctl.d/90-trackless-conntrack.conf"
	modulesLoadFile = "/etc/modules-load.d/trackless-conntrack.conf"
	modprobeFile    = "/etc/modprobe.d/trackless-conntrack.conf"
)

func newTuning(m *measuredHost) *tuning {
	t := &tuning{Recommendation: advice.Recommend(&m.Measurements), Missing: m.missing, buckets: m.Buckets}
	t.Files = []tuningFile{
		{"sysctl", sysctlFile, t.sysctl()},
		{"modules-load", modulesLoadFile, "# The settings below net.netfilter exist only while the module is loaded.\nnf_conntrack\n"},
		{"modprobe", modprobeFile, fmt.Sprintf("# One bucket to an entry: %d bytes.\noptions nf_conntrack hashsize=%d\n", t.Size.Buckets*m.Memory.BucketBytes, t.Size.Buckets)},
	}
	t.KubeProxy = t.kubeProxyConfiguration(m)
	if m.KubeProxy != nil {
		t.Overridden = t.overridden(m.KubeProxy)
	}
	return t
}

func (t *tuning) sysctl() string {
	var b strings.Builder
	b.WriteString("# Written by trackless tune.\n")
	sized := false
	for _, s := range t.Settings {
		fmt.Fprintf(&b, "# %s. Risk: %s. Before: %d\n%s = %d\n", s.Why, s.Risk, s.Current, s.Name, s.Value)
		sized = sized || s.Name == "net.netfilter.nf_conntrack_max"
	}
	if !sized {
		// The hash size given to the module would otherwise set the limit too.
		fmt.Fprintf(&b, "# As it is.\nnet.netfilter.nf_conntrack_max = %d\n", t.Size.Max)
	}
	return b.String()
}

// kubeProxyConfiguration returns the fragment that makes kube-proxy set what is
// recommended, or what is now where nothing is.
func (t *tuning) kubeProxyConfiguration(m *measuredHost) string {
	var b strings.Builder
	fmt.Fprintf(&b, "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nconntrack:\n")
	fmt.Fprintf(&b, "  # At least %d on every node, whatever its CPUs.\n  maxPerCore: %d\n  min: %d\n", t.Size.Max, perCore(t.Size.Max, m.CPUs), t.Size.Max)
	values := map[string]uint64{}
	for name := range new(advice.KubeProxy).Sets() {
		if v, ok := t.value(m, name); ok {
			values[name] = v
		}
	}
	fields := map[string]string{
		"nf_conntrack_tcp_timeout_established": "tcpEstablishedTimeout",
		"nf_conntrack_tcp_timeout_close_wait":  "tcpCloseWaitTimeout",
	}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		fmt.Fprintf(&b, "  %s: %s\n", fields[name], time.Duration(values[name])*time.Second)
	}
	var present advice.KubeProxy
	if m.KubeProxy != nil {
		present = *m.KubeProxy
	}
	fmt.Fprintf(&b, "  # 0 leaves the sysctl as it is.\n  udpTimeout: %s\n  udpStreamTimeout: %s\n", orZero(present.UDPTimeout), orZero(present.UDPStreamTimeout))
	if present.TCPBeLiberal != nil {
		fmt.Fprintf(&b, "  tcpBeLiberal: %t\n", *present.TCPBeLiberal)
	}
	return b.String()
}

func orZero(d *time.Duration) time.Duration {
	if d == nil {
		return 0
	}
	return *d
}

func perCore(limit uint64, cpus int) uint64 {
	n := uint64(max(1, cpus))
	return (limit + n - 1) / n
}

// value returns what a setting is to be: recommended, or as it is.
func (t *tuning) value(m *measuredHost, name string) (uint64, bool) {
	for _, s := range t.Settings {
		if s.Name == "net.netfilter."+name {
			return s.Value, true
		}
	}
	for i := range m.Settings {
		if m.Settings[i].Name == "net.netfilter."+name {
			return m.Settings[i].Value, true
		}
	}
	return 0, false
}

// overridden returns the recommended settings that a kube-proxy would set
// otherwise.
func (t *tuning) overridden(k *advice.KubeProxy) []string {
	sets := k.Sets()
	var names []string
	for _, s := range t.Settings {
		if v, ok := sets[strings.TrimPrefix(s.Name, "net.netfilter.")]; ok && v != s.Value {
			names = append(names, s.Name)
		}
	}
	return names
}
