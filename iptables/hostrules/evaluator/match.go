package evaluator

import (
	"bytes"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables/internal/nfnl"
)

// Certainty tells whether a condition holds for a packet of which only some
// fields are known.
type Certainty uint8

// In this order min is "and", and max is "or".
const (
	Never Certainty = iota
	Maybe
	Always
)

func certain(b bool) Certainty {
	if b {
		return Always
	}
	return Never
}

// Outcome is the effect of a rule on a probe.
type Outcome struct {
	Matches Certainty
	Effects []string      // on the packet, such as notrack
	Verdict *nfnl.Verdict // nil: go on with the next rule
}

// ElementsOf reads the elements of a set.
type ElementsOf func(set string) ([]nfnl.Element, error)

// Evaluate runs a rule on a probe, as nft_do_chain does. An unknown field makes the
// outcome uncertain, never wrong.
func Evaluate(r nfnl.Rule, p Probe, sets ElementsOf) Outcome {
	out := Outcome{Matches: Always}
	var regs registers
	for _, e := range r.Exprs {
		if out.Matches == Never {
			return out
		}
		out.step(e, p, &regs, sets)
	}
	return out
}

// Unconditional returns the effect of a rule on the packets that it matches.
func Unconditional(r nfnl.Rule, sets ElementsOf) Outcome {
	var out Outcome
	var regs registers
	for _, e := range r.Exprs {
		out.step(e, Probe{}, &regs, sets)
	}
	out.Matches = Always
	return out
}

func (o *Outcome) require(c Certainty) { o.Matches = min(o.Matches, c) }

// step adds one expression to the outcome.
func (o *Outcome) step(e nfnl.Expression, p Probe, regs *registers, sets ElementsOf) {
	switch e.Name {
	case "payload":
		o.payload(e, p, regs)
	case "meta":
		if e.Has(unix.NFTA_META_DREG) {
			regs.store(e.Number(unix.NFTA_META_DREG), p.meta(e.Number(unix.NFTA_META_KEY)), 4)
		}
	case "cmp":
		o.compare(e, p, regs)
	case "range":
		o.inRange(e, regs)
	case "bitwise":
		bitwise(e, regs)
	case "lookup":
		o.lookup(e, p, regs, sets)
	case "immediate":
		o.immediate(e, regs)
	case "notrack":
		o.Effects = append(o.Effects, "notrack")
	case "match":
		o.require(matches(e, p))
	case "target":
		o.target(e)
	case "reject":
		o.Verdict = &nfnl.Verdict{Code: nfnl.VerdictDrop}
	case "queue":
		o.Verdict = &nfnl.Verdict{Code: nfnl.VerdictQueue}
	case "tproxy", "dup", "fwd", "nat", "redir", "masq", "synproxy":
		o.Effects = append(o.Effects, e.Name)
	case "ct":
		o.conntrack(e, p, regs)
	case "fib":
		regs.store(e.Number(unix.NFTA_FIB_DREG), p.fib(e), 16)
	case "counter", "log":
		// They match always and do not change the packet.
	case "objref", "dynset":
		// They do not change the packet, but end the rule at a limit or in a full set.
		if p.cautious() && !countsOnly(e) {
			o.require(Maybe)
		}
	default:
		// limit, quota, exthdr, socket and future expressions: they may not
		// match, and the values that they load are unknown.
		o.require(Maybe)
		*regs = registers{}
	}
}

// countsOnly reports whether an expression is a reference to one counter.
func countsOnly(e nfnl.Expression) bool {
	return e.Name == "objref" && e.Number(unix.NFTA_OBJREF_IMM_TYPE) == unix.NFT_OBJECT_COUNTER
}

// payload loads a part of a header into a register.
func (o *Outcome) payload(e nfnl.Expression, p Probe, regs *registers) {
	if e.Has(unix.NFTA_PAYLOAD_SREG) {
		o.Effects = append(o.Effects, "rewrites the packet")
		return
	}
	length := int(e.Number(unix.NFTA_PAYLOAD_LEN))
	base, offset, dreg := e.Number(unix.NFTA_PAYLOAD_BASE), e.Number(unix.NFTA_PAYLOAD_OFFSET), e.Number(unix.NFTA_PAYLOAD_DREG)
	regs.store(dreg, p.field(base, offset, length), length)
	if p.otherEnd(base, offset, length) {
		regs.markOther(dreg, length)
	}
	if place, is := p.clientAt(base, offset, length); is {
		regs.markClient(dreg, length, place)
	}
}

// compare compares a register with a value.
func (o *Outcome) compare(e nfnl.Expression, p Probe, regs *registers) {
	want := e.Value(unix.NFTA_CMP_DATA)
	op := e.Number(unix.NFTA_CMP_OP)
	got, ok := regs.load(e.Number(unix.NFTA_CMP_SREG), len(want))
	switch {
	case ok:
		o.require(certain(compares(bytes.Compare(got, want), op)))
	case op == unix.NFT_CMP_EQ && regs.other(e.Number(unix.NFTA_CMP_SREG), len(want)):
		o.require(Never)
	case op == unix.NFT_CMP_EQ && regs.isClient(e.Number(unix.NFTA_CMP_SREG), len(want)) &&
		!regs.equalsClient(e.Number(unix.NFTA_CMP_SREG), want, p):
		o.require(Never)
	default:
		o.require(Maybe)
	}
}

// inRange compares a register with two values.
func (o *Outcome) inRange(e nfnl.Expression, regs *registers) {
	from, to := e.Value(unix.NFTA_RANGE_FROM_DATA), e.Value(unix.NFTA_RANGE_TO_DATA)
	got, ok := regs.load(e.Number(unix.NFTA_RANGE_SREG), len(from))
	if !ok {
		o.require(Maybe)
		return
	}
	inside := bytes.Compare(got, from) >= 0 && bytes.Compare(got, to) <= 0
	o.require(certain(inside == (e.Number(unix.NFTA_RANGE_OP) == unix.NFT_RANGE_EQ)))
}

// immediate loads a value into a register, or gives a verdict.
func (o *Outcome) immediate(e nfnl.Expression, regs *registers) {
	if e.Number(unix.NFTA_IMMEDIATE_DREG) == unix.NFT_REG_VERDICT {
		v := nfnl.ReadVerdict(nfnl.Attributes(e.Attrs[unix.NFTA_IMMEDIATE_DATA])[unix.NFTA_DATA_VERDICT])
		o.Verdict = &v
		return
	}
	regs.store(e.Number(unix.NFTA_IMMEDIATE_DREG), e.Value(unix.NFTA_IMMEDIATE_DATA), 0)
}

// conntrack loads a field of the packet's entry, or changes it.
func (o *Outcome) conntrack(e nfnl.Expression, p Probe, regs *registers) {
	if e.Has(unix.NFTA_CT_SREG) {
		o.Effects = append(o.Effects, ctEffect(e))
		return
	}
	if p.Path != nil {
		// nft_ct_get_eval: without an entry only the state can be loaded.
		if e.Number(unix.NFTA_CT_KEY) != unix.NFT_CT_STATE {
			o.require(Never)
			return
		}
		regs.store(e.Number(unix.NFTA_CT_DREG), nfnl.NativeUint32(stateUntracked), 0)
		return
	}
	regs.store(e.Number(unix.NFTA_CT_DREG), nil, 16)
}

func compares(order int, op uint32) bool {
	switch op {
	case unix.NFT_CMP_EQ:
		return order == 0
	case unix.NFT_CMP_NEQ:
		return order != 0
	case unix.NFT_CMP_LT:
		return order < 0
	case unix.NFT_CMP_LTE:
		return order <= 0
	case unix.NFT_CMP_GT:
		return order > 0
	}
	return order >= 0 // NFT_CMP_GTE
}

// bitwise computes (source & mask) ^ xor, for the comparison with a prefix.
func bitwise(e nfnl.Expression, regs *registers) {
	const bitwiseOp = 6 // NFTA_BITWISE_OP, since Linux 5.6; 0 is the boolean one
	mask, xor := e.Value(unix.NFTA_BITWISE_MASK), e.Value(unix.NFTA_BITWISE_XOR)
	sreg, dreg := e.Number(unix.NFTA_BITWISE_SREG), e.Number(unix.NFTA_BITWISE_DREG)
	if sreg == dreg && len(xor) == len(mask) && e.Number(bitwiseOp) == 0 && regs.isClient(sreg, len(mask)) &&
		!slices.ContainsFunc(xor, func(b byte) bool { return b != 0 }) {
		whole := !slices.ContainsFunc(mask, func(b byte) bool { return b != 0xff })
		for i, b := range mask {
			regs[regs.at(sreg)+i].value &= b
			// Of a network it is not known whether the other end is in it.
			regs[regs.at(sreg)+i].other = regs[regs.at(sreg)+i].other && whole
		}
		return
	}
	got, ok := regs.load(sreg, len(mask))
	if !ok || len(xor) != len(mask) || e.Number(bitwiseOp) != 0 {
		regs.store(dreg, nil, int(e.Number(unix.NFTA_BITWISE_LEN)))
		return
	}
	for i := range got {
		got[i] = got[i]&mask[i] ^ xor[i]
	}
	regs.store(dreg, got, 0)
}

func (o *Outcome) lookup(e nfnl.Expression, p Probe, regs *registers, sets ElementsOf) {
	dreg := e.Has(unix.NFTA_LOOKUP_DREG)
	elements, err := sets(e.SetName())
	found, c := (*nfnl.Element)(nil), Maybe
	if err == nil {
		found, c = find(elements, e.Number(unix.NFTA_LOOKUP_SREG), regs)
	}
	if c == Never && p.cautious() && slices.ContainsFunc(elements, isCatchAll) {
		c = Maybe
	}
	if e.Number(unix.NFTA_LOOKUP_FLAGS)&unix.NFT_LOOKUP_F_INV != 0 {
		c = Always - c
	}
	o.require(c)
	switch {
	case !dreg:
	case found == nil && p.cautious() && e.Number(unix.NFTA_LOOKUP_DREG) == unix.NFT_REG_VERDICT:
		// Any verdict of the map is possible, as with a queue.
		o.Verdict = &nfnl.Verdict{Code: nfnl.VerdictQueue}
	case found == nil:
		regs.store(e.Number(unix.NFTA_LOOKUP_DREG), nil, 16)
	case found.Verdict != nil:
		o.Verdict = found.Verdict
	default:
		regs.store(e.Number(unix.NFTA_LOOKUP_DREG), found.Value, 0)
	}
}

// isCatchAll reports whether an element is the one for all keys that no other has.
func isCatchAll(e nfnl.Element) bool { return len(e.Key) == 0 && !e.IntervalEnd }

// find searches for the key that starts in a register.
func find(elements []nfnl.Element, register uint32, regs *registers) (*nfnl.Element, Certainty) {
	if len(elements) == 0 {
		return nil, Never
	}
	length := 0
	for _, e := range elements {
		length = max(length, len(e.Key))
	}
	intervals := slices.ContainsFunc(elements, func(e nfnl.Element) bool { return e.KeyEnd != nil || e.IntervalEnd })
	key, ok := regs.load(register, length)
	switch {
	case !ok && !intervals && regs.other(register, length):
		return nil, Never
	case !ok:
		return nil, Maybe
	}
	if slices.ContainsFunc(elements, func(e nfnl.Element) bool { return e.KeyEnd != nil }) {
		// A range in every part of a concatenation.
		best := Never
		for i, e := range elements {
			switch within(key, e.Key, e.KeyEnd) {
			case Always:
				return &elements[i], Always
			case Maybe:
				best = Maybe
			}
		}
		return nil, best
	}
	if slices.ContainsFunc(elements, func(e nfnl.Element) bool { return e.IntervalEnd }) {
		// Intervals are sorted starts, and ends where there is a gap after them.
		var last *nfnl.Element
		sorted := slices.SortedFunc(slices.Values(elements), func(a, b nfnl.Element) int {
			if order := bytes.Compare(a.Key, b.Key); order != 0 || a.IntervalEnd == b.IntervalEnd {
				return order
			} else if a.IntervalEnd {
				return -1 // one interval ends where the next one starts
			}
			return 1
		})
		for i := range sorted {
			if bytes.Compare(sorted[i].Key, key) <= 0 {
				last = &sorted[i]
			}
		}
		if last == nil || last.IntervalEnd {
			return nil, Never
		}
		return last, Always
	}
	for i, e := range elements {
		if bytes.Equal(e.Key, key) {
			return &elements[i], Always
		}
	}
	return nil, Never
}

// within compares 32 bits at a time. The bounds of the fields in the key are unknown. So
// a key that is inside only when it is compared as a whole gives Maybe.
func within(key, from, to []byte) Certainty {
	if len(from) != len(key) || len(to) != len(key) {
		return Maybe
	}
	inside := Always
	for at := 0; at < len(key); at += 4 {
		end := min(at+4, len(key))
		if bytes.Compare(key[at:end], from[at:end]) < 0 || bytes.Compare(key[at:end], to[at:end]) > 0 {
			inside = Never
		}
	}
	if inside == Never && bytes.Compare(key, from) >= 0 && bytes.Compare(key, to) <= 0 {
		return Maybe
	}
	return inside
}
