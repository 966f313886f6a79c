package nodecache

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/coredns/caddy/caddyfile"

	"github.com/trackless-dns/trackless/internal/testgolden"
)

// stock is the template of Kubernetes' manifest with the cluster's domain and the listen
// addresses filled in, as its README says.
func stock(t *testing.T) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/stock.base")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var upstream = netip.MustParseAddr("10.96.0.99")

// Each row is rendered, and then gets its notrack blocks, as in the program.
func TestCorefiles(t *testing.T) {
	servers := KubeDNS{UpstreamNameservers: []string{"8.8.8.8", "8.8.4.4"}}
	forced := "\n.:53 {\n    bind __PILLAR__LOCAL__DNS__ __PILLAR__DNS__SERVER__\n    forward . __PILLAR__UPSTREAM__SERVERS__ {\n            force_tcp\n    }\n    prometheus __PROMETHEUS__ENDPOINT__\n}\n"
	for _, tc := range []struct {
		name     string // of the golden file
		template string // empty: the stock one
		args     []string
		kubeDNS  KubeDNS
	}{
		{name: "stock"},
		{name: "variables-left-in-bind", template: forced},
		{name: "upstream-servers", template: forced, kubeDNS: servers},
		{name: "stub-domains", template: forced, kubeDNS: KubeDNS{StubDomains: map[string][]string{"b.local": {"10.1.1.1", "10.1.1.2:5353"}, "a.local": {"10.1.1.3"}}}},
		{name: "ipv6", template: forced, args: []string{"-localip", "169.254.20.10,fd00::a"}},
		{name: "without-rules", template: forced, args: []string{"-setupiptables=false", "-setupinterface=false", "-skipteardown=true"}},
		{name: "all-flags", template: forced, args: []string{"-interfacename", "dns0", "-health-port", "8081", "-syncinterval", "30", "-skipteardown", "-prometheus-listen-address", "127.0.0.1:9253"}},
		{name: "no-interface", template: forced, args: []string{"-setupinterface=false", "-health-port", "0"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o := mustParse(t, tc.args...)
			template := []byte(tc.template)
			if tc.template == "" {
				template = stock(t)
			}
			text, err := o.Render(template, tc.kubeDNS, upstream, 53)
			if err != nil {
				t.Fatal(err)
			}
			if text, err = o.Insert("Corefile", text, nil, false); err != nil {
				t.Fatal(err)
			}
			testgolden.Compare(t, tc.name+".corefile", text)
			if _, err := caddyfile.Parse("Corefile", strings.NewReader(text), nil); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestTemplatesThatAreRefused(t *testing.T) {
	o := mustParse(t, "-upstreamsvc", "kube-dns-upstream")
	golden := testgolden.NewRows(t, "refused-templates.golden")
	for _, tc := range []struct {
		name, template string
		upstream       netip.Addr
	}{
		{"no Service", ".:53 {\n forward . __PILLAR__CLUSTER__DNS__\n}\n", netip.Addr{}},
		{"no Service and no need of one", ".:53 {\n forward . 10.0.0.1\n}\n", netip.Addr{}},
		{"the domain is not filled in", "__PILLAR__DNS__DOMAIN__:53 {\n whoami\n}\n", upstream},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := o.Render([]byte(tc.template), KubeDNS{}, tc.upstream, 53)
			golden.Compare(t, tc.name, fmt.Sprint(err))
			if err != nil && errors.Is(err, ErrNoUpstream) == tc.upstream.IsValid() {
				t.Errorf("%v is not the error for an unknown Service", err)
			}
		})
	}
}

func TestUpstreamFromTheEnvironment(t *testing.T) {
	t.Setenv("KUBE_DNS_UPSTREAM_SERVICE_HOST", "10.96.0.99")
	t.Setenv("KUBE_DNS_SERVICE_HOST", "none")
	for service, want := range map[string]netip.Addr{"kube-dns-upstream": upstream, "kube-dns": {}, "other": {}} {
		o := mustParse(t, "-upstreamsvc", service)
		if got := o.UpstreamFromEnvironment(); got != want {
			t.Errorf("%s: %v, want %v", service, got, want)
		}
	}
}
