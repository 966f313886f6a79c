package notrack

import (
	"fmt"
	"strings"
	"testing"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	_ "github.com/coredns/coredns/plugin/bind"
	"github.com/google/go-cmp/cmp"

	"github.com/trackless-dns/trackless/internal/testgolden"
)

func TestPlanOf(t *testing.T) {
	if err := dnsserver.SetDirectives([]string{"bind", "notrack"}); err != nil {
		t.Fatal(err)
	}
	if err := dnsserver.Register(); err != nil {
		t.Fatal(err)
	}
	var errs strings.Builder
	for _, tc := range []struct {
		name, corefile string
		listen         []string
		link           string
		fails          bool
	}{
		{
			name: "blocks are merged", link: "dns0",
			corefile: "cluster.local {\nbind 10.96.0.10\nnotrack {\ninterface dns0\n}\n}\nexample.org {\nbind 10.96.0.10 fd00::a\nnotrack {\ninterface dns0\n}\n}\n",
			listen:   []string{"tcp 10.96.0.10:53", "udp 10.96.0.10:53", "tcp [fd00::a]:53", "udp [fd00::a]:53"},
		},
		{name: "without the directive", corefile: "cluster.local {\nbind 10.96.0.10\n}\n"},
		{name: "blocks conflict", corefile: "a {\nnotrack 10.96.0.10\n}\nb {\nnotrack 10.96.0.10 {\ninterface x\n}\n}\n", fails: true},
		{name: "unknown directive", corefile: "a {\nnotrak\n}\n", fails: true},
		{name: "no address", corefile: "a {\nnotrack\n}\n", fails: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, _, err := PlanOf(caddy.CaddyfileInput{Contents: []byte(tc.corefile), Filepath: "Corefile", ServerTypeName: "dns"})
			if tc.fails && err != nil {
				fmt.Fprintf(&errs, "%s:\n\t%v\n", tc.name, err)
				return
			}
			if err != nil || tc.fails {
				t.Fatalf("error %v, want one: %t", err, tc.fails)
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
	testgolden.Compare(t, "plan_errors.txt", errs.String())
}
