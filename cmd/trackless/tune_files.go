package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/trackless-dns/trackless/node/advice"
	"github.com/trackless-dns/trackless/node/measure"
)

// The files of a tuning. The name sorts after those of distributions and of
// Kubernetes installers, so that it wins, and before 99-sysctl.conf, so that an
// administrator's own file does.
const (
	sysctlFile      = "/etc/sysctl.d/90-trackless-conntrack.conf"
	modulesLoadFile = "/etc/modules-load.d/trackless-conntrack.conf"
	modprobeFile    = "/etc/modprobe.d/trackless-conntrack.conf"
)

func newTuning(m *measure.Node) *tuning {
	t := &tuning{Recommendation: advice.Recommend(&m.Measurements), Missing: m.Missing, buckets: m.Buckets}
	t.Files = []tuningFile{
		{"sysctl", sysctlFile, t.sysctl()},
		{"modules-load", modulesLoadFile, "# The settings below net.netfilter exist only while the module is loaded.\nnf_conntrack\n"},
		{"modprobe", modprobeFile, fmt.Sprintf("# One bucket to an entry: %d bytes.\noptions nf_conntrack hashsize=%d\n", t.Size.Buckets*m.Memory.BucketBytes, t.Size.Buckets)},
	}
	k := settingProxy(m.KubeProxies)
	t.KubeProxyFile, t.KubeProxy = t.kubeProxyConfiguration(m, k)
	if len(m.KubeProxies) > 0 {
		t.Overridden = t.overridden(k)
	}
	return t
}

// settingProxy returns the kube-proxy that sets limits and timeouts here; where
// none does, a kube-proxy with its defaults.
func settingProxy(proxies []advice.KubeProxy) *advice.KubeProxy {
	for i := range proxies {
		if !proxies[i].SetsNothing() {
			return &proxies[i]
		}
	}
	if len(proxies) > 0 {
		return &proxies[0]
	}
	return &advice.KubeProxy{Distribution: advice.Standalone}
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
		comment := "As it is."
		if t.Size.Max == 0 {
			comment = "No limit, as it is."
		}
		fmt.Fprintf(&b, "# "+comment+"\nnet.netfilter.nf_conntrack_max = %d\n", t.Size.Max)
	}
	return b.String()
}

// kubeProxyFlags names, for each field of KubeProxyConfiguration.conntrack, the
// flag that does the same.
var kubeProxyFlags = map[string]string{
	"maxPerCore": "conntrack-max-per-core", "min": "conntrack-min",
	"tcpEstablishedTimeout": "conntrack-tcp-timeout-established", "tcpCloseWaitTimeout": "conntrack-tcp-timeout-close-wait",
	"udpTimeout": "conntrack-udp-timeout", "udpStreamTimeout": "conntrack-udp-timeout-stream", "tcpBeLiberal": "conntrack-tcp-be-liberal",
}

// proxySetting is one field of KubeProxyConfiguration.conntrack.
type proxySetting struct{ field, value, comment string }

// proxySettings are those that make kube-proxy set what is recommended, or what
// is now where nothing is.
func (t *tuning) proxySettings(m *measure.Node, present *advice.KubeProxy) []proxySetting {
	var list []proxySetting
	if t.Size.Max == 0 {
		list = append(list, proxySetting{"maxPerCore", "0", "nf_conntrack_max is 0, no limit: 0 leaves it alone."})
	} else {
		// With a maxPerCore of 1 min decides, on every number of CPUs and in every
		// version: since 1.36 a larger product is cut to 1,048,576.
		list = append(list,
			proxySetting{"maxPerCore", "1", fmt.Sprintf("%d on every node, whatever its CPUs and version.", t.Size.Max)},
			proxySetting{"min", strconv.FormatUint(t.Size.Max, 10), ""})
	}
	for _, s := range []struct{ name, field string }{
		{"nf_conntrack_tcp_timeout_close_wait", "tcpCloseWaitTimeout"},
		{"nf_conntrack_tcp_timeout_established", "tcpEstablishedTimeout"},
	} {
		if v, ok := t.value(m, s.name); ok {
			list = append(list, proxySetting{s.field, (time.Duration(v) * time.Second).String(), ""})
		}
	}
	list = append(list,
		proxySetting{"udpTimeout", orZero(present.UDPTimeout).String(), "0 leaves the sysctl as it is."},
		proxySetting{"udpStreamTimeout", orZero(present.UDPStreamTimeout).String(), ""})
	if present.TCPBeLiberal != nil {
		list = append(list, proxySetting{"tcpBeLiberal", strconv.FormatBool(*present.TCPBeLiberal), ""})
	}
	return list
}

// kubeProxyConfiguration returns the fragment that makes the kube-proxy of this
// node set them, and the file it belongs to.
func (t *tuning) kubeProxyConfiguration(m *measure.Node, k *advice.KubeProxy) (file, fragment string) {
	var b strings.Builder
	lead, line := "", func(s proxySetting) string { return "--" + kubeProxyFlags[s.field] + "=" + s.value }
	switch k.Distribution {
	case advice.K3s, advice.RKE2:
		file = "/etc/rancher/k3s/config.yaml"
		if k.Distribution == advice.RKE2 {
			file = "/etc/rancher/rke2/config.yaml"
		}
		b.WriteString("kube-proxy-arg:\n")
		lead, line = "  ", func(s proxySetting) string { return "- " + kubeProxyFlags[s.field] + "=" + s.value }
	case advice.MicroK8s:
		file = "/var/snap/microk8s/current/args/kube-proxy"
	default:
		file = "KubeProxyConfiguration"
		if k.Distribution == advice.K0s {
			file += " (k0s writes its own: see trackless doctor)"
		}
		b.WriteString("apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nconntrack:\n")
		lead, line = "  ", func(s proxySetting) string { return s.field + ": " + s.value }
	}
	for _, s := range t.proxySettings(m, k) {
		if s.comment != "" {
			fmt.Fprintf(&b, "%s# %s\n", lead, s.comment)
		}
		fmt.Fprintf(&b, "%s%s\n", lead, line(s))
	}
	return file, b.String()
}

func orZero(d *time.Duration) time.Duration {
	if d == nil {
		return 0
	}
	return *d
}

// value returns what a setting is to be: recommended, or as it is.
func (t *tuning) value(m *measure.Node, name string) (uint64, bool) {
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
	if t.Size.Max == 0 && len(k.Limits()) > 0 {
		names = append(names, "net.netfilter.nf_conntrack_max") // there would be a limit again
	}
	for _, s := range t.Settings {
		name := strings.TrimPrefix(s.Name, "net.netfilter.")
		v, ok := sets[name]
		if name == "nf_conntrack_max" && k.Lowers() {
			// Which of them depends on its version.
			ok = slices.ContainsFunc(k.Limits(), func(l advice.Limit) bool { v = l.Entries; return v != s.Value })
		}
		if ok && v != s.Value {
			names = append(names, s.Name)
		}
	}
	return names
}
