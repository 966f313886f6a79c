package binaries

import (
	"context"
	"slices"
	"time"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/legacy"
)

// watchInterval is the time between two checks of legacy tables. The kernel does not
// announce their changes, but a check of their shape is one system call. The next sync
// finds changes that keep the shape.
const watchInterval = 500 * time.Millisecond

// watch calls changed when other programs have changed the legacy raw tables that have
// our rules, until the context ends. The kernel announces changes of iptables-nft, see
// package nftables.
func (b *Backend) watch(ctx context.Context, changed func()) {
	ticker := time.NewTicker(watchInterval)
	defer ticker.Stop()
	known := map[iptables.Family]legacy.Shape{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		for _, f := range b.watched() {
			shape, err := legacy.ShapeOf(f, "raw")
			if err != nil {
				continue // the next sync reports the error
			}
			if last, ok := known[f]; ok && last != shape {
				changed()
			}
			known[f] = shape
		}
	}
}

// watched returns the families whose legacy tables have rules of ours. It does not wait
// for a change in progress.
func (b *Backend) watched() []iptables.Family {
	if !b.mu.TryLock() {
		return nil
	}
	defer b.mu.Unlock()
	// The request would make a table that does not exist.
	return slices.DeleteFunc(slices.Clone(b.families), func(f iptables.Family) bool { return b.programs[f].variant != Legacy })
}
