package nftables

import (
	"net/netip"
	"time"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/internal/nfnl"
	"github.com/trackless-dns/trackless/iptables/internal/tracetest"
)

// Result says what became of a packet at one hook.
type Result struct {
	// Untracked packets leave no entry and are not rewritten.
	Untracked bool
	Dropped   bool
}

// String gives the word that tests and `rules` use.
func (r Result) String() string {
	switch {
	case r.Dropped:
		return "dropped"
	case r.Untracked:
		return "untracked"
	}
	return "tracked"
}

// Twin is the backend in memory: the same rules, walked by a tracer instead of
// the kernel. It implements [iptables.Backend]; its clock is time.Now.
type Twin struct {
	rules    iptables.Rules
	elements map[string]map[string]time.Time // set, key: expiry, zero for never
	counters iptables.Counters
	present  bool

	// variant makes the ruleset; tests take rules out of it.
	variant func(lease time.Duration, dryRun bool) []chain
}

var _ iptables.Backend = (*Twin)(nil)

// NewTwin returns a twin without rules.
func NewTwin() *Twin {
	return &Twin{elements: map[string]map[string]time.Time{}, counters: iptables.Counters{}, variant: chains}
}

// Name returns "twin".
func (*Twin) Name() string { return "twin" }

// Table implements [iptables.Backend].
func (*Twin) Table() string { return "twin" }

// Owned implements [iptables.Backend].
func (*Twin) Owned() bool { return true }

// Capabilities implements [iptables.Backend].
func (t *Twin) Capabilities() (iptables.Capabilities, error) {
	return iptables.Capabilities{Devices: t}, nil
}

// Install implements [iptables.Backend].
func (t *Twin) Install(r iptables.Rules) error {
	t.rules, t.present = r, true
	for name, keys := range staticElements(r) {
		t.elements[name] = map[string]time.Time{}
		for _, k := range keys {
			t.elements[name][string(k)] = time.Time{}
		}
	}
	for _, f := range nfnl.Families {
		for key := range t.elements[liveSet.instance(f)] {
			if _, stays := addrIn(r.Plan.Addresses(), key); !stays {
				delete(t.elements[liveSet.instance(f)], key)
			}
		}
	}
	return nil
}

func addrIn(addrs []netip.Addr, key string) (netip.Addr, bool) {
	for _, a := range addrs {
		if string(addrKey(a)) == key {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// Attach implements [iptables.Backend].
func (t *Twin) Attach() error {
	for _, a := range t.rules.Plan.Addresses() {
		t.put(liveSet.instance(iptables.FamilyOf(a)), string(addrKey(a)), time.Time{})
	}
	return nil
}

// Detach implements [iptables.Backend].
func (t *Twin) Detach(held []iptables.Connection) error {
	t.putConnections(heldSet, held)
	for _, f := range nfnl.Families {
		delete(t.elements, liveSet.instance(f))
		delete(t.elements, leaseSet.instance(f))
	}
	for _, a := range t.rules.Plan.Addresses() {
		t.put(drainSet.instance(iptables.FamilyOf(a)), string(addrKey(a)), time.Time{})
	}
	return nil
}

// EndLease implements [iptables.Backend].
func (t *Twin) EndLease(addrs []netip.Addr) error {
	for _, a := range addrs {
		delete(t.elements[liveSet.instance(iptables.FamilyOf(a))], string(addrKey(a)))
	}
	return nil
}

// Exempt implements [iptables.Backend].
func (t *Twin) Exempt(conns []iptables.Connection) error {
	t.putConnections(exemptSet, conns)
	return nil
}

func (t *Twin) putConnections(kind setKind, conns []iptables.Connection) {
	for _, c := range conns {
		t.put(kind.instance(iptables.FamilyOf(c.Listen.Addr())),
			string(tupleKey(iptables.TCP, c.Client, c.Listen)), time.Now().Add(connectionTimeout))
	}
}

// ExemptOnly implements [iptables.Backend].
func (t *Twin) ExemptOnly(conns []iptables.Connection) error {
	for _, f := range nfnl.Families {
		delete(t.elements, exemptSet.instance(f))
	}
	return t.Exempt(conns)
}

// Lost implements [iptables.Devices]; a twin loses nothing.
func (*Twin) Lost(time.Time) ([]string, error) { return nil, nil }

// Quarantine implements [iptables.Devices].
func (t *Twin) Quarantine(device string, d time.Duration) error {
	t.put(asideSet.name, string(nfnl.DeviceKey(device)), time.Now().Add(d))
	return nil
}

// Remove implements [iptables.Backend].
func (t *Twin) Remove() error {
	t.present = false
	clear(t.elements)
	return nil
}

// Present implements [iptables.Backend].
func (t *Twin) Present() (bool, error) { return t.present, nil }

// Live implements [iptables.Backend].
func (t *Twin) Live() ([]netip.Addr, error) {
	var out []netip.Addr
	for _, a := range t.rules.Plan.Addresses() {
		if t.contains(liveSet.instance(iptables.FamilyOf(a)), string(addrKey(a))) {
			out = append(out, a)
		}
	}
	return out, nil
}

// Counters implements [iptables.Backend].
func (t *Twin) Counters() (iptables.Counters, error) { return t.counters, nil }

func (t *Twin) put(set, key string, expires time.Time) {
	if t.elements[set] == nil {
		t.elements[set] = map[string]time.Time{}
	}
	t.elements[set][key] = expires
}

func (t *Twin) contains(set, key string) bool {
	expires, ok := t.elements[set][key]
	return ok && (expires.IsZero() || time.Now().Before(expires))
}

// Trace sends a packet through the rules of one hook.
func (t *Twin) Trace(h iptables.Hook, p tracetest.Packet) Result {
	if !t.present {
		return Result{}
	}
	walk := tracer{twin: t, hook: h}
	all := map[string]chain{}
	var current chain
	for _, c := range t.variant(t.rules.Plan.Lease, t.rules.Plan.DryRun) {
		all[c.name] = c
		if c.hook != nil && *c.hook == h {
			current = c
		}
	}
chains:
	for {
	rules:
		for _, r := range current.rules {
			for _, s := range r {
				o := s.(traced).run(&walk, p)
				switch {
				case o.mismatch:
					continue rules
				case o.jump != "":
					current = all[o.jump]
					continue chains
				case o.verdict != "":
					walk.result.Dropped = o.verdict == "drop"
					return walk.result
				}
			}
		}
		return walk.result
	}
}

// traced is a statement of which the tracer knows what it does to a packet.
type traced interface {
	run(t *tracer, p tracetest.Packet) step
}

// step is what a statement does to the walk of a packet through a rule.
type step struct {
	mismatch bool   // the rule does not apply
	verdict  string // accept, drop, or empty
	jump     string // goto this chain
}

// tracer is one walk of a packet.
type tracer struct {
	twin   *Twin
	hook   iptables.Hook
	result Result
}

// key builds the key that the kernel would look up, or reports that a packet
// of another family is meant.
func (t *tracer) key(f iptables.Family, fields []field, p tracetest.Packet) (string, bool) {
	if fields[0] != inDevice && iptables.FamilyOf(p.Dst.Addr()) != f {
		return "", false
	}
	var key []byte
	for _, fd := range fields {
		switch fd {
		case saddr:
			key = append(key, addrKey(p.Src.Addr())...)
		case daddr:
			key = append(key, addrKey(p.Dst.Addr())...)
		case sport:
			key = append(key, byte(p.Src.Port()>>8), byte(p.Src.Port()), 0, 0)
		case dport:
			key = append(key, byte(p.Dst.Port()>>8), byte(p.Dst.Port()), 0, 0)
		case l4proto:
			key = append(key, byte(p.Proto), 0, 0, 0)
		case inDevice:
			key = append(key, nfnl.DeviceKey(p.Device)...)
		}
	}
	return string(key), true
}

func proceed(ok bool) step { return step{mismatch: !ok} }

func (s in) run(t *tracer, p tracetest.Packet) step {
	key, ok := t.key(s.family, s.fields, p)
	if !ok {
		return proceed(false)
	}
	if s.set.ranges {
		found := false
		for _, r := range t.twin.rules.Plan.Sources {
			found = found || r.Contains(p.Src.Addr())
		}
		return proceed(found != s.not)
	}
	return proceed(t.twin.contains(s.set.instance(s.family), key) != s.not)
}

func (s put) run(t *tracer, p tracetest.Packet) step {
	key, ok := t.key(s.family, s.fields, p)
	if !ok {
		return proceed(false)
	}
	set := s.set.instance(s.family)
	if s.refresh || !t.twin.contains(set, key) {
		t.twin.put(set, key, time.Now().Add(s.timeout))
	}
	return step{}
}

func (s take) run(t *tracer, p tracetest.Packet) step {
	key, ok := t.key(s.family, s.fields, p)
	if ok {
		delete(t.twin.elements[s.set.instance(s.family)], key)
	}
	return proceed(ok)
}

func (s onLo) run(t *tracer, p tracetest.Packet) step {
	return proceed(p.Device == "lo" && t.hook == iptables.Hook(s))
}

// The packets of a trace are whole, to us, and from where their source is.
func (s whole) run(_ *tracer, p tracetest.Packet) step {
	return proceed(iptables.FamilyOf(p.Dst.Addr()) == iptables.Family(s))
}
func (toUs) run(*tracer, tracetest.Packet) step       { return step{} }
func (routesBack) run(*tracer, tracetest.Packet) step { return step{} }

func (s ofClass) run(_ *tracer, p tracetest.Packet) step {
	return proceed(p.Proto == s.proto && iptables.FamilyOf(p.Dst.Addr()) == s.family)
}

func (s tcpFlags) run(_ *tracer, p tracetest.Packet) step {
	flags := byte(0)
	for _, f := range []struct {
		set bool
		bit byte
	}{{p.FIN, tcpFIN}, {p.SYN, tcpSYN}, {p.RST, tcpRST}, {p.ACK, tcpACK}} {
		if f.set {
			flags |= f.bit
		}
	}
	return proceed(p.Proto == iptables.TCP && (flags&s.mask == s.want) != s.any)
}

func (notrack) run(t *tracer, _ tracetest.Packet) step {
	t.result.Untracked = true
	return step{}
}

func (accept) run(*tracer, tracetest.Packet) step      { return step{verdict: "accept"} }
func (drop) run(*tracer, tracetest.Packet) step        { return step{verdict: "drop"} }
func (s goToChain) run(*tracer, tracetest.Packet) step { return step{jump: string(s)} }

func (s count) run(t *tracer, _ tracetest.Packet) step {
	t.twin.counters[iptables.CounterKey(s)]++
	return step{}
}
