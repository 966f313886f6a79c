package notrack

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coredns/coredns/plugin"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/binaries"
	"github.com/trackless-dns/trackless/iptables/nftables"
	"github.com/trackless-dns/trackless/iptables/predecessor"
)

// SetupErrors counts failures to change the node, under the name that node-cache
// gives them: "iptables_lock" for each time that the xtables lock was not to be
// had, "iptables" for other failures of its programs.
var SetupErrors = promauto.NewCounterVec(prometheus.CounterOpts{
	Namespace: plugin.Namespace,
	Subsystem: "nodecache",
	Name:      "setup_errors_total",
	Help:      "Counter of errors while the node and the Corefile were set up, by their kind.",
}, []string{"errortype"})

func init() {
	for _, t := range []string{"iptables", "iptables_lock"} {
		SetupErrors.WithLabelValues(t)
	}
}

// backends that `backend` takes; auto chooses.
const (
	backendAuto     = "auto"
	backendNFTables = "nftables"
	backendIPTables = "iptables"
)

// openNFT opens the nftables backend; tests make it fail.
var openNFT = func() (*nftables.Backend, error) { return nftables.New(nftables.Config{}) }

// inForce is the keeper's backend; nil without a keeper.
func (p *contract) inForce() iptables.Backend {
	k := p.keeper.Load()
	if k == nil {
		return nil
	}
	return k.Backend()
}

// choose makes the backend that a configuration asks for and says why it is that
// one. It changes nothing in the kernel.
func choose(config *configuration) (b iptables.Backend, why string, err error) {
	if config.backend == backendIPTables {
		b, err := newXTables(config)
		return b, "the Corefile says so", err
	}
	native, err := openNFT()
	var unsupported *iptables.UnsupportedError
	switch {
	case err == nil && config.backend == backendNFTables:
		return native, "the Corefile says so", nil
	case err == nil:
		return native, "this kernel has nf_tables", nil
	case config.backend == backendNFTables || !errors.As(err, &unsupported):
		return nil, "", err
	}
	b, otherErr := newXTables(config)
	if otherErr != nil {
		return nil, "", fmt.Errorf("neither backend can be used: %w; %w", err, otherErr)
	}
	return b, "this kernel has no " + unsupported.Feature, nil
}

func newXTables(config *configuration) (iptables.Backend, error) {
	b, err := binaries.New(binaries.Config{
		Variant: config.variant,
		Count:   func(errorType string) { SetupErrors.WithLabelValues(errorType).Inc() },
	})
	if err != nil {
		return nil, err // not b: a nil pointer in an interface is none
	}
	return b, nil
}

// serves reports whether a backend is one that the configuration asks for.
func (c *configuration) serves(b iptables.Backend) bool {
	if c.backend != backendAuto {
		can, _ := b.Capabilities() // Variant takes no probe
		return c.backend == b.Name() && (c.variant == binaries.Auto || string(c.variant) == can.Variant)
	}
	if b.Name() == backendNFTables {
		return true
	}
	// auto keeps iptables only where there is nothing better.
	_, err := openNFT()
	return err != nil
}

// fit adapts the plan to what the backend can do on this kernel, and says what
// is lost.
func (c *configuration) fit(b iptables.Backend) error {
	can, err := b.Capabilities()
	if err != nil {
		if errors.Is(err, iptables.ErrBusy) {
			return nil // Install finds out
		}
		return err
	}
	if c.plan.Lease == 0 && !c.plan.DryRun && can.NeedsLease != "" {
		return fmt.Errorf("lease off: %s; drop the option", can.NeedsLease)
	}
	for _, lacks := range can.Lacks {
		log.Warning(lacks)
	}
	if can.NoLeases {
		c.plan.Lease = 0
	}
	return nil
}

// announce says once which backend was chosen, why, and what it cannot promise.
func (p *contract) announce(b iptables.Backend, why string) {
	p.reasons.Store(b, why)
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

// adopter takes away what predecessors left: rules of dead instances, of either
// backend, and those of Kubernetes' node-cache, which puts its own back once a
// minute while it lives. A look runs up to a dozen programs, so it is not taken
// more often than that.
type adopter struct {
	last   time.Time
	failed string // said last
}

func (a *adopter) adopt(addrs []netip.Addr) (changed bool, err error) {
	if time.Since(a.last) < adoptInterval {
		return false, nil
	}
	a.last = time.Now()
	changed, err = adoptAll(addrs)
	said := a.failed
	if a.failed = ""; err == nil {
		return changed, nil
	}
	if a.failed = err.Error(); errors.Is(err, iptables.ErrBusy) {
		SetupErrors.WithLabelValues("iptables_lock").Inc()
		a.last = time.Time{} // at the next sync
	}
	if a.failed == said {
		err = nil
	}
	return changed, err
}

func adoptAll(addrs []netip.Addr) (changed bool, err error) {
	err = removeStale()
	n, adoptErr := predecessor.AdoptNodeCache(predecessor.Config{}, addrs)
	if n > 0 {
		log.Infof("%d rules that NodeLocal DNSCache left are gone; ours have taken their place", n)
	}
	return n > 0, errors.Join(err, adoptErr)
}

// removeStale takes away the rules of instances that are certainly dead.
func removeStale() error {
	stale, err := binaries.RemoveStale()
	tables, tablesErr := nftables.RemoveStale(nftables.Config{})
	if stale = append(stale, tables...); len(stale) > 0 {
		log.Infof("the rules of %d dead instance(s) are gone: %s", len(stale), strings.Join(stale, ", "))
	}
	return errors.Join(err, tablesErr)
}

// watch announces changes of the node to the keeper: those that the kernel tells
// of, and those of legacy tables, which have to be looked for.
type watch struct {
	changes chan iptables.Change
	cancel  context.CancelFunc
	kernel  *nftables.Watcher
	done    sync.WaitGroup
}

func startWatch() (*watch, error) {
	kernel, err := nftables.Watch(nftables.Config{})
	if err != nil {
		return nil, err
	}
	return &watch{changes: kernel.Changes, kernel: kernel}, nil
}

// follow looks at the tables of a backend that the kernel is silent about,
// instead of those of the one before.
func (w *watch) follow(b iptables.Backend) {
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
			case w.changes <- iptables.Change{}:
			default:
			}
		})
	})
}

func (w *watch) unfollow() {
	if w.cancel != nil {
		w.cancel()
		w.done.Wait()
		w.cancel = nil
	}
}

func (w *watch) close() {
	w.unfollow()
	w.kernel.Close()
}

// parseBackend reads `backend NAME [legacy|nft]`.
func parseBackend(args []string) (name string, v binaries.Variant, err error) {
	const usage = "use auto, nftables, iptables, iptables legacy or iptables nft"
	if len(args) == 0 {
		return "", v, fmt.Errorf("backend takes a value: %s", usage)
	}
	switch name = args[0]; {
	case len(args) == 1 && slices.Contains([]string{backendAuto, backendNFTables, backendIPTables}, name):
		return name, binaries.Auto, nil
	case len(args) == 2 && name == backendIPTables:
		for _, v := range []binaries.Variant{binaries.Legacy, binaries.NFT} {
			if args[1] == string(v) {
				return name, v, nil
			}
		}
	}
	return "", v, fmt.Errorf("unknown backend %q: %s", strings.Join(args, " "), usage)
}
