package notrack

import (
	"strings"
	"testing"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	_ "github.com/coredns/coredns/plugin/bind"
	"github.com/google/go-cmp/cmp"
)

func TestPlanOf(t *testing.T) {
	if err := dnsserver.SetDirectives([]string{"bind", "notrack"}); err != nil {
		t.Fatal(err)
	}
	if err := dnsserver.Register(); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, corefile string
		listen         []string
		link, err      string
	}{
		{
			name: "blocks are merged", link: "dns0",
			corefile: "cluster.local {\nbind 10.96.0.10\nnotrack {\ninterface dns0\n}\n}\nexample.org {\nbind 10.96.0.10 fd00::a\nnotrack {\ninterface dns0\n}\n}\n",
			listen:   []string{"tcp 10.96.0.10:53", "udp 10.96.0.10:53", "tcp [fd00::a]:53", "udp [fd00::a]:53"},
		},
		{name: "without the directive", corefile: "cluster.local {\nbind 10.96.0.10\n}\n"},
		{name: "blocks conflict", corefile: "a {\nnotrack 10.96.0.10\n}\nb {\nnotrack 10.96.0.10 {\ninterface x\n}\n}\n", err: "Corefile:7 - Error during parsing: interface x conflicts with"},
		{name: "unknown directive", corefile: "a {\nnotrak\n}\n", err: "Unknown directive 'notrak'"},
		{name: "no address", corefile: "a {\nnotrack\n}\n", err: "no address"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, _, err := PlanOf(caddy.CaddyfileInput{Contents: []byte(tc.corefile), Filepath: "Corefile", ServerTypeName: "dns"})
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Errorf("error %v, want %q", err, tc.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if p.Link != tc.link {
				t.Errorf("link %q, want %q", p.Link, tc.link)
			}
			if diff := cmp.Diff(tc.listen, endpoints(p.Listen)); diff != "" {
				t.Errorf("listen (-want +got):\n%s", diff)
			}
			if reconciler, _, _ := process.Rules(); reconciler != nil {
				t.Error("a reconciler was made")
			}
		})
	}
}
