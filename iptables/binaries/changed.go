package binaries

import (
	"slices"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/legacy"
)

// changed reports whether other programs have changed the legacy raw tables that have our
// rules. The kernel does not announce their changes, but a check of their shape is one
// system call. The next sync finds changes that keep the shape. The kernel announces
// changes of iptables-nft, see package nftables.
func (b *Backend) changed() (changed bool) {
	if !b.mu.TryLock() {
		return false // a change of ours is in progress
	}
	defer b.mu.Unlock()
	for _, f := range b.watched() {
		shape, err := legacy.ShapeOf(f, "raw")
		if err != nil {
			continue // the next sync reports the error
		}
		if last, ok := b.shapes[f]; ok && last != shape {
			changed = true
		}
		b.shapes[f] = shape
	}
	return changed
}

// watched returns the families whose legacy tables have rules of ours.
func (b *Backend) watched() []iptables.Family {
	// The request would make a table that does not exist.
	return slices.DeleteFunc(slices.Clone(b.families), func(f iptables.Family) bool { return b.programs[f].variant != Legacy })
}
