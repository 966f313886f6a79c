package script

import (
	"strings"
	"testing"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/prometheus/client_golang/prometheus"
)

// Setup makes a plugin from a Corefile of one directive, whichever plugin has
// registered it.
func Setup(t testing.TB, directive, corefile string, next plugin.Handler) plugin.Handler {
	t.Helper()
	controller := caddy.NewTestController("dns", corefile)
	controller.ServerBlockKeys = []string{"."}
	setup, err := caddy.DirectiveAction("dns", directive)
	if err != nil {
		t.Fatal(err)
	}
	if err := setup(controller); err != nil {
		t.Fatalf("%s: %v", corefile, err)
	}
	plugins := dnsserver.GetConfig(controller).Plugin
	return plugins[len(plugins)-1](next)
}

// Metrics returns the cache's counters, summed over servers and zones.
func Metrics() map[string]float64 {
	sums := make(map[string]float64)
	families, err := prometheus.DefaultGatherer.Gather()
	if err != nil {
		return sums
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			if m.GetCounter() == nil || !strings.HasPrefix(name, "coredns_cache_") {
				continue
			}
			for _, l := range m.GetLabel() {
				if l.GetName() == "type" {
					name += "/" + l.GetValue()
				}
			}
			sums[name] += m.GetCounter().GetValue()
		}
	}
	return sums
}
