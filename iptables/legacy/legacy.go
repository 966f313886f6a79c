// Package legacy reads the tables of iptables-legacy from the kernel without the
// iptables binaries, and deletes rules from them.
//
// They are not part of nf_tables: the kernel keeps them as blobs that are read
// with getsockopt (include/uapi/linux/netfilter_ipv4/ip_tables.h and its sibling
// for IPv6). Those of kube-proxy have tens of MiB: they are read through a window of
// a few, and only the rules that are wanted are kept. Asking for a table that this network namespace does not have would
// create it, so only those are asked for that the kernel lists in
// /proc/net/ip_tables_names. The kernel replaces a blob as a
// whole and sees nothing of another program that has read it before and will
// replace it after, so that every change is made under iptables' own lock. That is
// a file of the host, which a container need not share: without it nothing is
// changed.
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
	// Chains are in the table's order. Where rules were picked, a chain of a user
	// of which none was wanted is left out.
	Chains []Chain
}

// Filter reports whether a rule is wanted. Where it jumps to is not known yet, and
// the data of its matches and target are there during the call only. A nil Filter
// wants all.
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

// Chain is a base chain or one of a user.
type Chain struct {
	Name string
	// Base tells a base chain; Hook is its hook then (enum nf_inet_hooks:
	// prerouting 0, input 1, forward 2, output 3, postrouting 4), and Policy
	// what becomes of a packet that passes all of its rules: Accept or Drop.
	Base   bool
	Hook   uint32
	Policy VerdictCode
	Rules  []Rule
}

// Rule is one rule. What it asks of the packet's header comes first; the zero
// value of each asks for nothing.
type Rule struct {
	// Place is that in the chain, from 1 on.
	Place int

	Source, Destination Masked
	Input, Output       Interface
	Proto               uint8 // 0: any
	NotProto            bool
	Fragment            bool // second and further fragments only
	NotFragment         bool

	// Matches are the extensions that have to match as well, in order.
	Matches []Extension

	// Verdict is what the rule ends with, if it ends with a verdict of the
	// kernel or a jump; else Target is the extension that it calls, or, where
	// its name is empty, the rule only counts.
	Verdict *Verdict
	Target  Extension
}

// clone is the rule with data of its own.
func (r Rule) clone() Rule {
	r.Matches = slices.Clone(r.Matches)
	for i := range r.Matches {
		r.Matches[i].Info = bytes.Clone(r.Matches[i].Info)
	}
	r.Target.Info = bytes.Clone(r.Target.Info)
	return r
}

// Comment is the text of the rule's comment match.
func (r *Rule) Comment() string {
	for _, m := range r.Matches {
		if m.Name == "comment" {
			return cString(m.Info)
		}
	}
	return ""
}

// Masked is an address of which the bits of the mask are compared. An invalid
// Addr is any.
type Masked struct {
	Addr, Mask netip.Addr
	Not        bool
}

// IsAddr reports whether exactly this address is meant.
func (m Masked) IsAddr(a netip.Addr) bool { return !m.Not && m.Addr == a && m.Whole() }

// Whole reports whether all bits are compared.
func (m Masked) Whole() bool {
	return m.Addr.IsValid() && !slices.ContainsFunc(m.Mask.AsSlice(), func(b byte) bool { return b != 0xff })
}

// Interface is the name of a device, or how it begins. An empty name is any.
type Interface struct {
	Name   string
	Prefix bool
	Not    bool
}

// Extension is a match or target with its data as the kernel keeps it.
type Extension struct {
	Name     string
	Revision uint8
	Info     []byte
}

// VerdictCode is what becomes of a packet.
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

// Verdict is a verdict; Chain is where a jump or goto leads.
type Verdict struct {
	Code  VerdictCode
	Chain string
}
