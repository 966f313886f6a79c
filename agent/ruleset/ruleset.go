// Package ruleset chooses the backend that changes the node, watches its rules, and
// takes away those of instances and predecessors that are gone.
package ruleset

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/trackless-dns/trackless/internal/logger"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/backends"
	"github.com/trackless-dns/trackless/iptables/binaries"
	"github.com/trackless-dns/trackless/iptables/nftables"
	"github.com/trackless-dns/trackless/iptables/predecessor"
)

// backends that `backend` takes; auto chooses.
const (
	Auto     = "auto"
	NFTables = "nftables"
	IPTables = "iptables"
)

// openBackend opens a backend; tests make it fail.
var openBackend = func(k backends.Kind, o backends.Options) (iptables.Backend, error) { return k.Open(o) }

// Choice is what a Corefile says of the backend.
type Choice struct {
	Name    string
	Variant binaries.Variant // of the programs of backend iptables
}

// String gives the words of the Corefile.
func (c Choice) String() string { return strings.TrimSpace(c.Name + " " + string(c.Variant)) }

// Open makes the backend that is asked for and says why it is that
// one. It changes nothing in the kernel. Failures of programs are counted by count.
func (c Choice) Open(count func(errorType string)) (b iptables.Backend, why string, err error) {
	options := backends.Options{Variant: c.Variant, Count: count}
	if kind, named := backends.Named(c.Name); named {
		b, err := openBackend(kind, options)
		return b, "the Corefile says so", err
	}
	var failed []error
	for _, kind := range backends.All() {
		b, err := openBackend(kind, options)
		if err == nil {
			return b, cmp.Or(why, "this kernel has "+kind.Needs), nil
		}
		failed = append(failed, err)
		var unsupported *iptables.UnsupportedError
		if !errors.As(err, &unsupported) {
			break
		}
		why = "this kernel has no " + unsupported.Feature
	}
	if len(failed) == 1 {
		return nil, "", failed[0]
	}
	return nil, "", fmt.Errorf("neither backend can be used: %w; %w", failed[0], failed[1])
}

// Serves reports whether a backend is one that is asked for.
func (c Choice) Serves(b iptables.Backend) bool {
	if c.Name != Auto {
		can, _ := b.Capabilities() // Variant takes no probe
		return c.Name == b.Name() && (c.Variant == binaries.Auto || string(c.Variant) == can.Variant)
	}
	// auto keeps a backend only where there is nothing better.
	for _, kind := range backends.All() {
		if kind.Name == b.Name() {
			break
		}
		if _, err := openBackend(kind, backends.Options{Variant: c.Variant}); err == nil {
			return false
		}
	}
	return true
}

// Fit adapts the plan to what the backend can do on this kernel, and says what
// is lost.
func Fit(plan *iptables.Plan, b iptables.Backend, log logger.Logger) error {
	can, err := b.Capabilities()
	if err != nil {
		if errors.Is(err, iptables.ErrBusy) {
			return nil // Install finds out
		}
		return err
	}
	if plan.Lease == 0 && !plan.DryRun && can.NeedsLease != "" {
		return fmt.Errorf("lease off: %s; drop the option", can.NeedsLease)
	}
	for _, lacks := range can.Lacks {
		log.Warningf("%s", lacks)
	}
	if can.NoLeases {
		plan.Lease = 0
	}
	return nil
}

// Announce says once which backend was chosen, why, and what it cannot promise.
func Announce(b iptables.Backend, why string, log logger.Logger) {
	switch can, _ := b.Capabilities(); {
	case can.Variant != "":
		log.Infof("backend %s (%s binaries), since %s: chains %s-* in the raw tables; after a SIGKILL the lease ends the rules within a second, and the chains stay, inert, until the next start", b.Name(), can.Variant, why, b.Table())
	case b.Owned():
		log.Infof("backend %s, since %s: table inet %s, bound to the life of this process", b.Name(), why, b.Table())
	default:
		log.Warningf("backend %s, since %s: table inet %s. This kernel has no owned tables (they came with Linux 5.12): after a SIGKILL the lease ends the rules, and the table stays until the next start",
			b.Name(), why, b.Table())
	}
}

// adoptInterval is the time between two looks for what a predecessor left.
const adoptInterval = time.Minute

// Adopter takes away what predecessors left: rules of dead instances, of any
// backend, and those of Kubernetes' node-cache, which puts its own back once a
// minute while it lives. A look runs up to a dozen programs, so it is not taken
// more often than that.
type Adopter struct {
	Log   logger.Logger
	Count func(errorType string) // counts that the xtables lock was not to be had

	last   time.Time
	failed string // said last
}

// Adopt implements [iptables.Kernel.Adopt].
func (a *Adopter) Adopt(addrs []netip.Addr) (changed bool, err error) {
	if time.Since(a.last) < adoptInterval {
		return false, nil
	}
	a.last = time.Now()
	changed, err = adoptAll(addrs, a.Log)
	said := a.failed
	if a.failed = ""; err == nil {
		return changed, nil
	}
	if a.failed = err.Error(); errors.Is(err, iptables.ErrBusy) {
		a.Count("iptables_lock")
		a.last = time.Time{} // at the next sync
	}
	if a.failed == said {
		err = nil
	}
	return changed, err
}

func adoptAll(addrs []netip.Addr, log logger.Logger) (changed bool, err error) {
	err = RemoveStale(log)
	n, adoptErr := predecessor.AdoptNodeCache(predecessor.Config{}, addrs)
	if n > 0 {
		log.Infof("%d rules that NodeLocal DNSCache left are gone; ours have taken their place", n)
	}
	return n > 0, errors.Join(err, adoptErr)
}

// RemoveStale takes away the rules of instances that are certainly dead.
func RemoveStale(log logger.Logger) error {
	stale, err := backends.RemoveStale()
	if len(stale) > 0 {
		log.Infof("the rules of %d dead instance(s) are gone: %s", len(stale), strings.Join(stale, ", "))
	}
	return err
}

// Watch announces changes of the node: those that the kernel tells
// of, and those of legacy tables, which have to be looked for.
type Watch struct {
	Changes chan iptables.Change
	cancel  context.CancelFunc
	kernel  *nftables.Watcher
	done    sync.WaitGroup
}

// StartWatch watches the rules of this network namespace.
func StartWatch() (*Watch, error) {
	kernel, err := nftables.Watch(nftables.Config{})
	if err != nil {
		return nil, err
	}
	return &Watch{Changes: kernel.Changes, kernel: kernel}, nil
}

// Follow looks at the tables of a backend that the kernel is silent about,
// instead of those of the one before.
func (w *Watch) Follow(b iptables.Backend) {
	w.unfollow()
	if b == nil {
		return
	}
	can, _ := b.Capabilities() // Watch takes no probe
	if can.Watch == nil {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	w.cancel = cancel
	w.done.Go(func() {
		can.Watch(ctx, func() {
			select {
			case w.Changes <- iptables.Change{}:
			default:
			}
		})
	})
}

func (w *Watch) unfollow() {
	if w.cancel != nil {
		w.cancel()
		w.done.Wait()
		w.cancel = nil
	}
}

// Close ends the watch.
func (w *Watch) Close() {
	w.unfollow()
	w.kernel.Close()
}

// Parse reads `backend NAME [legacy|nft]`.
func Parse(args []string) (Choice, error) {
	const usage = "use auto, nftables, iptables, iptables legacy or iptables nft"
	if len(args) == 0 {
		return Choice{}, fmt.Errorf("backend takes a value: %s", usage)
	}
	switch name := args[0]; {
	case len(args) == 1 && slices.Contains([]string{Auto, NFTables, IPTables}, name):
		return Choice{Name: name}, nil
	case len(args) == 2 && name == IPTables:
		for _, v := range []binaries.Variant{binaries.Legacy, binaries.NFT} {
			if args[1] == string(v) {
				return Choice{name, v}, nil
			}
		}
	}
	return Choice{}, fmt.Errorf("unknown backend %q: %s", strings.Join(args, " "), usage)
}
