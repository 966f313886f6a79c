//go:build monitoring

package monitoring

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/lab/labtest"
)

const (
	dashboardFile = "../../deploy/monitoring/dashboard.json"
	rulesFile     = "../../deploy/monitoring/rules.yaml"
)

// quiet are 0 on a node that is well, and nothing here makes them rise: the table's limit
// belongs to the machine, the races to chance, and overloads come of a CPU limit alone.
var quiet = regexp.MustCompile(`coredns_conntrack_(drop|early_drop|insert_failed|chain_toolong)_total|coredns_notrack_overloads_total`)

// firing are the alerts for which the test makes the cause. They are pending:
// none waits for as long as an alert does.
var firing = []string{"TracklessNotAttached", "TracklessBypassed", "TracklessServingStale", "TracklessUpstreamFailing", "TracklessAnswersFailing"}

func TestMonitoring(t *testing.T) {
	node := labtest.NewNode(t, lab.Options{})
	start(t, node, "prometheus-node-exporter", "--web.listen-address="+nodeExporterAddress, "--collector.disable-defaults", "--collector.conntrack")
	prometheus := startPrometheus(t, node, rulesFile)
	seen := func(what, expr string, holds func(series) bool) {
		t.Helper()
		eventually(t, what, func() error {
			all, err := prometheus.query(t.Context(), expr)
			if err == nil && !slices.ContainsFunc(all, holds) {
				err = fmt.Errorf("not yet: %s", expr)
			}
			return err
		})
	}
	rises := func(what, expr string) {
		t.Helper()
		seen(what, expr, func(s series) bool { return s.values[len(s.values)-1] > s.values[0] })
	}

	// Before there is a Trackless, node_exporter knows the table.
	seen("the table is known without Trackless", "instance:conntrack_table_used:ratio", func(s series) bool { return s.labels["job"] == "node" })

	server, err := node.Serve(corefile(node))
	if err != nil {
		t.Fatal(err)
	}
	if err := server.AwaitAttached(t.Context(), tracklessAddress); err != nil {
		t.Fatal(err)
	}
	startLoad(t, node)
	seen("the table has been walked under load", `coredns_conntrack_dns_entries{role="bypass"}`, positive)

	takeAddress(t, node, lab.ClusterDNS4)
	seen("the address was put back", "coredns_notrack_repairs_total", positive)
	without(t, server, func() {
		// A scrape waits for a second, as long as a lease is.
		seen("it hangs", `up{job="trackless"} == 0 and max_over_time(up{job="trackless"}[1h]) == 1`, func(s series) bool { return len(s.values) > 2 })
	})
	seen("a lease lapsed", "coredns_notrack_lease_lapses_total", positive)

	program := labtest.Program(t)
	onNode(t, node, program, "rules", "detach", "--socket", "@trackless/control.sock", "--timeout", "3m")
	seen("it is detached", "1 - coredns_notrack_attached", positive)
	seen("clients' queries are tracked", `coredns_conntrack_dns_entries{role="client"}`, positive)
	onNode(t, node, program, "rules", "attach", "--socket", "@trackless/control.sock", "--timeout", "3m")
	if err := server.AwaitAttached(t.Context(), tracklessAddress); err != nil {
		t.Fatal(err)
	}

	without(t, node.KubeDNS, func() {
		rises("answers are stale", "sum(coredns_cache_served_stale_total)")
		rises("servers are found dead", "sum(coredns_proxy_healthcheck_failures_total)")
		rises("all servers are down", "coredns_forward_healthcheck_broken_total")
		rises("queries fail", `sum(coredns_dns_responses_total{rcode="SERVFAIL"})`)
		rises("queries are refused", `sum(coredns_forward_max_concurrent_rejects_total)`)
		// Long enough for alerts to be pending.
		for _, alert := range firing {
			seen(alert+" is pending", `ALERTS{alertname="`+alert+`"}`, positive)
		}
	})
	rises("evictions", `sum(coredns_cache_evictions_total{type="success"})`)
	rises("prefetches", `sum(coredns_cache_prefetch_total)`)

	t.Logf("%.0f seconds of load and faults", time.Since(prometheus.began).Seconds())
	t.Run("dashboard", func(t *testing.T) { checkDashboard(t, prometheus) })
	t.Run("alerts", func(t *testing.T) { checkAlerts(t, prometheus) })
	t.Run("one table", func(t *testing.T) {
		// Both know the node by now.
		all, err := prometheus.query(t.Context(), "count(instance:conntrack_table_used:ratio)")
		if err != nil || len(all) != 1 || slices.Max(all[0].values) != 1 {
			t.Errorf("the table counts as %v, %v; want one at any time", all, err)
		}
	})
}

func positive(s series) bool { return slices.Max(s.values) > 0 }

// substitute gives Grafana's variables a value.
var substitute = strings.NewReplacer("$instance", tracklessAddress, "$__rate_interval", "4s")

func checkDashboard(t *testing.T, p *prometheus) {
	var dashboard struct {
		Panels []struct {
			Title, Type string
			Targets     []struct{ Expr string }
		}
	}
	b, err := os.ReadFile(dashboardFile)
	if err == nil {
		err = json.Unmarshal(b, &dashboard)
	}
	if err != nil {
		t.Fatal(err)
	}
	panels, queries := 0, 0
	for _, panel := range dashboard.Panels {
		if panel.Type == "row" {
			continue
		}
		panels++
		t.Run(panel.Title, func(t *testing.T) {
			for _, target := range panel.Targets {
				queries++
				expr := substitute.Replace(target.Expr)
				if strings.Contains(expr, "$") {
					t.Errorf("a variable that the test does not know: %s", expr)
				}
				eventually(t, expr, func() error {
					all, err := p.query(t.Context(), expr)
					switch {
					case err != nil:
						return err
					case len(all) == 0:
						return errors.New("no data")
					case !slices.ContainsFunc(all, positive) && !quiet.MatchString(expr):
						return errors.New("0 all the time")
					}
					return nil
				})
			}
		})
	}
	if queries < 25 {
		t.Errorf("the dashboard has %d queries; was it read rightly?", queries)
	}
	t.Logf("asked %d queries of %d panels", queries, panels)
}

// selector is what an expression asks Prometheus for: a metric, with the labels
// asked of it.
var selector = regexp.MustCompile(`\b(?:coredns_|node_|instance:)[a-zA-Z0-9_:]+(?:\{[^}]*\})?`)

func checkAlerts(t *testing.T, p *prometheus) {
	rules, err := p.rules(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	alerts := 0
	for _, r := range rules {
		t.Run(r.Name, func(t *testing.T) {
			if r.Health != "ok" {
				t.Errorf("%s: %s", r.Health, r.LastError)
			}
			if r.Type == "alerting" {
				alerts++
			}
			found := selector.FindAllString(r.Query, -1)
			if len(found) == 0 {
				t.Errorf("it asks for none of our metrics: %s", r.Query)
			}
			for _, s := range found {
				if all, err := p.query(t.Context(), s); err != nil || len(all) == 0 {
					t.Errorf("there is no %s, %v", s, err)
				}
			}
		})
	}
	text, err := os.ReadFile(rulesFile)
	if err != nil {
		t.Fatal(err)
	}
	if want := strings.Count(string(text), "- alert:"); alerts != want {
		t.Errorf("Prometheus has %d of %d alerts", alerts, want)
	}
}
