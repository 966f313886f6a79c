package nftables

import (
	"bytes"
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/trackless-dns/trackless/iptables"
)

// Print writes rules as nft syntax, as `nft list table` shows the table that
// Install makes of them, packet counts and what packets put into sets aside.
func Print(table string, r iptables.Rules) string {
	var b strings.Builder
	line := func(depth int, format string, args ...any) {
		b.WriteString(strings.Repeat("\t", depth))
		fmt.Fprintf(&b, format+"\n", args...)
	}
	line(0, "table inet %s {", table)
	for _, k := range iptables.CounterKeys() {
		line(1, "counter %s {", counterName(k))
		line(2, "packets 0 bytes 0")
		line(1, "}")
		line(0, "")
	}
	all := chains(r.Plan.Lease, r.Plan.DryRun)
	for _, k := range setKinds {
		for _, f := range k.families() {
			printSet(line, k, f, r, filled(all, k, f))
		}
	}
	for i, c := range all {
		line(1, "chain %s {", c.name)
		if c.hook != nil {
			priority := "raw"
			if *c.hook == iptables.Input {
				priority = strconv.Itoa(lastPriority)
			}
			line(2, "type filter hook %s priority %s; policy accept;", c.hook, priority)
		}
		for _, r := range c.rules {
			var words []string
			for _, s := range r {
				words = append(words, s.text(r))
			}
			line(2, "%s", strings.Join(words, " "))
		}
		line(1, "}")
		if i < len(all)-1 {
			line(0, "")
		}
	}
	line(0, "}")
	return b.String()
}

// filled reports whether a rule puts packets into the set, which gives it its size.
func filled(all []chain, k setKind, f iptables.Family) bool {
	for _, c := range all {
		for _, r := range c.rules {
			for _, s := range r {
				if p, ok := s.(put); ok && p.set.instance(p.family) == k.instance(f) {
					return true
				}
			}
		}
	}
	return false
}

func printSet(line func(int, string, ...any), k setKind, f iptables.Family, r iptables.Rules, filled bool) {
	line(1, "set %s {", k.instance(f))
	var types []string
	for _, part := range k.key {
		types = append(types, part.datatype(f).Name)
	}
	line(2, "type %s", strings.Join(types, " . "))
	if k.dynamic {
		if k.size > 0 {
			line(2, "size %d", k.size)
		} else if filled {
			line(2, "size %d", setSize)
		}
		line(2, "flags dynamic,timeout")
	}
	var elements []string
	if k.ranges {
		line(2, "flags interval")
		for _, p := range slices.SortedFunc(slices.Values(r.Plan.Sources), comparePrefixes) {
			if iptables.FamilyOf(p.Addr()) == f {
				elements = append(elements, p.Masked().String())
			}
		}
	}
	keys := staticElements(r)[k.instance(f)]
	slices.SortFunc(keys, func(a, b []byte) int { return compareKeys(k, f, a, b) })
	for _, key := range keys {
		elements = append(elements, keyWords(k, f, key))
	}
	if len(elements) > 0 {
		line(2, "elements = { %s }", joinElements(elements, len(k.key) == 1 && f == iptables.IPv4 && !k.any))
	}
	line(1, "}")
	line(0, "")
}

// joinElements breaks lines as nft does: after every element, or after every
// second one where they are short.
func joinElements(elements []string, short bool) string {
	var b strings.Builder
	for i, e := range elements {
		switch {
		case i == 0:
		case short && i%2 == 1:
			b.WriteString(", ")
		default:
			b.WriteString(",\n\t\t\t     ")
		}
		b.WriteString(e)
	}
	return b.String()
}

func comparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// split cuts a key into its fields.
func split(k setKind, f iptables.Family, key []byte) [][]byte {
	var out [][]byte
	for _, part := range k.key {
		n := part.words(f) * 4
		out = append(out, key[:n])
		key = key[n:]
	}
	return out
}

// compareKeys is the order in which nft prints concatenated keys: the last part
// counts first.
func compareKeys(k setKind, f iptables.Family, a, b []byte) int {
	as, bs := split(k, f, a), split(k, f, b)
	for i := len(as) - 1; i >= 0; i-- {
		if c := bytes.Compare(as[i], bs[i]); c != 0 {
			return c
		}
	}
	return 0
}

func keyWords(k setKind, f iptables.Family, key []byte) string {
	var words []string
	for i, part := range split(k, f, key) {
		switch k.key[i] {
		case saddr, daddr:
			a, _ := netip.AddrFromSlice(part)
			words = append(words, a.String())
		case sport, dport:
			words = append(words, fmt.Sprint(int(part[0])<<8|int(part[1])))
		case l4proto:
			words = append(words, iptables.Proto(part[0]).String())
		case inDevice:
			words = append(words, fmt.Sprintf("%q", bytes.TrimRight(part, "\x00")))
		}
	}
	return strings.Join(words, " . ")
}
