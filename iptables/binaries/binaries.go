// Package binaries is the iptables backend: NOTRACK rules in the raw table, put
// there by iptables-restore, of either variant (legacy or nft).
//
// Nothing binds such rules to a process, and a killed one leaves them behind.
// So the query rules untrack only what goes to an address of which the kernel
// has seen, within the last second, this instance answer its own lease probe:
// xt_recent keeps that list in the packet path. What is left of a dead process
// is inert, and the next start takes it away.
//
// TCP connections, those that are tracked when we attach and those that we hold
// when we detach, are noted by rules in sets of ip_set. What a kernel lacks is
// said by [Backend.Lost].
package binaries

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/owner"
)

// Lease is the only one there is: xt_recent counts whole seconds, and clients
// give up after five.
const Lease = time.Second

// format changes when what the chains hold does.
const format = 2

// Config says which programs are run. They run in the network namespace of the
// calling thread.
type Config struct {
	// Variant of the programs; the zero value chooses.
	Variant Variant

	// Count is called for every failure of a program that is tried again or
	// given up: "iptables_lock" where the lock was not to be had, "iptables"
	// for anything else. It may be nil.
	Count func(errorType string)

	lease   time.Duration // of tests
	lacking features      // taken for missing, by tests
	room    uint32        // in each set; of tests
}

// Backend implements [iptables.Backend] with chains in the raw tables. Its
// methods may be called from any goroutine.
type Backend struct {
	cfg      Config
	programs map[iptables.Family]*program
	missing  error // why a family has no program

	mu       sync.Mutex
	rs       ruleset
	probed   bool
	setup    bool
	families []iptables.Family            // that have chains of ours
	own      map[iptables.Family][]string // the chains as they were read after the last change
	total    iptables.Counters            // of chains that were removed or emptied
	last     iptables.Counters            // what the chains said when they were last read
}

var _ iptables.Backend = (*Backend)(nil)

// New looks for the programs; the kernel is not changed. It fails with an
// [iptables.UnsupportedError] where there are none.
func New(cfg Config) (*Backend, error) {
	programs, err := findPrograms(cfg.Variant)
	if len(programs) == 0 {
		return nil, fmt.Errorf("iptables: %w", err)
	}
	var id [4]byte
	if _, err := rand.Read(id[:]); err != nil {
		return nil, err
	}
	if cfg.lease == 0 {
		cfg.lease = Lease
	}
	if cfg.room == 0 {
		cfg.room = setSize
	}
	if cfg.Count == nil {
		cfg.Count = func(string) {}
	}
	return &Backend{
		cfg: cfg, programs: programs, missing: err,
		rs:  ruleset{id: hex.EncodeToString(id[:]), mark: owner.Self(format), lease: cfg.lease},
		own: map[iptables.Family][]string{}, total: iptables.Counters{}, last: iptables.Counters{},
	}, nil
}

// Name returns "iptables".
func (*Backend) Name() string { return "iptables" }

// Table is the name under which the chains of this instance are found.
func (b *Backend) Table() string { return chainPrefix + b.rs.id }

// Owned reports false: the kernel does not remove these rules when the process
// dies; the lease makes them inert.
func (*Backend) Owned() bool { return false }

// Variant is that of the programs, as `iptables --version` says.
func (b *Backend) Variant() Variant {
	for _, f := range families {
		if p := b.programs[f]; p != nil {
			return p.variant
		}
	}
	return Auto
}

// Capabilities implements [iptables.Backend].
func (b *Backend) Capabilities() (iptables.Capabilities, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	c := iptables.Capabilities{Variant: string(b.Variant()), Watch: b.watch}
	if err := b.probe(); err != nil {
		return c, err
	}
	c.NoLeases = !b.rs.features.leases()
	c.Lacks = b.rs.features.lacks()
	return c, nil
}

// lacks names the guarantees that a kernel's lack of matches takes away, one
// sentence each.
func (f features) lacks() (out []string) {
	if !f.leases() {
		out = append(out, "this kernel has neither xt_recent nor ip_set with xt_set, so that nothing ends the query rules of a process that was killed or hangs: until it is back, its node has no DNS (load one of them with `modprobe xt_recent` or `modprobe ip_set xt_set`)")
	}
	if !f.ipset {
		out = append(out, "this kernel has no ip_set with xt_set, so that rules cannot note TCP connections: one that begins in the moment of attaching, or ends its handshake in that of detaching, may be reset (load them with `modprobe ip_set ip_set_hash_ipportip xt_set`)")
	}
	return out
}

// probe finds out which matches the kernel has, once. Others' programs may hold the
// lock; then the error matches [iptables.ErrBusy], and it can be called again.
func (b *Backend) probe() error {
	if b.probed {
		return nil
	}
	var p *program
	for _, f := range families {
		if p = b.programs[f]; p != nil {
			break
		}
	}
	has, err := p.probe(b.rs.id)
	if err != nil {
		return b.counted(err)
	}
	has.recent = has.recent && !b.cfg.lacking.recent
	has.ipset = has.ipset && !b.cfg.lacking.ipset
	b.rs.features, b.probed = has, true
	return nil
}

// counted counts a failure.
func (b *Backend) counted(err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, iptables.ErrBusy) {
		b.cfg.Count("iptables_lock")
	} else {
		b.cfg.Count("iptables")
	}
	return fmt.Errorf("iptables: %w", err)
}

// checkLease refuses what these rules cannot do.
func (b *Backend) checkLease(p iptables.Plan) error {
	leases := b.rs.features.leases()
	switch {
	case p.DryRun, leases && p.Lease == b.rs.lease, !leases && p.Lease == 0:
		return nil
	case !leases:
		return errors.New("this kernel has neither xt_recent nor ip_set, so that there can be no lease")
	}
	return fmt.Errorf("lease %s: with backend iptables the lease is %s and nothing else: xt_recent counts whole seconds, and only the lease ends the rules of a killed process", p.Lease, b.rs.lease)
}

// Install implements [iptables.Backend], in one transaction for each family.
func (b *Backend) Install(r iptables.Rules) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.probe(); err != nil {
		return err
	}
	if err := b.checkLease(r.Plan); err != nil {
		return err
	}
	former := b.rs
	b.rs.rules, b.rs.draining, b.rs.held = r, false, nil
	err := b.apply()
	if err != nil {
		b.rs = former
		return b.counted(err)
	}
	if b.rs.features.ipset {
		err = withSets(func(s *sets) error {
			for _, f := range b.families {
				if err := s.flush(b.rs.drainSet(f)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return errors.Join(err, b.prune(former.rules))
}

// prune takes addresses that are no longer in the plan out of the list.
func (b *Backend) prune(former iptables.Rules) error {
	return b.endLease(slices.DeleteFunc(former.Plan.Addresses(), func(a netip.Addr) bool {
		return slices.Contains(b.rs.rules.Plan.Addresses(), a)
	}))
}

func (b *Backend) endLease(addrs []netip.Addr) error {
	var errs []error
	for _, a := range addrs {
		f := iptables.FamilyOf(a)
		switch live := b.rs.liveSet(f); {
		case !slices.Contains(b.families, f):
		case b.rs.features.recent:
			errs = append(errs, writeRecent(live, "-"+a.String()))
		case b.rs.features.ipset:
			errs = append(errs, withSets(func(s *sets) error { return s.remove(live, a) }))
		}
	}
	return errors.Join(errs...)
}

// EndLease implements [iptables.Backend]. It needs no lock.
func (b *Backend) EndLease(addrs []netip.Addr) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.counted(b.endLease(addrs))
}

// apply makes the chains those of the ruleset. On an error both families are as
// they were, as far as the lock can be had for that.
func (b *Backend) apply() error {
	wanted := b.rs.families()
	for _, f := range wanted {
		if b.programs[f] == nil {
			return b.missing
		}
	}
	var done []iptables.Family
	for _, f := range families {
		had := slices.Contains(b.families, f)
		var err error
		switch {
		case slices.Contains(wanted, f):
			err = b.applyFamily(f, had)
		case had:
			err = b.removeFamily(f, quickWait)
		default:
			continue
		}
		if err != nil {
			return errors.Join(err, b.undo(append(done, f)))
		}
		done = append(done, f)
	}
	b.families, b.setup = wanted, true
	return nil
}

// undo takes the families away that a failed change has begun with.
func (b *Backend) undo(begun []iptables.Family) error {
	var errs []error
	for _, f := range begun {
		if !slices.Contains(b.families, f) {
			errs = append(errs, b.removeFamily(f, quickWait))
		}
	}
	return errors.Join(errs...)
}

func (b *Backend) createSets(f iptables.Family) error {
	if !b.rs.features.ipset {
		return nil
	}
	return withSets(func(s *sets) error {
		errs := []error{s.create(b.rs.drainSet(f), setOfAddresses, f, 0, b.cfg.room)}
		for _, set := range b.rs.connectionSets(f) {
			errs = append(errs, s.create(set.name, setOfTuples, f, set.timeout, b.cfg.room))
		}
		if !b.rs.features.recent {
			errs = append(errs, s.create(b.rs.liveSet(f), setOfAddresses, f, b.rs.lease, b.cfg.room))
		}
		return errors.Join(errs...)
	})
}

func (b *Backend) applyFamily(f iptables.Family, had bool) error {
	p := b.programs[f]
	table, err := p.table()
	if err != nil {
		return err
	}
	if err := b.createSets(f); err != nil {
		return err
	}
	if err := p.restore(b.transaction(f, table), quickWait); err != nil {
		return err
	}
	if !had {
		// Sets outlive the rules that named them.
		if err := removeStaleSets(table.stale()); err != nil {
			return err
		}
	}
	if table, err = p.table(); err != nil {
		return err
	}
	b.own[f] = table.own(b.rs.id)
	return nil
}

// transaction are the lines that make a table hold our chains, first where they
// belong, and those of dead instances no more.
func (b *Backend) transaction(f iptables.Family, table savedTable) (lines []string) {
	stale := table.stale()
	for _, name := range chainNames {
		chain := b.rs.chain(name)
		if slices.Contains(countingChains, name) && slices.Contains(table.chains, chain) && len(table.rules[chain]) > 0 {
			continue
		}
		lines = append(lines, ":"+chain+" - [0:0]")
	}
	rules := b.rs.chains(f)
	for _, name := range chainNames {
		chain := b.rs.chain(name)
		if !slices.Contains(lines, ":"+chain+" - [0:0]") {
			continue
		}
		for _, r := range rules[name] {
			lines = append(lines, "-A "+chain+" "+r)
		}
	}
	for _, base := range []string{preroutingChain, outputChain} {
		before, inPlace := table.position(base, b.rs.id, stale)
		if inPlace {
			continue
		}
		for _, r := range table.rules[base] {
			if leadsTo(r.text, b.rs.id) {
				lines = append(lines, "-D "+base+" "+r.text)
			}
		}
		lines = append(lines, fmt.Sprintf("-I %s %d %s", base, before+1, b.rs.jump(base)))
	}
	// Last, since the rules above count what is still there.
	for _, id := range stale {
		lines = append(lines, table.removal(id)...)
	}
	return lines
}

// table reads the raw table.
func (p *program) table() (savedTable, error) {
	lines, err := p.save("raw")
	if err != nil {
		return savedTable{}, err
	}
	return parseSaved(lines), nil
}

// removeStaleSets destroys the sets of dead instances.
func removeStaleSets(ids []string) error {
	if len(ids) == 0 {
		return nil
	}
	return withSets(func(s *sets) error {
		var errs []error
		for _, id := range ids {
			errs = append(errs, ifAny(s.destroyAll(id)))
		}
		return errors.Join(errs...)
	})
}

// destroyAll destroys the sets of an instance that no rule names any more; the
// others go with the rules of the other family.
func (s *sets) destroyAll(id string) error {
	names, err := s.names(setPrefix + id + "-")
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		if err := s.destroy(name); err != nil && !errors.Is(err, ipsetErrBusy) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Attach implements [iptables.Backend]: for one lease, where there is one.
func (b *Backend) Attach() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.setup {
		return errors.New("iptables: untrack queries: no plan is installed")
	}
	switch {
	case b.rs.rules.Plan.DryRun:
		return nil
	case b.rs.features.recent:
		for _, a := range b.rs.rules.Plan.Addresses() {
			if err := writeRecent(b.rs.liveSet(iptables.FamilyOf(a)), "+"+a.String()); err != nil {
				return b.counted(err)
			}
		}
		return nil
	case b.rs.features.ipset:
		return b.counted(withSets(func(s *sets) error {
			for _, a := range b.rs.rules.Plan.Addresses() {
				if err := s.add(b.rs.liveSet(iptables.FamilyOf(a)), element{addr: a, timeout: b.rs.lease}); err != nil {
					return err
				}
			}
			return nil
		}))
	}
	return b.change(func(rs *ruleset) { rs.attached = true })
}

// change changes what stands in the rules themselves.
func (b *Backend) change(edit func(*ruleset)) error {
	former := b.rs
	edit(&b.rs)
	err := b.apply()
	if err != nil {
		b.rs = former
	}
	return b.counted(err)
}

// Detach implements [iptables.Backend]. Where the kernel has ip_set it needs no
// lock and waits for nobody.
func (b *Backend) Detach(held []iptables.Connection) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.setup || b.rs.rules.Plan.DryRun {
		return nil
	}
	addrs := b.rs.rules.Plan.Addresses()
	if b.rs.features.ipset {
		err := withSets(func(s *sets) error {
			errs := []error{b.give(s, held, b.rs.heldSet)}
			for _, a := range addrs {
				errs = append(errs, s.add(b.rs.drainSet(iptables.FamilyOf(a)), element{addr: a}))
			}
			return errors.Join(errs...)
		})
		return b.counted(errors.Join(err, b.end()))
	}
	err := b.change(func(rs *ruleset) {
		rs.attached, rs.draining, rs.held = false, true, slices.Clone(held)
		rs.rules.Leases = nil
	})
	return errors.Join(err, b.counted(b.end()))
}

// end ends the lease of all addresses at once.
func (b *Backend) end() error {
	var errs []error
	for _, f := range b.families {
		switch {
		case b.rs.features.recent:
			errs = append(errs, writeRecent(b.rs.liveSet(f), "/"))
		case b.rs.features.ipset:
			errs = append(errs, withSets(func(s *sets) error { return s.flush(b.rs.liveSet(f)) }))
		}
	}
	return errors.Join(errs...)
}

// Exempt implements [iptables.Backend].
func (b *Backend) Exempt(conns []iptables.Connection) error { return b.exempt(conns, false) }

// ExemptOnly implements [iptables.Backend].
func (b *Backend) ExemptOnly(conns []iptables.Connection) error { return b.exempt(conns, true) }

func (b *Backend) exempt(conns []iptables.Connection, only bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.setup {
		return errors.New("iptables: exempt connections: no plan is installed")
	}
	if !b.rs.features.ipset {
		if len(conns) == 0 && len(b.rs.exempt) == 0 {
			return nil
		}
		return b.change(func(rs *ruleset) { rs.exempt = slices.Clone(conns) })
	}
	return b.counted(withSets(func(s *sets) error {
		if only {
			if err := b.flush(s, b.rs.exemptSet); err != nil {
				return err
			}
		}
		return b.give(s, conns, b.rs.exemptSet)
	}))
}

func (b *Backend) flush(s *sets, set func(iptables.Family) string) error {
	for _, f := range b.families {
		if err := s.flush(set(f)); err != nil {
			return err
		}
	}
	return nil
}

// give puts connections into the sets. Those that packets have filled hold nothing
// that is worth more than connections that are known; of more than there is room
// for as many are given as fit.
func (b *Backend) give(s *sets, conns []iptables.Connection, set func(iptables.Family) string) error {
	flushed := false
	for i := 0; i < len(conns); i++ {
		err := s.add(set(iptables.FamilyOf(conns[i].Listen.Addr())), tupleOf(conns[i]))
		switch {
		case errors.Is(err, ipsetErrFull) && !flushed:
			if err := b.flush(s, set); err != nil {
				return err
			}
			flushed, i = true, -1
		case errors.Is(err, ipsetErrFull):
			// the other family's set may have room
		case err != nil:
			return err
		}
	}
	return nil
}

// Remove implements [iptables.Backend].
func (b *Backend) Remove() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.setup {
		return nil
	}
	errs := []error{b.end()}
	if all, err := b.counters(); err == nil {
		b.total, b.last = all, iptables.Counters{}
	}
	for _, f := range b.families {
		errs = append(errs, b.removeFamily(f, lastWait))
	}
	b.setup, b.families = false, nil
	b.rs.attached, b.rs.draining, b.rs.exempt, b.rs.held = false, false, nil, nil
	return b.counted(errors.Join(errs...))
}

func (b *Backend) removeFamily(f iptables.Family, wait time.Duration) error {
	err := b.programs[f].removeInstance(b.rs.id, wait)
	if err != nil || !b.rs.features.ipset {
		return err
	}
	return withSets(func(s *sets) error {
		errs := []error{s.destroy(b.rs.liveSet(f)), s.destroy(b.rs.drainSet(f))}
		for _, set := range b.rs.connectionSets(f) {
			errs = append(errs, s.destroy(set.name))
		}
		return errors.Join(errs...)
	})
}

// removeInstance takes the chains of an instance out of the raw table.
func (p *program) removeInstance(id string, wait time.Duration) error {
	table, err := p.table()
	if err != nil {
		return err
	}
	lines := table.removal(id)
	if len(lines) == 0 {
		return nil
	}
	return p.restore(lines, wait)
}

// Present implements [iptables.Backend]: everything is as it was after the last
// change, and nothing stands before it.
func (b *Backend) Present() (bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.setup {
		return false, nil
	}
	for _, f := range b.families {
		table, err := b.programs[f].table()
		if err != nil {
			return false, b.counted(err)
		}
		if !slices.Equal(table.own(b.rs.id), b.own[f]) {
			return false, nil
		}
		for _, base := range []string{preroutingChain, outputChain} {
			if _, inPlace := table.position(base, b.rs.id, nil); !inPlace {
				return false, nil
			}
		}
	}
	return true, nil
}

// Live implements [iptables.Backend].
func (b *Backend) Live() ([]netip.Addr, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.setup {
		return nil, nil
	}
	if !b.rs.features.leases() {
		if !b.rs.attached {
			return nil, nil
		}
		return b.rs.rules.Plan.Addresses(), nil
	}
	var out []netip.Addr
	for _, f := range b.families {
		live, err := liveIn(b.rs.liveSet(f), f, b.rs.features.recent, b.rs.lease)
		if err != nil {
			return nil, err
		}
		out = append(out, live...)
	}
	return out, nil
}

// liveIn reads the addresses whose lease has not run out.
func liveIn(name string, f iptables.Family, recent bool, lease time.Duration) (out []netip.Addr, err error) {
	if recent {
		return liveInRecent(name, f == iptables.IPv6, lease)
	}
	err = withSets(func(s *sets) error {
		elements, err := s.list(name)
		for _, e := range elements {
			out = append(out, e.addr)
		}
		return err
	})
	return out, err
}

// Counters implements [iptables.Backend].
func (b *Backend) Counters() (iptables.Counters, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.counters()
}

func (b *Backend) counters() (iptables.Counters, error) {
	now := iptables.Counters{}
	for _, f := range b.families {
		table, err := b.programs[f].table()
		if err != nil {
			return nil, b.counted(err)
		}
		table.count(b.rs.id, f, now)
	}
	out := iptables.Counters{}
	for _, k := range iptables.CounterKeys() {
		if now[k] < b.last[k] {
			b.total[k] += b.last[k] // others have emptied the chains
		}
		out[k] = b.total[k] + now[k]
	}
	b.last = now
	return out, nil
}

// count adds what an instance's counting chains have counted.
func (t savedTable) count(id string, f iptables.Family, out iptables.Counters) {
	for chain, d := range map[string]iptables.Direction{queriesChain: iptables.Query, responsesChain: iptables.Response} {
		for _, r := range t.rules[chainPrefix+id+"-"+chain] {
			for _, p := range []iptables.Proto{iptables.UDP, iptables.TCP} {
				if strings.HasPrefix(r.text+" ", "-p "+p.String()+" ") {
					out[iptables.CounterKey{Direction: d, Family: f, Proto: p}] += r.packets
				}
			}
		}
	}
}
