// Package ruleset chooses the backend of our rules, and removes the rules that dead
// instances and predecessors left.
package ruleset

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/trackless-dns/trackless/internal/logger"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/backends"
	"github.com/trackless-dns/trackless/iptables/binaries"
	"github.com/trackless-dns/trackless/iptables/predecessor"
)

// Values of the option `backend`.
const (
	Auto     = "auto"
	NFTables = "nftables"
	IPTables = "iptables"
)

// openBackend opens a backend; tests make it fail.
var openBackend = func(k backends.Kind, o backends.Options) (iptables.Backend, error) { return k.Open(o) }

// Choice is the option `backend` of a Corefile.
type Choice struct {
	Name    string
	Variant binaries.Variant // of the programs of backend iptables
}

// String returns the choice as a Corefile has it.
func (c Choice) String() string { return strings.TrimSpace(c.Name + " " + string(c.Variant)) }

// Open returns the chosen backend and the reason for it. It changes nothing in the
// kernel. The backend calls count for each failure of a program.
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
	all := make([]any, len(failed)) // on one line
	for i, err := range failed {
		all[i] = err
	}
	return nil, "", fmt.Errorf("no backend can be used: "+strings.Repeat("%w; ", len(all)-1)+"%w", all...)
}

// Serves reports whether the choice allows the backend.
func (c Choice) Serves(b iptables.Backend) bool {
	if c.Name != Auto {
		can, _ := b.Capabilities() // Variant needs no probe of the kernel
		return c.Name == b.Name() && (c.Variant == binaries.Auto || string(c.Variant) == can.Variant)
	}
	// auto keeps a backend only if no better one can be opened.
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

// Fit adapts the plan to what the backend can do on this kernel, and logs what it cannot
// do.
func Fit(plan *iptables.Plan, b iptables.Backend, log logger.Logger) error {
	can, err := b.Capabilities()
	if err != nil {
		if errors.Is(err, iptables.ErrBusy) {
			return nil // Install reports it
		}
		return err
	}
	if plan.Lease == 0 && !plan.DryRun && can.NeedsLease != "" {
		return fmt.Errorf("lease off: %s; remove the option", can.NeedsLease)
	}
	for _, lacks := range can.Lacks {
		log.Warningf("%s", lacks)
	}
	if can.NoLeases {
		plan.Lease = 0
	}
	return nil
}

// Announce logs which backend was chosen, why, and its limits.
func Announce(b iptables.Backend, why string, log logger.Logger) {
	switch can, _ := b.Capabilities(); {
	case can.Variant != "":
		log.Infof("backend %s (%s binaries), since %s: chains %s-* in the raw tables; after a SIGKILL the lease ends the rules within a second; the chains stay without effect until the next start", b.Name(), can.Variant, why, b.Table())
	case b.Owned():
		log.Infof("backend %s, since %s: table inet %s; the kernel removes it when this process ends", b.Name(), why, b.Table())
	default:
		log.Warningf("backend %s, since %s: table inet %s. This kernel has no owned tables (Linux 5.12 and later have them): after a SIGKILL the lease ends the rules, and the table stays until the next start",
			b.Name(), why, b.Table())
	}
}

// adoptInterval is the time between two searches for the rules of predecessors.
const adoptInterval = time.Minute

// Adopter removes the rules of predecessors: those of dead instances, of any backend,
// and those of Kubernetes' node-cache. A living node-cache restores its rules once a
// minute. A search runs up to a dozen programs, so we search no more often than that.
type Adopter struct {
	Log   logger.Logger
	Count func(errorType string) // counts failures to get the xtables lock

	last   time.Time
	failed string // returned last
}

// Adopt implements [reconcile.Kernel.Adopt].
func (a *Adopter) Adopt(addrs []netip.Addr) (changed bool, err error) {
	if time.Since(a.last) < adoptInterval {
		return false, nil
	}
	a.last = time.Now()
	changed, err = adoptAll(addrs, a.Log)
	before := a.failed
	if a.failed = ""; err == nil {
		return changed, nil
	}
	if a.failed = err.Error(); errors.Is(err, iptables.ErrBusy) {
		a.Count("iptables_lock")
		a.last = time.Time{} // at the next sync
	}
	if a.failed == before {
		err = nil
	}
	return changed, err
}

func adoptAll(addrs []netip.Addr, log logger.Logger) (changed bool, err error) {
	err = RemoveStale(log)
	n, adoptErr := predecessor.AdoptNodeCache(predecessor.Config{}, addrs)
	if n > 0 {
		log.Infof("%d rules of NodeLocal DNSCache removed; ours replace them", n)
	}
	return n > 0, errors.Join(err, adoptErr)
}

// RemoveStale removes the rules of instances that are certainly dead.
func RemoveStale(log logger.Logger) error {
	stale, err := backends.RemoveStale()
	if len(stale) > 0 {
		log.Infof("rules of %d dead instance(s) removed: %s", len(stale), strings.Join(stale, ", "))
	}
	return err
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
