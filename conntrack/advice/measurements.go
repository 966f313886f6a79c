package advice

import (
	"net/netip"
	"time"

	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/conntrack/summary"
)

// Measurements are what is known of a host. What could not be measured is left
// at its zero value, and no rule finds anything in it.
type Measurements struct {
	// Entries, Limit and Buckets are conntrack.Limits.
	Entries, Limit, Buckets uint64
	// Memory is the size of an entry; MemoryTotal the machine's memory in bytes.
	Memory      conntrack.Memory
	MemoryTotal uint64
	CPUs        int

	// Interval is the time between two looks; Growth and Rise are how much
	// Entries and the kernel's counters grew in it.
	Interval time.Duration
	Growth   int64
	Rise     conntrack.CPUStats
	// Total are the kernel's counters at the second look.
	Total conntrack.CPUStats

	Settings []conntrack.Setting
	Table    *summary.Summary

	Log *KernelLog

	// Active is false if a packet sent for the purpose was not tracked, nil if
	// it was not tried.
	Active *bool

	// Listeners are the addresses of this node on which a DNS server listens
	// with sockets of their own: those of a node-local cache.
	Listeners []netip.Addr
	// Notrack says for each of Listeners which of its DNS rules untrack, nil if
	// the rules could not be read whole.
	Notrack []Notrack
	// Avoided is the number of entries that a Trackless on this node keeps out
	// of the table (its metric entries_avoided), nil if none was asked.
	Avoided *uint64

	Datapath  Datapath
	KubeProxy *KubeProxy
}

// KernelLog is what the kernel's log says of the table.
type KernelLog struct {
	// TableFull counts messages "table full, dropping packet". The kernel
	// limits their rate, so packets were more.
	TableFull int
	// LastAgo is how long ago the last one was.
	LastAgo time.Duration
}

// Notrack is what rules do to the DNS of one address before conntrack sees it.
type Notrack struct {
	Address netip.Addr
	// Queries and Responses tell whether some rule untracks them.
	Queries, Responses bool
	// Detached: a Trackless has rules for the address, but lets its queries
	// pass to kube-dns for now.
	Detached bool
}

// Datapath is how pods' packets reach the node, as far as it passes the hooks by.
type Datapath struct {
	// KubeProxyReplacement: Cilium translates what pods send to Services in its
	// own programs, instead of kube-proxy or beside it.
	KubeProxyReplacement bool
	// SocketLB: Cilium translates Services in the pod's connect(2) already.
	SocketLB bool
	// CalicoEBPF: Calico's eBPF datapath.
	CalicoEBPF bool
	// Evidence names what was found.
	Evidence []string
}

// KubeProxy is the kube-proxy of this node, with the section conntrack of its
// KubeProxyConfiguration (k8s.io/kube-proxy/config/v1alpha1). Nil fields were
// not set: kube-proxy's defaults apply.
type KubeProxy struct {
	// Path is where the configuration was read, "" if it could not be.
	Path string

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

// Max returns the limit that kube-proxy asks for on a machine with so many
// CPUs, 0 if it leaves the limit alone (getConntrackMax in
// cmd/kube-proxy/app/server_linux.go).
func (k *KubeProxy) Max(cpus int) uint64 {
	perCore, least := valueOr(k.MaxPerCore, int64(defaultMaxPerCore)), valueOr(k.Min, int64(defaultMin))
	if perCore <= 0 {
		return 0
	}
	return uint64(max(perCore*int64(cpus), least))
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

func valueOr[T any](p *T, def T) T {
	if p == nil {
		return def
	}
	return *p
}

// setting returns a setting's value by its name below net.netfilter.
func (m *Measurements) setting(name string) (uint64, bool) {
	return conntrack.SettingValue(m.Settings, name)
}

// fill returns how much of the limit is used, 0 to 1 and above.
func (m *Measurements) fill() float64 {
	if m.Limit == 0 {
		return 0
	}
	return float64(m.Entries) / float64(m.Limit)
}

// share returns the share of n in the entries that were read.
func (m *Measurements) share(n uint64) float64 {
	if m.Table == nil || m.Table.Entries == 0 {
		return 0
	}
	return float64(n) / float64(m.Table.Entries)
}
