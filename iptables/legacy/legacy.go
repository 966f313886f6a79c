// Package legacy reads the tables of iptables-legacy from the kernel without the
// iptables binaries, and deletes rules from them.
//
// They are not part of nf_tables: the kernel keeps them as blobs that are read with
// getsockopt (include/uapi/linux/netfilter_ipv4/ip_tables.h, and the same for IPv6).
// Those of kube-proxy have tens of MiB. They are read through a window of a few MiB, and
// only the wanted rules are kept. To ask for a table that this network namespace does
// not have would create it, so only tables in /proc/net/ip_tables_names are read.
//
// The kernel replaces a blob as a whole. It does not notice another program that read
// the blob before and replaces it later. So every change is made under the lock of
// iptables. That is a file of the host, which a container may not have: without it
// nothing is changed.
package legacy

import (
	"bytes"
	"net/netip"
	"slices"

	"github.com/trackless-dns/trackless/iptables"
)

// Table is one table of one family.
type Table struct {
	Family iptables.Family
	Name   string // "raw", "mangle", "nat", "filter" or "security"
	// Chains are in the order of the table. With a Filter, user-defined chains
	// without wanted rules are left out.
	Chains []Chain
}

// Filter reports whether a rule is wanted. The chain that the rule jumps to is not known
// yet. The data of its matches and target are valid only during the call. A nil Filter
// wants all rules.
type Filter func(chain string, r Rule) bool

// Chain returns the chain of that name, or nil.
func (t *Table) Chain(name string) *Chain {
	for i := range t.Chains {
		if t.Chains[i].Name == name {
			return &t.Chains[i]
		}
	}
	return nil
}

// Chain is a base chain or a user-defined chain.
type Chain struct {
	Name string
	// Base tells a base chain. Then Hook is its hook (enum nf_inet_hooks:
	// prerouting 0, input 1, forward 2, output 3, postrouting 4), and Policy the
	// verdict at the end of the chain: Accept or Drop.
	Base   bool
	Hook   uint32
	Policy VerdictCode
	Rules  []Rule
}

// Rule is one rule. Its conditions on the packet's header come first; the zero value of
// each is no condition.
type Rule struct {
	// Place is its number in the chain, from 1.
	Place int

	Source, Destination Masked
	Input, Output       Interface
	Proto               uint8 // 0: any
	NotProto            bool
	Fragment            bool // only second and later fragments
	NotFragment         bool

	// Matches are the extensions that must match, too, in order.
	Matches []Extension

	// Verdict is the verdict or jump of the rule. If it is nil, Target is the
	// extension that the rule calls; a rule with neither only counts.
	Verdict *Verdict
	Target  Extension
}

// clone returns a copy of the rule with data of its own.
func (r Rule) clone() Rule {
	r.Matches = slices.Clone(r.Matches)
	for i := range r.Matches {
		r.Matches[i].Info = bytes.Clone(r.Matches[i].Info)
	}
	r.Target.Info = bytes.Clone(r.Target.Info)
	return r
}

// Comment returns the text of the rule's comment match.
func (r *Rule) Comment() string {
	for _, m := range r.Matches {
		if m.Name == "comment" {
			return cString(m.Info)
		}
	}
	return ""
}

// Masked is an address; only the bits of the mask are compared. An invalid Addr means
// any address.
type Masked struct {
	Addr, Mask netip.Addr
	Not        bool
}

// IsAddr reports whether the condition is exactly this address.
func (m Masked) IsAddr(a netip.Addr) bool { return !m.Not && m.Addr == a && m.Whole() }

// Whole reports whether all bits are compared.
func (m Masked) Whole() bool {
	return m.Addr.IsValid() && !slices.ContainsFunc(m.Mask.AsSlice(), func(b byte) bool { return b != 0xff })
}

// Interface is the name of a device, or a prefix of it. An empty name means any.
type Interface struct {
	Name   string
	Prefix bool
	Not    bool
}

// Extension is a match or target, with its data in the kernel's form.
type Extension struct {
	Name     string
	Revision uint8
	Info     []byte
}

// VerdictCode is the code of a verdict.
type VerdictCode uint8

// The verdicts of a rule.
const (
	Accept VerdictCode = iota
	Drop
	Queue
	Return
	Jump
	Goto
)

// Verdict is a verdict; Chain is the target of a jump or goto.
type Verdict struct {
	Code  VerdictCode
	Chain string
}
