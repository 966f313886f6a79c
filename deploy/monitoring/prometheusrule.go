package main

import (
	"bytes"
	"fmt"
)

const prometheusRuleHead = `apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: trackless
  labels:
    app.kubernetes.io/name: trackless
spec:
`

// prometheusRule is the object that the Prometheus operator takes, with the rules
// as its spec.
func prometheusRule(rules []byte) []byte {
	var b bytes.Buffer
	b.WriteString(prometheusRuleHead)
	for line := range bytes.Lines(rules) {
		if len(bytes.TrimSpace(line)) > 0 {
			b.WriteString("  ")
		}
		b.Write(line)
	}
	return generatedFrom(rulesFile, b.Bytes())
}

// generatedFrom puts a line before a YAML file that names its source.
func generatedFrom(source string, content []byte) []byte {
	return fmt.Appendf(nil, "# Generated from %s by `make monitoring`.\n%s", source, content)
}
