// Package nfnl is the netlink layer of all packages that read or write nf_tables. It
// opens a socket, sends a batch as one transaction, makes requests, and decodes tables,
// chains, rules and set elements of any program.
//
// google/nftables encodes what is written. It decodes nothing here, since it leaves out
// the expressions that it does not know.
package nfnl
