// Package evaluator runs rules of other programs on a packet of which only some
// fields are known, as the kernel would, and writes them for people. Rules of
// iptables-legacy are evaluated as iptables-nft would have written them.
//
// What it does not know makes an outcome uncertain, never wrong.
package evaluator
