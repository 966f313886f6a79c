// Package predecessor finds and deletes what Kubernetes' node-cache left on a
// node: rules that untrack DNS for good, in nf_tables and in iptables-legacy.
package predecessor
