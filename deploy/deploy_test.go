// Package deploy tests what can be tested of the manifests without Kubernetes;
// test/e2e applies them to one.
package deploy

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The pages that document metrics. Those of CoreDNS itself are in
// dnsMetrics, from the README of its plugin metrics.
var pages = []string{"../plugin/notrack/README.md", "../plugin/cache/README.md"}

var dnsMetrics = []string{
	"coredns_dns_requests_total", "coredns_dns_responses_total", "coredns_dns_request_duration_seconds",
}

var metricName = regexp.MustCompile(`coredns_[a-z_]+`)

// TestMetricsExist keeps alerts and dashboard to metrics that are documented,
// and by other tests exported.
func TestMetricsExist(t *testing.T) {
	known := slices.Clone(dnsMetrics)
	for _, page := range pages {
		b, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		known = append(known, metricName.FindAllString(string(b), -1)...)
	}
	for _, file := range []string{"helm/trackless/files/rules.yaml", "helm/trackless/files/dashboard.json"} {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		used := metricName.FindAllString(string(b), -1)
		if len(used) == 0 {
			t.Errorf("%s uses no metric", file)
		}
		for _, name := range used {
			if !slices.Contains(known, strings.TrimSuffix(name, "_bucket")) {
				t.Errorf("%s uses %s, which nothing documents", file, name)
			}
		}
	}
}
