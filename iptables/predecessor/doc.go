// Package predecessor finds and deletes the rules that Kubernetes' node-cache left on a
// node. They untrack DNS permanently, in nf_tables and in iptables-legacy.
package predecessor
