// Package lab builds a Kubernetes node in throw-away network namespaces and
// sends DNS through it: what `trackless lab` runs, and what tests reuse.
//
// A [Node] is a network namespace with an uplink and a default route, two or
// more pods on point-to-point veths, a kube-dns pod that runs a real CoreDNS
// (this same program, as `trackless serve`), and kube-proxy's DNAT for the
// cluster DNS Service as nftables rules of the shape kube-proxy writes. On it
// one can start a node-local cache ([Node.Serve]) and watch the connection tracking
// table of the node ([Node.Watch]). Package load sends a bounded, seeded load
// through it, and package experiment measures that load with and without Trackless.
//
//	outside 192.0.2.1            pod-11 10.244.0.11   pod-12 10.244.0.12
//	        │ uplink                    │ veth               │ veth
//	        └──────────────── node ─────┴──────┬─────────────┘
//	                 kube-proxy's nat rules    │ veth
//	                 NOTRACK, the cache        └─ kube-dns 10.244.0.53
//
// Nothing outlives the process. Namespaces have no name: they live as long as
// a file descriptor of this process does, and with them go their links,
// addresses, rules and connection tracking entries. Children are killed by the
// kernel when this process ends, and their Corefiles lie in memory files. So
// [Node.Close] is for tidiness inside a longer-lived process; a crash, a panic
// or SIGKILL cleans up as thoroughly.
//
// All of it needs root (CAP_SYS_ADMIN, CAP_NET_ADMIN) and a kernel with veth,
// nf_tables and nf_conntrack_netlink; [Missing] says what this machine lacks.
// No nft, ip or iptables binary is used.
package lab
