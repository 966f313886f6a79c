package nodecache

import (
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Options are node-cache's own flags. [Options.Register] sets the defaults.
type Options struct {
	// LocalIPs are the addresses that clients ask, IPv4 or IPv6.
	LocalIPs []netip.Addr
	// SetupInterface adds the addresses to InterfaceName, a dummy link.
	SetupInterface bool
	InterfaceName  string
	// SetupIPTables keeps DNS to the addresses out of the conntrack table.
	SetupIPTables bool
	// SkipTeardown keeps the link and the addresses when the process ends.
	SkipTeardown bool
	// SyncInterval is the time between two checks of rules and addresses.
	SyncInterval time.Duration

	// Metrics is the address of the metrics page, host:port. Empty: there is none.
	Metrics string
	// Prometheus replaces __PROMETHEUS__ENDPOINT__ in the template.
	Prometheus string

	// BaseCorefile is the template, from which the file Corefile is made. Without a
	// template, the Corefile is used as it is.
	BaseCorefile string
	Corefile     string
	// KubeDNS is the directory with the ConfigMap of kube-dns. Empty: there is none.
	KubeDNS string
	// UpstreamService is the Service whose ClusterIP replaces
	// __PILLAR__CLUSTER__DNS__.
	UpstreamService string
	// HealthPort is the port of the health plugin, which is untracked like DNS. 0: there
	// is none.
	HealthPort uint16
	// ReloadWithSignal loads a changed Corefile at once, also if it has no reload
	// plugin.
	ReloadWithSignal bool

	tls bool
}

// Defaults of node-cache.
const (
	DefaultInterface    = "nodelocaldns"
	DefaultKubeDNS      = "/etc/kube-dns"
	defaultSyncInterval = time.Minute
)

// The option sync of notrack has these bounds.
const (
	minSyncInterval = time.Second
	maxSyncInterval = time.Hour
)

// Register defines the flags and sets the defaults.
func (o *Options) Register(fs *flag.FlagSet) {
	o.SyncInterval, o.HealthPort = defaultSyncInterval, 8080
	fs.Func("localip", "comma-separated `addresses` that clients ask, IPv4 or IPv6 (required)", o.setLocalIPs)
	fs.BoolVar(&o.SetupInterface, "setupinterface", true, "add the addresses to a dummy link")
	fs.StringVar(&o.InterfaceName, "interfacename", DefaultInterface, "`name` of that link")
	fs.BoolVar(&o.SetupIPTables, "setupiptables", true, "keep DNS to the addresses out of the conntrack table")
	fs.BoolVar(&o.SkipTeardown, "skipteardown", false, "keep the link and the addresses when the process ends; rules never outlive it")
	fs.Func("syncinterval", "`time` between two checks of rules and addresses: 60, 60s and 60ns all mean a minute (default 60)", o.setSyncInterval)
	fs.StringVar(&o.Metrics, "metrics-listen-address", "0.0.0.0:9353", "`address` of the metrics page; empty for none")
	fs.StringVar(&o.Prometheus, "prometheus-listen-address", ":9253", "`address` for __PROMETHEUS__ENDPOINT__ in the template")
	fs.StringVar(&o.BaseCorefile, "basecorefile", "/etc/coredns/Corefile.base", "template of the Corefile, a `file`")
	fs.StringVar(&o.Corefile, "corefile", "/etc/Corefile", "`file` that is made from the template; -conf overrides it")
	fs.StringVar(&o.KubeDNS, "kubednscm", "", "`directory` with the ConfigMap of kube-dns (default "+DefaultKubeDNS+" if it exists)")
	fs.StringVar(&o.UpstreamService, "upstreamsvc", "kube-dns", "`Service` to which __PILLAR__CLUSTER__DNS__ refers")
	fs.Func("health-port", "`port` of the health plugin, which is untracked too (default 8080)", o.setHealthPort)
	fs.BoolVar(&o.ReloadWithSignal, "reloadwithsignal", false, "load a changed Corefile at once, also without the reload plugin")

	fs.BoolVar(&o.tls, "tls-enabled", false, "refused: metrics are served without TLS")
	for _, name := range []string{"tls-cert-file", "tls-private-key-file", "tls-client-auth-type", "tls-client-ca-file", "tls-min-version"} {
		fs.String(name, "", "accepted, but without effect")
	}
}

// Validate returns an error if an option is missing or is not supported.
func (o *Options) Validate() error {
	switch {
	case len(o.LocalIPs) == 0:
		return errors.New("-localip: name the addresses that clients ask, for example -localip 169.254.20.10,10.96.0.10")
	case o.tls:
		return errors.New("-tls-enabled: metrics are served without TLS; drop the flag, and name an address that only the monitoring reaches with -metrics-listen-address")
	case o.Corefile == "stdin":
		return errors.New("-conf stdin: the Corefile of node-cache is a file; use `trackless serve -conf stdin`")
	case o.Corefile == "":
		return errors.New("-corefile: the name of a file is missing")
	}
	return nil
}

// setLocalIPs accepts IPv4 and IPv6 together, which node-cache does not. It skips empty
// items: one remains of "169.254.20.10,__PILLAR__DNS__SERVER__" when the second address is
// deleted.
func (o *Options) setLocalIPs(list string) error {
	o.LocalIPs = nil
	for item := range strings.SplitSeq(list, ",") {
		item = strings.TrimSpace(item)
		if item == "" {
			continue
		}
		if strings.HasPrefix(item, "__PILLAR__") {
			return fmt.Errorf("%s is still a variable of the manifest: replace it with an address before the manifest is applied", item)
		}
		a, err := netip.ParseAddr(item)
		if err != nil {
			return fmt.Errorf("%q is not an IP address", item)
		}
		o.LocalIPs = append(o.LocalIPs, a.Unmap())
	}
	return nil
}

// setSyncInterval accepts what manifests have. In node-cache the flag is a duration whose
// nanoseconds are multiplied by a second: "60" does not parse, "60ns" is a minute, and
// "60s" overflows.
func (o *Options) setSyncInterval(v string) error {
	d, err := time.ParseDuration(v)
	if n, numberErr := strconv.ParseUint(v, 10, 32); numberErr == nil {
		d, err = time.Duration(n)*time.Second, nil
	} else if err == nil && strings.HasSuffix(v, "ns") && d < time.Hour/time.Second {
		d *= time.Second
	}
	if err != nil || d <= 0 {
		return errors.New("want a number of seconds or a duration, such as 60 or 60s")
	}
	o.SyncInterval = min(max(d, minSyncInterval), maxSyncInterval)
	return nil
}

func (o *Options) setHealthPort(v string) error {
	port, err := strconv.ParseUint(v, 10, 16)
	if err != nil {
		return errors.New("want a port from 0 to 65535")
	}
	o.HealthPort = uint16(port)
	return nil
}

// addressList joins addresses for the directive bind.
func addressList(addrs []netip.Addr) string {
	words := make([]string, 0, len(addrs))
	for _, a := range addrs {
		words = append(words, a.String())
	}
	return strings.Join(words, " ")
}
