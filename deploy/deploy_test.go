// Package deploy tests what can be tested of the manifests without Kubernetes;
// test/e2e applies them to one.
package deploy

import (
	"os"
	"regexp"
	"slices"
	"testing"
)

// The pages that document metrics. Those of CoreDNS itself are in
// dnsMetrics, from the READMEs of its plugins metrics and forward.
var pages = []string{"../plugin/notrack/README.md", "../plugin/cache/README.md", "../plugin/fairness/README.md", "../plugin/podmetrics/README.md", "../plugin/searchpath/README.md", "../docs/monitoring.md"}

var dnsMetrics = []string{
	"coredns_dns_requests_total", "coredns_dns_responses_total", "coredns_dns_request_duration_seconds",
	"coredns_proxy_request_duration_seconds", "coredns_proxy_healthcheck_failures_total",
	"coredns_forward_healthcheck_broken_total", "coredns_forward_max_concurrent_rejects_total",
}

// histogramSeries are what Prometheus makes of a histogram's name.
var histogramSeries = regexp.MustCompile(`_seconds_(bucket|count|sum)$`)

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
			if !slices.Contains(known, histogramSeries.ReplaceAllString(name, "_seconds")) {
				t.Errorf("%s uses %s, which nothing documents", file, name)
			}
		}
	}
}
