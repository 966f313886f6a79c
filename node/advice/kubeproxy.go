package advice

import (
	"fmt"
	"time"

	"github.com/trackless-dns/trackless/internal/figure"
)

// A Distribution is what carries a kube-proxy, as far as that decides where its
// settings are made.
type Distribution string

// The distributions of Kubernetes that configure kube-proxy in a way of their own.
const (
	// Standalone is a process kube-proxy that was configured by itself.
	Standalone Distribution = "kube-proxy"
	// K3s and RKE2 set the sysctls themselves, from kube-proxy's flags, and give
	// kube-proxy flags that turn it off there (pkg/agent/syssetup in k3s).
	K3s  Distribution = "k3s"
	RKE2 Distribution = "RKE2"
	// MicroK8s runs kube-proxy inside its kubelite.
	MicroK8s Distribution = "MicroK8s"
	// K0s writes the configuration of its kube-proxy itself.
	K0s Distribution = "k0s"
)

// KubeProxy is a kube-proxy of this node, with the section conntrack of its
// KubeProxyConfiguration (k8s.io/kube-proxy/config/v1alpha1). Nil fields were
// not set: kube-proxy's defaults apply.
type KubeProxy struct {
	Distribution Distribution
	// Path is where the configuration was read, "" if it could not be.
	Path string

	// Since and Before bound the minor version of its Kubernetes: at least
	// Since, and less than Before unless that is 0.
	Since, Before int
	// NodeCPUs are the CPUs that are on line, OwnCPUs those that the process may
	// use, 0 if not known.
	NodeCPUs, OwnCPUs int

	MaxPerCore            *int64
	Min                   *int64
	TCPEstablishedTimeout *time.Duration
	TCPCloseWaitTimeout   *time.Duration
	UDPTimeout            *time.Duration
	UDPStreamTimeout      *time.Duration
	TCPBeLiberal          *bool
}

// kube-proxy's defaults (pkg/proxy/apis/config/v1alpha1/defaults.go).
const (
	defaultMaxPerCore     = 32 * 1024
	defaultMin            = 128 * 1024
	defaultTCPEstablished = 24 * time.Hour
	defaultTCPCloseWait   = time.Hour
)

// Minor versions of Kubernetes in which kube-proxy changed how it sets the limit.
const (
	// Before 1.21 it counted the CPUs that it might use itself, since then those
	// of the node (detectNumCPU, kubernetes#99225).
	minorNodeCPUs = 21
	// Since 1.36 the product of maxPerCore and the CPUs is cut to maxScaled, and
	// min does not count then (getConntrackMax in pkg/proxy/conntrack/sysctls.go).
	minorCapped = 36
	// Since 1.37 it raises the limit only; before it also lowered it (setSysctls).
	minorRaisesOnly = 37

	maxScaled = 1 << 20
)

// A Limit is a value that a kube-proxy gives nf_conntrack_max.
type Limit struct {
	Entries uint64
	// How says how it comes about, and with which versions where that is open.
	How string
}

// Limits returns every value that this kube-proxy may give nf_conntrack_max. It returns
// none if kube-proxy leaves the limit alone, and several if its version is not known.
func (k *KubeProxy) Limits() []Limit {
	perCore, least := valueOr(k.MaxPerCore, int64(defaultMaxPerCore)), valueOr(k.Min, int64(defaultMin))
	if perCore <= 0 {
		return nil
	}
	node, own := int64(max(1, k.NodeCPUs)), int64(max(1, k.OwnCPUs))
	if k.OwnCPUs == 0 {
		own = node
	}
	scaled := perCore * node
	formula := fmt.Sprintf("maxPerCore %s x %s, at least min %s", figure.Thousands(perCore), cpus(node, "of the node"), figure.Thousands(least))
	plain := Limit{uint64(max(scaled, least)), formula}
	if k.Distribution == K3s || k.Distribution == RKE2 {
		return []Limit{plain}
	}
	var limits []Limit
	capped := scaled > maxScaled && k.maybeSince(minorCapped)
	if !capped || k.maybeBefore(minorCapped) {
		if capped {
			plain.How += "; Kubernetes 1.35 and earlier"
		}
		limits = append(limits, plain)
	}
	if capped {
		limits = append(limits, Limit{maxScaled, fmt.Sprintf("maxPerCore %s x %s is over it, and min does not count then; Kubernetes 1.36 and later", figure.Thousands(perCore), cpus(node, "of the node"))})
	}
	if own != node && k.maybeBefore(minorNodeCPUs) {
		old := Limit{uint64(max(perCore*own, least)), fmt.Sprintf("maxPerCore x %s; Kubernetes 1.20 and earlier", cpus(own, "that it may use itself"))}
		if !k.maybeSince(minorNodeCPUs) {
			return []Limit{old}
		}
		limits = append(limits, old)
	}
	return limits
}

func cpus(n int64, which string) string {
	if n == 1 {
		return "1 CPU " + which
	}
	return fmt.Sprintf("%d CPUs %s", n, which)
}

func (k *KubeProxy) maybeSince(minor int) bool  { return k.Before == 0 || k.Before > minor }
func (k *KubeProxy) maybeBefore(minor int) bool { return k.Since < minor }

// Lowers reports whether it may also lower a limit that is higher.
func (k *KubeProxy) Lowers() bool {
	return k.Distribution == K3s || k.Distribution == RKE2 || k.maybeBefore(minorRaisesOnly)
}

// Sets returns the timeouts, in seconds, and switches that kube-proxy writes
// when it starts, by the name of the sysctl below net.netfilter. A timeout of 0
// in its configuration leaves the sysctl alone.
func (k *KubeProxy) Sets() map[string]uint64 {
	sets := map[string]uint64{}
	add := func(name string, d time.Duration) {
		if d > 0 {
			sets[name] = uint64(d / time.Second)
		}
	}
	add("nf_conntrack_tcp_timeout_established", valueOr(k.TCPEstablishedTimeout, defaultTCPEstablished))
	add("nf_conntrack_tcp_timeout_close_wait", valueOr(k.TCPCloseWaitTimeout, defaultTCPCloseWait))
	add("nf_conntrack_udp_timeout", valueOr(k.UDPTimeout, 0))
	add("nf_conntrack_udp_timeout_stream", valueOr(k.UDPStreamTimeout, 0))
	if valueOr(k.TCPBeLiberal, false) {
		sets["nf_conntrack_tcp_be_liberal"] = 1
	}
	return sets
}

// SetsNothing reports whether it leaves limit and timeouts alone.
func (k *KubeProxy) SetsNothing() bool { return len(k.Limits()) == 0 && len(k.Sets()) == 0 }

// Where says where its settings are made.
func (k *KubeProxy) Where() string {
	switch k.Distribution {
	case K3s:
		return "kube-proxy-arg in /etc/rancher/k3s/config.yaml of this node, then restart k3s"
	case RKE2:
		return "kube-proxy-arg in /etc/rancher/rke2/config.yaml of this node, then restart rke2-server or rke2-agent"
	case MicroK8s:
		return "/var/snap/microk8s/current/args/kube-proxy on this node, then snap restart microk8s.daemon-kubelite"
	case K0s:
		return "k0s writes the ConfigMap kube-proxy itself and has no field for this section. Set the limit in sysctl.d, which maxPerCore 0 leaves alone, or set spec.network.kubeProxy.disabled in k0s.yaml and run a kube-proxy of your own"
	}
	return "KubeProxyConfiguration.conntrack, then restart kube-proxy on each node"
}
