package legacy

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"iter"
	"net/netip"
	"slices"

	"github.com/trackless-dns/trackless/iptables"
)

// numHooks is NF_INET_NUMHOOKS.
const numHooks = 5

// header is struct ipt_getinfo without the name of the table.
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
		return h, fmt.Errorf("struct ipt_getinfo has %d bytes instead of %d", len(b), infoSize)
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

// layout has the offsets of the fields in struct ipt_entry or ip6t_entry (on 64-bit
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

// countersSize is that of struct xt_counters, with which an entry's fields end.
const countersSize = 16

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

// interfaceSize is IFNAMSIZ. extensionHeader is the size of the header of struct
// xt_entry_match and xt_entry_target: size, name and revision.
const (
	interfaceSize    = 16
	extensionHeader  = 32
	extensionNameLen = 29
)

// errorTarget marks the head of a user-defined chain, and the end of the table.
const errorTarget = "ERROR"

// entry is an entry of the blob, at its offset.
type entry struct {
	layout
	at       int
	b        []byte
	targetAt int // offset of its target in b
}

// cut returns the first entry of a part of the blob; at is the offset of the part. whole
// is false if the part ends before the entry does.
func (l layout) cut(b []byte, at int) (e entry, whole bool, err error) {
	if len(b) < l.size {
		return e, false, nil
	}
	target := int(binary.NativeEndian.Uint16(b[l.target:]))
	next := int(binary.NativeEndian.Uint16(b[l.target+2:]))
	if target < l.size || next < target+extensionHeader {
		return e, false, fmt.Errorf("entry at %d: its target is at %d and its end at %d", at, target, next)
	}
	if next > len(b) {
		return e, false, nil
	}
	return entry{l, at, b[:next], target}, true, nil
}

// entries returns the entries of a whole blob.
func (l layout) entries(blob []byte) iter.Seq2[entry, error] {
	return func(yield func(entry, error) bool) {
		for at := 0; at < len(blob); {
			e, whole, err := l.cut(blob[at:], at)
			if err == nil && !whole {
				err = fmt.Errorf("entry at %d is cut off", at)
			}
			if !yield(e, err) || err != nil {
				return
			}
			at += len(e.b)
		}
	}
}

// jump returns the offset to which a rule jumps; -1 if it does not jump.
func (e entry) jump() int {
	x := e.b[e.targetAt:]
	if !isStandard(x) || len(x) < extensionHeader+4 {
		return -1
	}
	code := int32(binary.NativeEndian.Uint32(x[extensionHeader:]))
	if code < 0 || e.continues(code) {
		return -1
	}
	return int(code)
}

func (e entry) isGoto() bool { return e.b[e.flags]&e.gotoFlag != 0 }

// continues reports whether a jump leads to the next entry. The kernel keeps a rule
// without a target in this form.
func (e entry) continues(code int32) bool { return int(code) == e.at+len(e.b) && !e.isGoto() }

// head returns the name of the user-defined chain that begins after this entry; "" if
// none does.
func (e entry) head() (string, error) {
	if cStringIs(e.b[e.targetAt+2:e.targetAt+2+extensionNameLen], errorTarget) {
		if name := cString(e.b[e.targetAt+extensionHeader:]); name != "" {
			return name, nil
		}
		return "", fmt.Errorf("entry at %d: the chain has no name", e.at)
	}
	return "", nil
}

// rule decodes the entry. The data of matches and target are not copied.
func (e entry) rule() (r Rule, err error) {
	r = e.header(e.b)
	if r.Matches, err = extensions(e.b[e.size:e.targetAt]); err != nil {
		return r, fmt.Errorf("entry at %d: %w", e.at, err)
	}
	x, _, err := extension(e.b[e.targetAt:])
	if err != nil {
		return r, fmt.Errorf("entry at %d: %w", e.at, err)
	}
	switch {
	case x.Name != "":
		r.Target = x
	case len(x.Info) < 4:
		return r, fmt.Errorf("entry at %d: the verdict has %d bytes", e.at, len(x.Info))
	default:
		r.Verdict = e.standard(int32(binary.NativeEndian.Uint32(x.Info)))
	}
	return r, nil
}

// parse reads the entries of a table and keeps the wanted rules.
func parse(family iptables.Family, name string, h header, entries iter.Seq2[entry, error], wanted Filter) (Table, error) {
	t, _, err := parseAt(family, name, h, entries, wanted)
	return t, err
}

// parseAt is parse, and returns the offsets of the rules in the blob, by chain and rule.
func parseAt(family iptables.Family, name string, h header, entries iter.Seq2[entry, error], wanted Filter) (t Table, offsets [][]int, err error) {
	p := parser{header: h, wanted: wanted, starts: map[int]string{}}
	p.table = Table{Family: family, Name: name}
	for e, err := range entries {
		if err == nil {
			err = p.take(e)
		}
		if err != nil {
			return p.table, nil, err
		}
	}
	return p.table, p.offsets, p.finish()
}

// parser is the state of parsing a table.
type parser struct {
	header
	wanted  Filter
	table   Table
	starts  map[int]string // user-defined chains, by the offset of their first rule
	jumps   [][]int        // by chain and rule; -1 for no jump
	offsets [][]int
	current *Chain
	place   int // of the last rule of the current chain
	end     int // offset after the last entry
}

func (p *parser) open(c Chain) {
	p.close()
	p.table.Chains = append(p.table.Chains, c)
	p.jumps, p.offsets = append(p.jumps, nil), append(p.offsets, nil)
	p.current, p.place = &p.table.Chains[len(p.table.Chains)-1], 0
}

// close ends the current chain.
func (p *parser) close() {
	c := p.current
	if c == nil {
		return
	}
	p.current = nil
	if c.Base {
		return
	}
	i := len(p.table.Chains) - 1
	if n := len(c.Rules); n > 0 && c.Rules[n-1].Place == p.place {
		c.Rules = c.Rules[:n-1] // the return at the end of every user-defined chain
	}
	if p.wanted != nil && len(c.Rules) == 0 {
		p.table.Chains, p.jumps, p.offsets = p.table.Chains[:i], p.jumps[:i], p.offsets[:i]
	}
}

func (p *parser) take(e entry) error {
	p.end = e.at + len(e.b)
	if hook := p.hookAt(e.at); hook >= 0 {
		p.open(Chain{Name: hookName(hook), Base: true, Hook: uint32(hook)})
	}
	head, err := e.head()
	if err != nil {
		return err
	}
	if head != "" {
		p.open(Chain{Name: head})
		p.starts[p.end] = head
		return nil
	}
	c := p.current
	if c == nil {
		return fmt.Errorf("entry at %d is in no chain", e.at)
	}
	r, err := e.rule()
	if err != nil {
		return err
	}
	if c.Base && uint32(e.at) == p.underflow[c.Hook] {
		if r.Verdict == nil {
			return fmt.Errorf("chain %s has no policy", c.Name)
		}
		c.Policy = r.Verdict.Code
		p.current = nil
		return nil
	}
	p.place++
	r.Place = p.place
	if p.wanted != nil && !p.wanted(c.Name, r) {
		return nil
	}
	i := len(p.table.Chains) - 1
	c.Rules = append(c.Rules, r.clone())
	p.jumps[i], p.offsets[i] = append(p.jumps[i], e.jump()), append(p.offsets[i], e.at)
	return nil
}

// finish sets the names of the chains to which rules jump.
func (p *parser) finish() error {
	// The entry at the end of the table looks like the head of a chain.
	if c := p.current; c != nil && !c.Base && p.place == 0 {
		delete(p.starts, p.end)
		i := len(p.table.Chains) - 1
		p.current, p.table.Chains, p.jumps, p.offsets = nil, p.table.Chains[:i], p.jumps[:i], p.offsets[:i]
	}
	p.close()
	for i := range p.table.Chains {
		c := &p.table.Chains[i]
		for j := range c.Rules {
			at := p.jumps[i][j]
			if at < 0 {
				continue
			}
			to, ok := p.starts[at]
			if !ok {
				return fmt.Errorf("chain %s: rule %d jumps to offset %d, where no chain begins", c.Name, c.Rules[j].Place, at)
			}
			c.Rules[j].Verdict.Chain = to
		}
	}
	return nil
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

// standard decodes the code of a standard target: an offset to jump to, or the negative
// of a verdict minus one.
func (e entry) standard(code int32) *Verdict {
	const (
		nfAccept, nfQueue = 1, 3
		xtReturn          = -5 // XT_RETURN, -NF_REPEAT - 1
	)
	switch {
	case code >= 0 && e.continues(code):
		return nil
	case code >= 0 && e.isGoto():
		return &Verdict{Code: Goto}
	case code >= 0:
		return &Verdict{Code: Jump}
	case code == xtReturn:
		return &Verdict{Code: Return}
	case code == -nfAccept-1:
		return &Verdict{Code: Accept}
	case code == -nfQueue-1:
		return &Verdict{Code: Queue}
	}
	return &Verdict{Code: Drop}
}

// header reads the conditions of an entry on the packet's header.
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

// device reads a name, and its mask two names later. A mask that covers the final zero
// asks for the whole name.
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
		return Extension{}, 0, fmt.Errorf("an extension has %d bytes, fewer than its header", len(b))
	}
	size := int(binary.NativeEndian.Uint16(b))
	if size < extensionHeader || size > len(b) {
		return Extension{}, 0, fmt.Errorf("an extension says that it has %d bytes, in %d", size, len(b))
	}
	return Extension{
		Name:     cString(b[2 : 2+extensionNameLen]),
		Revision: b[2+extensionNameLen],
		Info:     b[extensionHeader:size],
	}, size, nil
}

func cString(b []byte) string {
	s, _, _ := bytes.Cut(b, []byte{0})
	return string(s)
}

func cStringIs(b []byte, s string) bool {
	text, _, _ := bytes.Cut(b, []byte{0})
	return string(text) == s
}
