// Package evaluator runs other programs' rules on a packet of which only some fields are
// known, as the kernel would, and prints them. It evaluates rules of iptables-legacy in
// the form in which iptables-nft would write them.
//
// An unknown field makes an outcome uncertain, never wrong.
package evaluator
