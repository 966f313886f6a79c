package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
)

const root = "../.."

// A source that was changed without `make monitoring` would be shipped to nobody.
func TestGeneratedFilesAreCurrent(t *testing.T) {
	files, err := generate(root)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Error(err)
			continue
		}
		if diff := cmp.Diff(string(want), string(got)); diff != "" {
			t.Errorf("%s is not what its source makes: `make monitoring` (-source +file):\n%s", name, diff)
		}
	}
}

// group is one of rules, as in rules.yaml.
type group struct {
	Name  string
	Rules []struct {
		Record, Alert, Expr string
		Labels, Annotations map[string]string
	}
}

func parse(t *testing.T, file string, into any) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(b, into); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
}

func TestPrometheusRuleHasTheRules(t *testing.T) {
	var rules struct{ Groups []group }
	parse(t, "rules.yaml", &rules)
	var object struct {
		Kind string
		Spec struct{ Groups []group }
	}
	parse(t, "prometheusrule.yaml", &object)
	if diff := cmp.Diff(rules.Groups, object.Spec.Groups); diff != "" || object.Kind != "PrometheusRule" {
		t.Errorf("kind %s, groups (-rules.yaml +prometheusrule.yaml):\n%s", object.Kind, diff)
	}
}

// TestAlerts asks of each alert what a person who is woken up by it needs, and
// that it was seen to fire and not to fire.
func TestAlerts(t *testing.T) {
	var rules struct{ Groups []group }
	parse(t, "rules.yaml", &rules)
	var tests struct {
		Tests []struct {
			Alerts []struct {
				Name string      `yaml:"alertname"`
				Want []yaml.Node `yaml:"exp_alerts"`
			} `yaml:"alert_rule_test"`
		}
	}
	parse(t, "rules_test.yaml", &tests)
	fires, silent := map[string]bool{}, map[string]bool{}
	for _, test := range tests.Tests {
		for _, a := range test.Alerts {
			if len(a.Want) > 0 {
				fires[a.Name] = true
			} else {
				silent[a.Name] = true
			}
		}
	}
	const runbooks = "https://github.com/trackless-dns/trackless/blob/main/"
	index, err := os.ReadFile(filepath.Join(root, "docs/runbooks/README.md"))
	if err != nil {
		t.Fatal(err)
	}
	var pages []string
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			if r.Record != "" {
				continue
			}
			t.Run(r.Alert, func(t *testing.T) {
				if !fires[r.Alert] || !silent[r.Alert] {
					t.Errorf("rules_test.yaml has it fire: %t, not fire: %t; want both", fires[r.Alert], silent[r.Alert])
				}
				if s := r.Labels["severity"]; s != "warning" && s != "critical" {
					t.Errorf("severity %q, want warning or critical", s)
				}
				for _, name := range []string{"summary", "description"} {
					if r.Annotations[name] == "" {
						t.Errorf("no annotation %s", name)
					}
				}
				page := "docs/runbooks/" + r.Alert + ".md"
				pages = append(pages, filepath.Base(page))
				if url := r.Annotations["runbook_url"]; url != runbooks+page {
					t.Errorf("runbook_url %q, want %s", url, runbooks+page)
				}
				text, err := os.ReadFile(filepath.Join(root, page))
				if err != nil {
					t.Fatal(err)
				}
				for _, want := range []string{"# " + r.Alert + "\n", "\n## What it means\n", "\n## What to look at\n", "\n## What to do\n", "trackless "} {
					if !strings.Contains(string(text), want) {
						t.Errorf("%s has no %q", page, want)
					}
				}
				if !strings.Contains(string(index), "("+filepath.Base(page)+")") {
					t.Errorf("docs/runbooks/README.md has no link to %s", page)
				}
			})
		}
	}
	files, err := os.ReadDir(filepath.Join(root, "docs/runbooks"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if f.Name() != "README.md" && !slices.Contains(pages, f.Name()) {
			t.Errorf("docs/runbooks/%s is the page of no alert", f.Name())
		}
	}
}

// The kernel counts a failed insertion as drop, too: whoever shows or alerts on
// drop beside insert_failed takes it off, as doctor does.
func TestFailedInsertionsCountOnce(t *testing.T) {
	var rules struct{ Groups []group }
	parse(t, "rules.yaml", &rules)
	exprs := map[string]string{}
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			exprs["rule "+r.Record+r.Alert] = r.Expr
		}
	}
	for _, r := range rows {
		for _, p := range r.panels {
			for _, q := range p.queries {
				exprs["panel "+p.title+", "+q.legend] = q.expr
			}
		}
	}
	const drop, failed = "coredns_conntrack_drop_total", "coredns_conntrack_insert_failed_total"
	found := 0
	for name, expr := range exprs {
		if !strings.Contains(expr, drop) {
			continue
		}
		found++
		if !strings.Contains(expr, failed) {
			t.Errorf("%s takes %s without %s off: %s", name, drop, failed, expr)
		}
	}
	if found < 2 {
		t.Errorf("%d expressions use %s; want the alert and the panel", found, drop)
	}
}

// Grafana moves panels that overlap, and shows one of those with the same number.
func TestDashboardLayout(t *testing.T) {
	var titles []string
	for _, r := range rows {
		width := 0
		for _, p := range r.panels {
			width += p.width
			titles = append(titles, p.title)
			if p.unit == "" || len(p.queries) == 0 {
				t.Errorf("%q has unit %q and %d queries", p.title, p.unit, len(p.queries))
			}
			for _, q := range p.queries {
				if len(p.queries) > 1 && q.legend == "" {
					t.Errorf("%q has lines without names", p.title)
				}
				// What instances of others have to do with us is nothing.
				if strings.Count(q.expr, "coredns_") > strings.Count(q.expr, `{instance=~"$instance"`)+strings.Count(q.expr, "coredns_trackless_build_info)") {
					t.Errorf("%q asks of all instances, not of those chosen: %s", p.title, q.expr)
				}
			}
		}
		if width != columns {
			t.Errorf("%q is %d columns wide, want %d", r.title, width, columns)
		}
	}
	slices.Sort(titles)
	if n := len(slices.Compact(slices.Clone(titles))); n != len(titles) {
		t.Errorf("%d titles for %d panels", n, len(titles))
	}
}
