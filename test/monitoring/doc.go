// Package monitoring holds dashboard and alerts against a real Prometheus: `make
// test-monitoring`. A metric that was renamed, a label that is not there or two
// that do not match give an empty panel and an alert that never fires, and no
// other test would see it.
package monitoring
