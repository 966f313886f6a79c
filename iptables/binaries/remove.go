package binaries

import (
	"errors"
	"time"

	"github.com/trackless-dns/trackless/iptables"
)

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

// removeInstance removes the chains of an instance from the raw table.
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
