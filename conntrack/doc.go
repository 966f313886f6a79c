// Package conntrack reads the kernel's connection tracking table: its entries,
// the events that change them, and the counters that say what was
// dropped. Its limits and other settings are in package sysctl below.
//
// The table is streamed. A node may hold a million entries, and the process
// that reads them is often the one that has least memory to spare, so
// [Conn.Dump] decodes every entry into the same [Entry] and never holds two.
// Entries come over ctnetlink (NFNL_SUBSYS_CTNETLINK of nfnetlink, see
// linux/netfilter/nfnetlink_conntrack.h and net/netfilter/nf_conntrack_netlink.c
// of the kernel); /proc/net/nf_conntrack, which many kernels no longer have, is
// not read.
//
// What needs which privilege: everything over ctnetlink (entries, events,
// expectations, [Conn.Count]) needs CAP_NET_ADMIN in the user namespace that
// owns the network namespace. [ReadStats], where the kernel has
// /proc/net/stat/nf_conntrack, needs none.
//
// The package knows nothing of DNS beyond its port number, and nothing of
// CoreDNS.
package conntrack
