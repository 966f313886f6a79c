// Package nfnl is the netlink plumbing below everything that reads or writes
// nf_tables: it dials a socket, sends a batch as one transaction, asks a
// question, and decodes tables, chains, rules and set elements of any program.
//
// Writing is encoded by google/nftables. Reading uses no code of it, since it
// leaves out the expressions that it does not know.
package nfnl
