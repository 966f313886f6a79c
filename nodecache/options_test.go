package nodecache

import (
	"flag"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/trackless-dns/trackless/internal/testgolden"
)

func parse(t *testing.T, args ...string) (Options, error) {
	t.Helper()
	var o Options
	fs := flag.NewFlagSet("node-cache", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	o.Register(fs)
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	return o, o.Validate()
}

// mustParse returns options with two addresses, as in iptables mode.
func mustParse(t *testing.T, args ...string) Options {
	t.Helper()
	o, err := parse(t, append([]string{"-localip", "169.254.20.10,10.96.0.10"}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, a := range list {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func TestFlags(t *testing.T) {
	defaults := Options{
		LocalIPs: addrs("169.254.20.10", "10.96.0.10"), SetupInterface: true, InterfaceName: "nodelocaldns",
		SetupIPTables: true, SyncInterval: time.Minute, Metrics: "0.0.0.0:9353", Prometheus: ":9253",
		BaseCorefile: "/etc/coredns/Corefile.base", Corefile: "/etc/Corefile", UpstreamService: "kube-dns", HealthPort: 8080,
	}
	for _, tc := range []struct {
		name string
		args string
		want func(*Options)
	}{
		{"defaults", "", func(*Options) {}},
		{"two dashes", "--health-port=8081", func(o *Options) { o.HealthPort = 8081 }},
		{"localip: both families", "-localip fd00::a,169.254.20.10", func(o *Options) { o.LocalIPs = addrs("fd00::a", "169.254.20.10") }},
		{"localip: one left of two", "-localip 169.254.20.10,", func(o *Options) { o.LocalIPs = addrs("169.254.20.10") }},
		{"localip: spaces", "-localip=169.254.20.10,\u00a010.0.0.10", func(o *Options) { o.LocalIPs = addrs("169.254.20.10", "10.0.0.10") }},
		{"setupinterface", "-setupinterface=false", func(o *Options) { o.SetupInterface = false }},
		{"interfacename", "-interfacename dns0", func(o *Options) { o.InterfaceName = "dns0" }},
		{"setupiptables", "-setupiptables=false", func(o *Options) { o.SetupIPTables = false }},
		{"skipteardown", "-skipteardown", func(o *Options) { o.SkipTeardown = true }},
		{"skipteardown=true", "-skipteardown=true", func(o *Options) { o.SkipTeardown = true }},
		{"syncinterval: a number, which node-cache does not parse", "-syncinterval 30", func(o *Options) { o.SyncInterval = 30 * time.Second }},
		{"syncinterval: nanoseconds, which node-cache takes for seconds", "-syncinterval 30ns", func(o *Options) { o.SyncInterval = 30 * time.Second }},
		{"syncinterval: seconds, which panic in node-cache", "-syncinterval 30s", func(o *Options) { o.SyncInterval = 30 * time.Second }},
		{"syncinterval: seconds, which overflow in node-cache", "-syncinterval=60s", func(o *Options) { o.SyncInterval = time.Minute }},
		{"syncinterval: too short", "-syncinterval 1ms", func(o *Options) { o.SyncInterval = time.Second }},
		{"syncinterval: too long", "-syncinterval 86400", func(o *Options) { o.SyncInterval = time.Hour }},
		{"metrics-listen-address", "-metrics-listen-address 127.0.0.1:9353", func(o *Options) { o.Metrics = "127.0.0.1:9353" }},
		{"prometheus-listen-address", "-prometheus-listen-address 127.0.0.1:9253", func(o *Options) { o.Prometheus = "127.0.0.1:9253" }},
		{"basecorefile", "-basecorefile /c/base", func(o *Options) { o.BaseCorefile = "/c/base" }},
		{"corefile", "-corefile /c/Corefile", func(o *Options) { o.Corefile = "/c/Corefile" }},
		{"kubednscm", "-kubednscm /k", func(o *Options) { o.KubeDNS = "/k" }},
		{"upstreamsvc", "-upstreamsvc kube-dns-upstream", func(o *Options) { o.UpstreamService = "kube-dns-upstream" }},
		{"health-port", "-health-port 0", func(o *Options) { o.HealthPort = 0 }},
		{"reloadwithsignal", "-reloadwithsignal", func(o *Options) { o.ReloadWithSignal = true }},
		{"tls switched off", "-tls-enabled=false -tls-cert-file /etc/ssl/tls.crt -tls-private-key-file k -tls-client-auth-type NoClientCert -tls-client-ca-file c -tls-min-version TLS13", func(*Options) {}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := parse(t, append([]string{"-localip", "169.254.20.10,10.96.0.10"}, strings.Split(tc.args, " ")...)...)
			if tc.args == "" {
				got, err = parse(t, "-localip", "169.254.20.10,10.96.0.10")
			}
			if err != nil {
				t.Fatal(err)
			}
			want := defaults
			tc.want(&want)
			if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}), cmp.AllowUnexported(Options{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestFlagsThatAreRefused(t *testing.T) {
	golden := testgolden.NewRows(t, "refused-flags.golden")
	for _, tc := range []struct {
		name string
		args string
	}{
		{"no address", "-skipteardown"},
		{"an empty address", "-localip="},
		{"a bad address", "-localip 169.254.20.10,10.96.0.256"},
		{"a variable of the manifest", "-localip 169.254.20.10,__PILLAR__DNS__SERVER__"},
		{"syncinterval", "-localip 169.254.20.10 -syncinterval soon"},
		{"a negative syncinterval", "-localip 169.254.20.10 -syncinterval -5s"},
		{"health-port", "-localip 169.254.20.10 -health-port http"},
		{"TLS for metrics", "-localip 169.254.20.10 -tls-enabled"},
		{"standard input", "-localip 169.254.20.10 -corefile stdin"},
		{"no Corefile", "-localip 169.254.20.10 -corefile="},
		{"an unknown flag", "-localip 169.254.20.10 -fast"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := parse(t, strings.Fields(tc.args)...)
			golden.Compare(t, tc.name, fmt.Sprint(err))
		})
	}
}
