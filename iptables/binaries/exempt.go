package binaries

import (
	"errors"
	"slices"

	"github.com/trackless-dns/trackless/iptables"
)

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
		return b.addAll(s, conns, b.rs.exemptSet)
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

// addAll puts connections into the sets. It empties a full set first: known connections
// are worth more than those that packets have put there. If there are more connections
// than room, it adds as many as fit.
func (b *Backend) addAll(s *sets, conns []iptables.Connection, set func(iptables.Family) string) error {
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
