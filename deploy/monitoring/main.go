// Command monitoring writes what Prometheus and Grafana are given, from its two
// sources: the alerts in rules.yaml, and the panels in panels.go. `make
// monitoring` runs it at the top of the repository; a test here fails when it was
// forgotten.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
)

func main() {
	root := flag.String("C", ".", "the top `directory` of the repository")
	flag.Parse()
	if err := run(*root); err != nil {
		fmt.Fprintf(os.Stderr, "monitoring: %v\n", err)
		os.Exit(1)
	}
}

func run(root string) error {
	files, err := generate(root)
	if err != nil {
		return err
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(root, name), content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// Paths from the top of the repository.
const (
	rulesFile          = "deploy/monitoring/rules.yaml"
	prometheusRuleFile = "deploy/monitoring/prometheusrule.yaml"
	dashboardFile      = "deploy/monitoring/dashboard.json"

	// Helm reads nothing outside of the chart.
	chartRulesFile     = "deploy/helm/trackless/files/rules.yaml"
	chartDashboardFile = "deploy/helm/trackless/files/dashboard.json"
)

// generate returns the content of every generated file.
func generate(root string) (map[string][]byte, error) {
	rules, err := os.ReadFile(filepath.Join(root, rulesFile))
	if err != nil {
		return nil, err
	}
	dashboard, err := newDashboard(rows).json()
	if err != nil {
		return nil, err
	}
	return map[string][]byte{
		prometheusRuleFile: prometheusRule(rules),
		chartRulesFile:     generatedFrom(rulesFile, rules),
		dashboardFile:      dashboard,
		chartDashboardFile: dashboard,
	}, nil
}
