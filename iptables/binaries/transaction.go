package binaries

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/trackless-dns/trackless/iptables"
)

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

// prune ends the lease of addresses that are no longer in the plan.
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

// apply makes the chains equal to the ruleset. On an error it restores both families, if
// it gets the lock.
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

// undo removes the chains of families that had none before a change that failed.
func (b *Backend) undo(changed []iptables.Family) error {
	var errs []error
	for _, f := range changed {
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
		// Sets stay when the rules that name them are deleted.
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

// transaction returns the lines that put our chains into a table, with our jumps first,
// and remove the chains of dead instances.
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
	// Last: the numbers in the lines above count these rules, too.
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

// destroyAll destroys the sets of an instance, except those that rules still name:
// they are destroyed with the rules of the other family.
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

// Attach implements [iptables.Backend]. With leases it lasts for one lease.
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

// change changes the rules.
func (b *Backend) change(edit func(*ruleset)) error {
	former := b.rs
	edit(&b.rs)
	err := b.apply()
	if err != nil {
		b.rs = former
	}
	return b.counted(err)
}

// Detach implements [iptables.Backend]. With ip_set it needs no lock and waits for no
// other program.
func (b *Backend) Detach(held []iptables.Connection) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.setup || b.rs.rules.Plan.DryRun {
		return nil
	}
	addrs := b.rs.rules.Plan.Addresses()
	if b.rs.features.ipset {
		err := withSets(func(s *sets) error {
			errs := []error{b.addAll(s, held, b.rs.heldSet)}
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
