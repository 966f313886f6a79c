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

// Name returns [iptables.BackendBinaries].
func (*Backend) Name() string { return iptables.BackendBinaries }

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
