package legacy

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/trackless-dns/trackless/iptables"
)

// numHooks is NF_INET_NUMHOOKS.
const numHooks = 5

// header is struct ipt_getinfo without the table's name.
type header struct {
	validHooks uint32
	hookEntry  [numHooks]uint32
	underflow  [numHooks]uint32
	numEntries uint32
	size       uint32
}

// infoSize is the size of struct ipt_getinfo, whose name field has 32 bytes.
const (
	nameSize = 32
	infoSize = nameSize + 4*(1+numHooks+numHooks+1+1)
)

func parseInfo(b []byte) (header, error) {
	var h header
	if len(b) < infoSize {
		return h, fmt.Errorf("struct ipt_getinfo has %d bytes, want %d", len(b), infoSize)
	}
	fields := []*uint32{&h.validHooks}
	for i := range numHooks {
		fields = append(fields, &h.hookEntry[i])
	}
	for i := range numHooks {
		fields = append(fields, &h.underflow[i])
	}
	for i, f := range append(fields, &h.numEntries, &h.size) {
		*f = binary.NativeEndian.Uint32(b[nameSize+4*i:])
	}
	return h, nil
}

// layout says where struct ipt_entry or ip6t_entry has its fields (64-bit
// kernels, whose counters are aligned to 8 bytes).
type layout struct {
	family   iptables.Family
	addr     int // bytes of an address; source, destination and masks come first
	proto    int // __u16
	flags    int // __u8
	invert   int // __u8
	target   int // __u16 target_offset; next_offset follows
	size     int
	gotoFlag uint8
}

var (
	layout4 = layout{family: iptables.IPv4, addr: 4, proto: 80, flags: 82, invert: 83, target: 88, size: 112, gotoFlag: 0x02}
	layout6 = layout{family: iptables.IPv6, addr: 16, proto: 128, flags: 131, invert: 132, target: 140, size: 168, gotoFlag: 0x04}
)

func layoutOf(f iptables.Family) layout {
	if f == iptables.IPv6 {
		return layout6
	}
	return layout4
}

// Flags of an entry: IPT_F_FRAG, IP6T_F_PROTO, and IPT_INV_*, which are the same
// for IPv6.
const (
	flagFragment = 0x01 // IPv4
	flagProto    = 0x01 // IPv6
	notInput     = 0x01
	notOutput    = 0x02
	notSource    = 0x08
	notDest      = 0x10
	notFragment  = 0x20
	notProto     = 0x40
)

// interfaceSize is IFNAMSIZ; extensionHeader is that of struct xt_entry_match and
// xt_entry_target: size, name and revision.
const (
	interfaceSize    = 16
	extensionHeader  = 32
	extensionNameLen = 29
)

// errorTarget marks the head of a user's chain, and the end of the table.
const errorTarget = "ERROR"

// entry is an entry of the blob, at its offset.
type entry struct {
	at   int
	rule Rule
	// jump is the offset that a jump or goto leads to, -1 without.
	jump int
	// head is the name of the user's chain that begins after this entry.
	head string
}

// parse reads the entries of a table.
func parse(family iptables.Family, name string, h header, blob []byte) (Table, error) {
	t, _, err := parseAt(family, name, h, blob)
	return t, err
}

// parseAt is parse and returns where each rule stands in the blob, by chain and
// rule.
func parseAt(family iptables.Family, name string, h header, blob []byte) (t Table, offsets [][]int, err error) {
	t = Table{Family: family, Name: name}
	entries, err := layoutOf(family).entries(blob)
	if err != nil {
		return t, nil, err
	}
	starts := map[int]string{} // by offset of the first rule
	jumps := [][]int{}         // by chain and rule
	var current *Chain
	open := func(c Chain) {
		t.Chains = append(t.Chains, c)
		jumps, offsets = append(jumps, nil), append(offsets, nil)
		current = &t.Chains[len(t.Chains)-1]
	}
	for i, e := range entries {
		if hook := h.hookAt(e.at); hook >= 0 {
			open(Chain{Name: hookName(hook), Base: true, Hook: uint32(hook)})
		}
		switch {
		case e.head != "":
			current = nil
			if i+1 < len(entries) {
				open(Chain{Name: e.head})
				starts[entries[i+1].at] = e.head
			}
		case current == nil:
			return t, nil, fmt.Errorf("entry at %d belongs to no chain", e.at)
		case current.Base && uint32(e.at) == h.underflow[current.Hook]:
			if e.rule.Verdict == nil {
				return t, nil, fmt.Errorf("chain %s has no policy", current.Name)
			}
			current.Policy = e.rule.Verdict.Code
			current = nil
		default:
			current.Rules = append(current.Rules, e.rule)
			jumps[len(jumps)-1] = append(jumps[len(jumps)-1], e.jump)
			offsets[len(offsets)-1] = append(offsets[len(offsets)-1], e.at)
		}
	}
	for i := range t.Chains {
		c := &t.Chains[i]
		for j := range c.Rules {
			if jumps[i][j] < 0 {
				continue
			}
			to, ok := starts[jumps[i][j]]
			if !ok {
				return t, nil, fmt.Errorf("chain %s, rule %d jumps to %d, where no chain begins", c.Name, j+1, jumps[i][j])
			}
			c.Rules[j].Verdict.Chain = to
		}
		if !c.Base && len(c.Rules) > 0 {
			c.Rules = c.Rules[:len(c.Rules)-1] // the return that ends every user's chain
		}
	}
	return t, offsets, nil
}

func (h header) hookAt(offset int) int {
	for i := range numHooks {
		if h.validHooks&(1<<i) != 0 && int64(h.hookEntry[i]) == int64(offset) {
			return i
		}
	}
	return -1
}

func hookName(hook int) string {
	return [numHooks]string{"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"}[hook]
}

func (l layout) entries(blob []byte) ([]entry, error) {
	var out []entry
	for at := 0; at < len(blob); {
		b := blob[at:]
		if len(b) < l.size {
			return nil, fmt.Errorf("entry at %d is cut off", at)
		}
		target := int(binary.NativeEndian.Uint16(b[l.target:]))
		next := int(binary.NativeEndian.Uint16(b[l.target+2:]))
		if target < l.size || next < target+extensionHeader || next > len(b) {
			return nil, fmt.Errorf("entry at %d has its target at %d and its end at %d", at, target, next)
		}
		e := entry{at: at, rule: l.header(b), jump: -1}
		var err error
		if e.rule.Matches, err = extensions(b[l.size:target]); err != nil {
			return nil, fmt.Errorf("entry at %d: %w", at, err)
		}
		x, _, err := extension(b[target:next])
		if err != nil {
			return nil, fmt.Errorf("entry at %d: %w", at, err)
		}
		switch x.Name {
		case errorTarget:
			e.head = cString(x.Info)
			if e.head == "" {
				return nil, fmt.Errorf("entry at %d: a chain without a name", at)
			}
		case "":
			if len(x.Info) < 4 {
				return nil, fmt.Errorf("entry at %d: a verdict of %d bytes", at, len(x.Info))
			}
			e.standard(int32(binary.NativeEndian.Uint32(x.Info)), b[l.flags]&l.gotoFlag != 0, at+next)
		default:
			e.rule.Target = x
		}
		out = append(out, e)
		at += next
	}
	return out, nil
}

// standard reads the verdict of a standard target: an offset to jump to, or
// the negative of a verdict minus one. A jump to the next entry is how a rule
// without a target is written.
func (e *entry) standard(code int32, isGoto bool, next int) {
	const (
		nfDrop, nfAccept, nfQueue = 0, 1, 3
		xtReturn                  = -5 // XT_RETURN, -NF_REPEAT - 1
	)
	switch {
	case code >= 0 && int(code) == next && !isGoto:
	case code >= 0:
		e.jump = int(code)
		e.rule.Verdict = &Verdict{Code: Jump}
		if isGoto {
			e.rule.Verdict.Code = Goto
		}
	case code == xtReturn:
		e.rule.Verdict = &Verdict{Code: Return}
	case code == -nfAccept-1:
		e.rule.Verdict = &Verdict{Code: Accept}
	case code == -nfQueue-1:
		e.rule.Verdict = &Verdict{Code: Queue}
	default:
		e.rule.Verdict = &Verdict{Code: Drop}
	}
}

// header reads what an entry asks of the packet's header.
func (l layout) header(b []byte) Rule {
	flags, invert := b[l.flags], b[l.invert]
	names := 4 * l.addr
	r := Rule{
		Source:      masked(b[:l.addr], b[2*l.addr:3*l.addr], invert&notSource != 0),
		Destination: masked(b[l.addr:2*l.addr], b[3*l.addr:4*l.addr], invert&notDest != 0),
		Input:       device(b[names:], invert&notInput != 0),
		Output:      device(b[names+interfaceSize:], invert&notOutput != 0),
	}
	if l.family == iptables.IPv4 || flags&flagProto != 0 {
		r.Proto = uint8(binary.NativeEndian.Uint16(b[l.proto:]))
		r.NotProto = r.Proto != 0 && invert&notProto != 0
	}
	if l.family == iptables.IPv4 {
		r.Fragment = flags&flagFragment != 0 && invert&notFragment == 0
		r.NotFragment = flags&flagFragment != 0 && invert&notFragment != 0
	}
	return r
}

func masked(addr, mask []byte, not bool) Masked {
	if !not && !slices.ContainsFunc(mask, func(b byte) bool { return b != 0 }) {
		return Masked{}
	}
	a, _ := netip.AddrFromSlice(addr)
	m, _ := netip.AddrFromSlice(mask)
	return Masked{Addr: a, Mask: m, Not: not}
}

// device reads a name and, two names on, its mask: a mask that reaches over
// the closing zero asks for the whole name.
func device(b []byte, not bool) Interface {
	name, mask := b[:interfaceSize], b[2*interfaceSize:3*interfaceSize]
	n := 0
	for n < len(mask) && mask[n] != 0 {
		n++
	}
	if n == 0 {
		return Interface{}
	}
	asked, ended, _ := bytes.Cut(name[:n], []byte{0})
	whole := len(asked) < n || ended != nil
	return Interface{Name: string(asked), Prefix: !whole, Not: not}
}

func extensions(b []byte) ([]Extension, error) {
	var out []Extension
	for len(b) > 0 {
		x, size, err := extension(b)
		if err != nil {
			return nil, err
		}
		out = append(out, x)
		b = b[size:]
	}
	return out, nil
}

func extension(b []byte) (Extension, int, error) {
	if len(b) < extensionHeader {
		return Extension{}, 0, fmt.Errorf("an extension of %d bytes", len(b))
	}
	size := int(binary.NativeEndian.Uint16(b))
	if size < extensionHeader || size > len(b) {
		return Extension{}, 0, fmt.Errorf("an extension of %d bytes in %d", size, len(b))
	}
	return Extension{
		Name:     cString(b[2 : 2+extensionNameLen]),
		Revision: b[2+extensionNameLen],
		Info:     slices.Clone(b[extensionHeader:size]),
	}, size, nil
}

func cString(b []byte) string {
	s, _, _ := bytes.Cut(b, []byte{0})
	return string(s)
}
