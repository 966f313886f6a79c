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
	// LocalIPs are the addresses that clients ask, of either family.
	LocalIPs []netip.Addr
	// SetupInterface puts them on InterfaceName, a dummy link.
	SetupInterface bool
	InterfaceName  string
	// SetupIPTables untracks DNS to them.
	SetupIPTables bool
	// SkipTeardown leaves link and addresses at the end.
	SkipTeardown bool
	// SyncInterval is the time between two looks at rules and addresses.
	SyncInterval time.Duration

	// Metrics is where the metrics of node-cache are served, host:port; empty
	// for nowhere.
	Metrics string
	// Prometheus replaces __PROMETHEUS__ENDPOINT__.
	Prometheus string

	// BaseCorefile is the template, and Corefile the file that it becomes. If
	// there is no template, the Corefile is taken as it is.
	BaseCorefile string
	Corefile     string
	// KubeDNS is the directory with the ConfigMap of kube-dns; empty for none.
	KubeDNS string
	// UpstreamService is the Service whose ClusterIP replaces
	// __PILLAR__CLUSTER__DNS__.
	UpstreamService string
	// HealthPort is the port of the health plugin, untracked as DNS is; 0 for
	// none.
	HealthPort uint16
	// ReloadWithSignal loads a changed Corefile at once, also one without the
	// reload plugin.
	ReloadWithSignal bool

	tls bool
}

// Defaults of node-cache.
const (
	DefaultInterface    = "nodelocaldns"
	DefaultKubeDNS      = "/etc/kube-dns"
	defaultSyncInterval = time.Minute
)

// The `sync` option of notrack knows these bounds.
const (
	minSyncInterval = time.Second
	maxSyncInterval = time.Hour
)

// Register defines the flags by their names and sets the defaults.
func (o *Options) Register(fs *flag.FlagSet) {
	o.SyncInterval, o.HealthPort = defaultSyncInterval, 8080
	fs.Func("localip", "comma-separated `addresses` that clients ask, of either family (required)", o.setLocalIPs)
	fs.BoolVar(&o.SetupInterface, "setupinterface", true, "put the addresses on a dummy link")
	fs.StringVar(&o.InterfaceName, "interfacename", DefaultInterface, "`name` of that link")
	fs.BoolVar(&o.SetupIPTables, "setupiptables", true, "keep DNS to the addresses out of the conntrack table")
	fs.BoolVar(&o.SkipTeardown, "skipteardown", false, "leave link and addresses at the end; rules never outlive the process")
	fs.Func("syncinterval", "`time` between two looks at rules and addresses: 60, 60s and 60ns are all a minute (default 60)", o.setSyncInterval)
	fs.StringVar(&o.Metrics, "metrics-listen-address", "0.0.0.0:9353", "`address` of the metrics page; empty for none")
	fs.StringVar(&o.Prometheus, "prometheus-listen-address", ":9253", "`address` for __PROMETHEUS__ENDPOINT__ in the template")
	fs.StringVar(&o.BaseCorefile, "basecorefile", "/etc/coredns/Corefile.base", "template of the Corefile, a `file`")
	fs.StringVar(&o.Corefile, "corefile", "/etc/Corefile", "`file` that the template becomes; -conf overrides it")
	fs.StringVar(&o.KubeDNS, "kubednscm", "", "`directory` with the ConfigMap of kube-dns (default "+DefaultKubeDNS+" if it exists)")
	fs.StringVar(&o.UpstreamService, "upstreamsvc", "kube-dns", "`Service` to which __PILLAR__CLUSTER__DNS__ refers")
	fs.Func("health-port", "`port` of the health plugin, untracked too (default 8080)", o.setHealthPort)
	fs.BoolVar(&o.ReloadWithSignal, "reloadwithsignal", false, "load a changed Corefile at once, also without the reload plugin")

	fs.BoolVar(&o.tls, "tls-enabled", false, "refused: metrics are served without TLS")
	for _, name := range []string{"tls-cert-file", "tls-private-key-file", "tls-client-auth-type", "tls-client-ca-file", "tls-min-version"} {
		fs.String(name, "", "taken, and of no effect without -tls-enabled")
	}
}

// Validate reports what is missing and what cannot be honoured.
func (o *Options) Validate() error {
	switch {
	case len(o.LocalIPs) == 0:
		return errors.New("-localip: name the addresses that clients ask, for example -localip 169.254.20.10,10.96.0.10")
	case o.tls:
		return errors.New("-tls-enabled: metrics are served without TLS; drop the flag, and name an address that only the monitoring reaches with -metrics-listen-address")
	case o.Corefile == "stdin":
		return errors.New("-conf stdin: the Corefile of node-cache is a file; use `trackless serve -conf stdin`")
	case o.Corefile == "":
		return errors.New("-corefile: it needs the name of a file")
	}
	return nil
}

// setLocalIPs takes both families, which node-cache does not, and forgives an
// empty item: it is what is left of "169.254.20.10,__PILLAR__DNS__SERVER__" when
// the second address is taken out.
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

// setSyncInterval reads what people write there. In node-cache the flag is a
// duration whose nanoseconds are multiplied by a second: "60" does not parse,
// "60ns" is a minute, and "60s" overflows.
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

// addressList joins addresses as bind takes them.
func addressList(addrs []netip.Addr) string {
	words := make([]string, 0, len(addrs))
	for _, a := range addrs {
		words = append(words, a.String())
	}
	return strings.Join(words, " ")
}
