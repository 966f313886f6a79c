// Package binaries is the iptables backend: NOTRACK rules in the raw table, installed by
// iptables-restore, of either variant (legacy or nft).
//
// The kernel does not bind such rules to a process: a process that is killed leaves
// them. So the query rules untrack a query only if this instance has answered its own
// lease probe at that address within the last second. xt_recent keeps that list in the
// packet path. The rules of a dead process have no effect, and the next start removes
// them.
//
// Rules note TCP connections in sets of ip_set: those that are tracked when we attach,
// and those that we hold when we detach. [Backend.Capabilities] names the guarantees
// that this kernel cannot give.
package binaries

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/legacy"
	"github.com/trackless-dns/trackless/iptables/owner"
)

// Lease is the only possible lease: xt_recent counts whole seconds, and clients stop
// waiting after five.
const Lease = time.Second

// format changes when the content of the chains changes.
const format = 2

// Config says which programs are run. They run in the network namespace of the
// calling thread.
type Config struct {
	// Variant of the programs; the zero value chooses.
	Variant Variant

	// Count is called for every failure of a program: "iptables_lock" if the lock
	// was held too long, "iptables" for other failures. It may be nil.
	Count func(errorType string)

	// For tests.
	lease   time.Duration
	lacking features // regarded as missing
	room    uint32   // in each set
}

// Backend implements [iptables.Backend] with chains in the raw tables. Its
// methods may be called from any goroutine.
type Backend struct {
	cfg      Config
	programs map[iptables.Family]*program
	missing  error // the reason if a family has no program

	mu       sync.Mutex
	rs       ruleset
	probed   bool
	setup    bool
	families []iptables.Family            // with chains of ours
	own      map[iptables.Family][]string // the chains as they were read after the last change
	total    iptables.Counters            // of chains that were removed or emptied
	last     iptables.Counters            // of the chains when they were last read

	shapes map[iptables.Family]legacy.Shape // of changed alone
}

var _ iptables.Backend = (*Backend)(nil)

// New finds the programs. It does not change the kernel. Without programs it fails with
// an [iptables.UnsupportedError].
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
		shapes: map[iptables.Family]legacy.Shape{},
	}, nil
}

// Name returns [iptables.BackendBinaries].
func (*Backend) Name() string { return iptables.BackendBinaries }

// Table returns the prefix of the names of the chains of this instance.
func (b *Backend) Table() string { return chainPrefix + b.rs.id }

// Owned returns false: the kernel does not remove these rules when the process dies.
// The lease ends their effect.
func (*Backend) Owned() bool { return false }

// Variant returns the variant of the programs, from `iptables --version`.
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
	c := iptables.Capabilities{Variant: string(b.Variant()), Changed: b.changed}
	if err := b.probe(); err != nil {
		return c, err
	}
	c.NoLeases = !b.rs.features.leases()
	c.Lacks = b.rs.features.lacks()
	return c, nil
}

// lacks names the guarantees that a kernel without some matches cannot give, one
// sentence each.
func (f features) lacks() (out []string) {
	if !f.leases() {
		out = append(out, "this kernel has neither xt_recent nor ip_set with xt_set, so nothing ends the query rules when this process is killed or hangs: the node has no DNS until the process is back (load one of them with `modprobe xt_recent` or `modprobe ip_set xt_set`)")
	}
	if !f.ipset {
		out = append(out, "this kernel has no ip_set with xt_set, so rules cannot note TCP connections: a connection may be reset if it begins while this process attaches, or ends its handshake while it detaches (load them with `modprobe ip_set ip_set_hash_ipportip xt_set`)")
	}
	return out
}

// probe finds out once which matches the kernel has. If another program holds the lock
// the error matches [iptables.ErrBusy], and probe can be called again.
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

// counted counts a failure, and returns it.
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

// checkLease refuses leases that these rules cannot keep.
func (b *Backend) checkLease(p iptables.Plan) error {
	leases := b.rs.features.leases()
	switch {
	case p.DryRun, leases && p.Lease == b.rs.lease, !leases && p.Lease == 0:
		return nil
	case !leases:
		return fmt.Errorf("lease %s: this kernel has neither xt_recent nor ip_set, so a lease is not possible", p.Lease)
	}
	return fmt.Errorf("lease %s: with backend iptables the lease must be %s: xt_recent counts whole seconds, and only the lease ends the rules of a killed process", p.Lease, b.rs.lease)
}
