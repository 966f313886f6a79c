// Package tune recommends settings of connection tracking for a node, as files, and
// sets them there, or restores what was before.
package tune

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
	SysctlFile      = "/etc/sysctl.d/90-trackless-conntrack.conf"
	ModulesLoadFile = "/etc/modules-load.d/trackless-conntrack.conf"
	ModprobeFile    = "/etc/modprobe.d/trackless-conntrack.conf"
)

// A Plan is a recommendation with the files that carry it. Its JSON names do not
// change.
type Plan struct {
	advice.Recommendation
	Files []File `json:"files"`
	// KubeProxy is a fragment of KubeProxyFile: of a KubeProxyConfiguration, or
	// of the file in which a distribution gives kube-proxy its flags.
	KubeProxy     string `json:"kube_proxy"`
	KubeProxyFile string `json:"kube_proxy_file"`
	// Overridden names the settings that kube-proxy of this node would set
	// otherwise when it starts.
	Overridden []string `json:"kube_proxy_overrides,omitempty"`
	Missing    []string `json:"missing,omitempty"`

	// Buckets is the present size of the hash.
	Buckets uint64 `json:"-"`
}

// A File is one of those that carry a recommendation; For is what --for calls it.
type File struct {
	For     string `json:"for"`
	Path    string `json:"path"`
	Content string `json:"content"`
}

// New plans for the load that was measured.
func New(m *measure.Node) *Plan {
	p := &Plan{Recommendation: advice.Recommend(&m.Measurements), Missing: m.Missing, Buckets: m.Buckets}
	p.Files = []File{
		{"sysctl", SysctlFile, p.sysctl()},
		{"modules-load", ModulesLoadFile, "# The settings below net.netfilter exist only while the module is loaded.\nnf_conntrack\n"},
		{"modprobe", ModprobeFile, fmt.Sprintf("# One bucket to an entry: %d bytes.\noptions nf_conntrack hashsize=%d\n", p.Size.Buckets*m.Memory.BucketBytes, p.Size.Buckets)},
	}
	k := settingProxy(m.KubeProxies)
	p.KubeProxyFile, p.KubeProxy = p.kubeProxyConfiguration(m, k)
	if len(m.KubeProxies) > 0 {
		p.Overridden = p.overridden(k)
	}
	return p
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

func (p *Plan) sysctl() string {
	var b strings.Builder
	b.WriteString("# Written by trackless tune.\n")
	sized := false
	for _, s := range p.Settings {
		fmt.Fprintf(&b, "# %s. Risk: %s. Before: %d\n%s = %d\n", s.Why, s.Risk, s.Current, s.Name, s.Value)
		sized = sized || s.Name == "net.netfilter.nf_conntrack_max"
	}
	if !sized {
		// The hash size given to the module would otherwise set the limit too.
		comment := "As it is."
		if p.Size.Max == 0 {
			comment = "No limit, as it is."
		}
		fmt.Fprintf(&b, "# "+comment+"\nnet.netfilter.nf_conntrack_max = %d\n", p.Size.Max)
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
func (p *Plan) proxySettings(m *measure.Node, present *advice.KubeProxy) []proxySetting {
	var list []proxySetting
	if p.Size.Max == 0 {
		list = append(list, proxySetting{"maxPerCore", "0", "nf_conntrack_max is 0, no limit: 0 leaves it alone."})
	} else {
		// With a maxPerCore of 1 min decides, on every number of CPUs and in every
		// version: since 1.36 a larger product is cut to 1,048,576.
		list = append(list,
			proxySetting{"maxPerCore", "1", fmt.Sprintf("%d on every node, whatever its CPUs and version.", p.Size.Max)},
			proxySetting{"min", strconv.FormatUint(p.Size.Max, 10), ""})
	}
	for _, s := range []struct{ name, field string }{
		{"nf_conntrack_tcp_timeout_close_wait", "tcpCloseWaitTimeout"},
		{"nf_conntrack_tcp_timeout_established", "tcpEstablishedTimeout"},
	} {
		if v, ok := p.value(m, s.name); ok {
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
func (p *Plan) kubeProxyConfiguration(m *measure.Node, k *advice.KubeProxy) (file, fragment string) {
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
	for _, s := range p.proxySettings(m, k) {
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
func (p *Plan) value(m *measure.Node, name string) (uint64, bool) {
	for _, s := range p.Settings {
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
func (p *Plan) overridden(k *advice.KubeProxy) []string {
	sets := k.Sets()
	var names []string
	if p.Size.Max == 0 && len(k.Limits()) > 0 {
		names = append(names, "net.netfilter.nf_conntrack_max") // there would be a limit again
	}
	for _, s := range p.Settings {
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
