// Package nftables is the nftables backend: rules over netlink, no binary needed.
//
// The table is owned (NFT_TABLE_F_OWNER, Linux 5.12): it belongs to one netlink
// socket of this process, nobody else can change or flush it, and the kernel
// removes it when the socket is closed, however the process dies. On older
// kernels it is an ordinary table, which outlives a killed process; the next
// start removes it.
package nftables

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/internal/nfnl"
	"github.com/trackless-dns/trackless/iptables/owner"
)

// Backend implements [iptables.Backend] with one table of this process.
// Its methods may be called from any goroutine.
type Backend struct {
	cfg Config
	key []byte

	mu    sync.Mutex
	conn  *netlink.Conn // the owner of the table: it lives as long as the rules shall
	high  func() error  // closes the duplicate of its descriptor
	rs    *ruleset
	rules iptables.Rules
	owned bool
	setup bool
	total iptables.Counters // of tables that were removed

	readerMu sync.Mutex
	reader   *netlink.Conn // over which Lost reads; nil until it is needed
}

var _ iptables.Backend = (*Backend)(nil)

// New opens the netlink socket and gives the instance its table name; the
// kernel is not changed. It fails with an [iptables.UnsupportedError] where the
// kernel has no nf_tables.
func New(cfg Config) (*Backend, error) {
	if cfg.Socket == nil {
		cfg.Socket = func() (*netlink.Conn, error) {
			return netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: cfg.NetNS})
		}
	}
	var id [4]byte
	if _, err := rand.Read(id[:]); err != nil {
		return nil, err
	}
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	b := &Backend{cfg: cfg, key: key, rs: newRuleset(owner.TablePrefix + hex.EncodeToString(id[:])), total: iptables.Counters{}}
	conn, err := cfg.Socket()
	if err != nil {
		return nil, nfnl.Explain("open a netfilter netlink socket", err)
	}
	if _, err := tables(conn); err != nil {
		return nil, errors.Join(nfnl.Explain("list tables", err), conn.Close())
	}
	return b, conn.Close()
}

// Capabilities implements [iptables.Backend].
func (b *Backend) Capabilities() (iptables.Capabilities, error) {
	c := iptables.Capabilities{Devices: b}
	if !canOwn() {
		c.NeedsLease = "this kernel has no owned tables (they came with Linux 5.12), so that only a lease ends the rules of a killed process"
	}
	return c, nil
}

// canOwn reports whether the running kernel binds tables to processes, which
// came with Linux 5.12.
func canOwn() bool {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return false
	}
	var major, minor int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor); err != nil {
		return false
	}
	return major > 5 || major == 5 && minor >= 12
}

// Name returns "nftables".
func (b *Backend) Name() string { return "nftables" }

// Table returns the name of this instance's table.
func (b *Backend) Table() string { return b.rs.table.Name }

// Owned reports whether the kernel removes the table when this process dies.
// It is known once Install has succeeded.
func (b *Backend) Owned() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.owned
}

// Install implements [iptables.Backend].
func (b *Backend) Install(r iptables.Rules) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.setup {
		present, err := b.present()
		if err != nil {
			return err
		}
		if !present {
			b.setup = false
			if err := b.closeOwner(); err != nil {
				return err
			}
		}
	}
	if !b.setup {
		if err := b.create(r); err != nil {
			return err
		}
		b.rules = r
		return nil
	}
	contents := b.rs.contents(r)
	tx, err := nfnl.Encode(func(c *nfnl.Encoder) error {
		if r.Plan.Lease != b.rules.Plan.Lease || r.Plan.DryRun != b.rules.Plan.DryRun {
			b.rs.rebuild(c, b.rules.Plan, r.Plan)
		}
		if err := replaceAll(c, contents); err != nil {
			return err
		}
		return b.prune(c, r)
	})
	if err != nil {
		return err
	}
	if err := tx.Commit(b.conn); err != nil {
		return nfnl.Explain("change table "+b.Table(), err)
	}
	b.rules = r
	return readBack(b.cfg, contents)
}

// prune takes addresses that are no longer in the plan out of the live set.
func (b *Backend) prune(c *nfnl.Encoder, r iptables.Rules) error {
	return b.endLease(c, slices.DeleteFunc(b.rules.Plan.Addresses(), func(a netip.Addr) bool {
		return slices.Contains(r.Plan.Addresses(), a)
	}))
}

func (b *Backend) endLease(c *nfnl.Encoder, addrs []netip.Addr) error {
	for _, a := range addrs {
		// Deleting an element that has expired fails; adding it first does not.
		set := b.rs.set(liveSet, iptables.FamilyOf(a))
		element := []nftables.SetElement{{Key: addrKey(a)}}
		if err := addElements(c, set, element); err != nil {
			return err
		}
		if err := c.DelElements(set, element); err != nil {
			return err
		}
	}
	return nil
}

// create makes the table with everything in it in one transaction: owned where
// the kernel can, else as an ordinary table.
func (b *Backend) create(r iptables.Rules) error {
	err := b.createOnce(r)
	if errors.Is(err, unix.ENOENT) && !b.rs.noFIB {
		// No such expression, which CONFIG_NFT_FIB_INET brings.
		b.rs.noFIB = true
		err = b.createOnce(r)
	}
	return err
}

func (b *Backend) createOnce(r iptables.Rules) error {
	contents := b.rs.contents(r)
	tx, err := nfnl.Encode(func(c *nfnl.Encoder) error {
		if err := b.rs.build(c, r.Plan); err != nil {
			return err
		}
		return replaceAll(c, contents)
	})
	if err != nil {
		return err
	}
	conn, err := b.cfg.Socket()
	if err != nil {
		return nfnl.Explain("open a netfilter netlink socket", err)
	}
	owned := tx
	owned.Messages = slices.Clone(tx.Messages)
	if err := owned.NewTable(b.Table(), owner.Self(tableFormat), nfnl.TableFlagOwner, b.key); err != nil {
		return errors.Join(err, conn.Close())
	}
	b.owned = true
	err = owned.Commit(conn)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) {
		// Linux before 5.12 knows no owner flag (nf_tables_newtable).
		if err := tx.NewTable(b.Table(), owner.Self(tableFormat), 0, b.key); err != nil {
			return errors.Join(err, conn.Close())
		}
		b.owned = false
		err = tx.Commit(conn)
	}
	if err != nil {
		return errors.Join(nfnl.Explain("add table inet "+b.Table(), err), conn.Close())
	}
	b.conn, b.high, b.setup = conn, duplicate(conn), true
	if err := b.removeStale(); err != nil {
		return fmt.Errorf("remove the table of a dead instance: %w", err)
	}
	return readBack(b.cfg, contents)
}

// Attach implements [iptables.Backend].
func (b *Backend) Attach() error {
	return b.change("untrack queries", func(c *nfnl.Encoder) error {
		for _, a := range b.rules.Plan.Addresses() {
			element := []nftables.SetElement{{Key: addrKey(a)}}
			if err := addElements(c, b.rs.set(liveSet, iptables.FamilyOf(a)), element); err != nil {
				return err
			}
		}
		return nil
	})
}

// Detach implements [iptables.Backend]. That no query comes here any more matters
// more than connections: if they cannot be given, it is done without.
func (b *Backend) Detach(held []iptables.Connection) error {
	if !b.installed() {
		return nil
	}
	err := b.withConnections(held, false, b.detach)
	if err != nil && len(held) > 0 {
		return b.detach(nil, false)
	}
	return err
}

func (b *Backend) detach(held []iptables.Connection, only bool) error {
	return b.change("stop untracking queries", func(c *nfnl.Encoder) error {
		if err := b.addConnections(c, heldSet, held, only); err != nil {
			return err
		}
		for _, f := range nfnl.Families {
			c.FlushSet(b.rs.set(liveSet, f))
			c.FlushSet(b.rs.set(leaseSet, f))
		}
		for _, a := range b.rules.Plan.Addresses() {
			element := []nftables.SetElement{{Key: addrKey(a)}}
			if err := addElements(c, b.rs.set(drainSet, iptables.FamilyOf(a)), element); err != nil {
				return err
			}
		}
		return nil
	})
}

// EndLease implements [iptables.Backend].
func (b *Backend) EndLease(addrs []netip.Addr) error {
	return b.change("end the lease", func(c *nfnl.Encoder) error { return b.endLease(c, addrs) })
}

// Exempt implements [iptables.Backend].
func (b *Backend) Exempt(conns []iptables.Connection) error {
	if len(conns) == 0 {
		return nil
	}
	return b.withConnections(conns, false, b.exempt)
}

// ExemptOnly implements [iptables.Backend], in one transaction.
func (b *Backend) ExemptOnly(conns []iptables.Connection) error {
	return b.withConnections(conns, true, b.exempt)
}

func (b *Backend) exempt(conns []iptables.Connection, only bool) error {
	return b.change("exempt connections", func(c *nfnl.Encoder) error {
		return b.addConnections(c, exemptSet, conns, only)
	})
}

// withConnections gives a set connections, in the place of what it holds if only. A
// set that packets have filled holds nothing that is worth more than connections
// that are known; of more than there is room for as many are given as fit: one that
// is left out is reset when it goes on, which is no reason to leave all others as
// well.
func (b *Backend) withConnections(conns []iptables.Connection, only bool, give func(conns []iptables.Connection, only bool) error) error {
	for {
		err := give(conns, only)
		switch {
		case !errors.Is(err, unix.ENFILE) || only && len(conns) == 0:
			return err
		case only:
			conns = conns[:len(conns)/2]
		}
		only = true
	}
}

func (b *Backend) addConnections(c *nfnl.Encoder, kind setKind, conns []iptables.Connection, only bool) error {
	elements := map[iptables.Family][]nftables.SetElement{}
	for _, conn := range conns {
		f := iptables.FamilyOf(conn.Listen.Addr())
		elements[f] = append(elements[f], nftables.SetElement{
			Key:     tupleKey(iptables.TCP, conn.Client, conn.Listen),
			Timeout: connectionTimeout,
		})
	}
	for _, f := range nfnl.Families {
		set := b.rs.set(kind, f)
		if only {
			c.FlushSet(set)
		}
		if err := addElements(c, set, elements[f]); err != nil {
			return err
		}
	}
	return nil
}

func (b *Backend) installed() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.setup
}

// change commits one transaction on the installed table.
func (b *Backend) change(what string, build func(*nfnl.Encoder) error) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.setup {
		return fmt.Errorf("%s: no plan is installed", what)
	}
	tx, err := nfnl.Encode(build)
	if err != nil {
		return err
	}
	if err := tx.Commit(b.conn); err != nil {
		return nfnl.Explain(what+" in table "+b.Table(), err)
	}
	return nil
}

// Present implements [iptables.Backend].
func (b *Backend) Present() (bool, error) {
	if !b.installed() {
		return false, nil
	}
	return b.present()
}

func (b *Backend) present() (bool, error) {
	conn, err := b.cfg.Socket()
	if err != nil {
		return false, nfnl.Explain("open a netfilter netlink socket", err)
	}
	defer conn.Close()
	all, err := tables(conn)
	if err != nil {
		return false, nfnl.Explain("list tables", err)
	}
	return slices.ContainsFunc(all, func(t Table) bool { return t.Name == b.Table() }), nil
}

// Live implements [iptables.Backend].
func (b *Backend) Live() ([]netip.Addr, error) {
	if !b.installed() {
		return nil, nil
	}
	conn, err := nftables.New(nftables.WithNetNSFd(b.cfg.NetNS))
	if err != nil {
		return nil, nfnl.Explain("open a netfilter netlink socket", err)
	}
	var out []netip.Addr
	for _, f := range nfnl.Families {
		elements, err := conn.GetSetElements(b.rs.set(liveSet, f))
		if err != nil {
			return nil, nfnl.Explain("read set "+liveSet.instance(f), err)
		}
		for _, e := range elements {
			if a, ok := netip.AddrFromSlice(e.Key); ok {
				out = append(out, a)
			}
		}
	}
	return out, nil
}

// Remove implements [iptables.Backend]. Closing the owner's socket would do for
// an owned table; deleting it first also covers ordinary ones.
func (b *Backend) Remove() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.setup {
		return nil
	}
	b.closeReader()
	if last, err := b.counters(); err == nil {
		b.total = last
	}
	err := b.deleteTable(b.Table())
	b.setup, b.owned, b.rules = false, false, iptables.Rules{}
	return errors.Join(err, b.closeOwner())
}

func (b *Backend) closeOwner() error { return errors.Join(b.high(), b.conn.Close()) }

func (b *Backend) deleteTable(name string) error {
	tx, err := nfnl.Encode(func(c *nfnl.Encoder) error {
		c.DelTable(&nftables.Table{Name: name, Family: nftables.TableFamilyINet})
		return nil
	})
	if err != nil {
		return err
	}
	if err := tx.Commit(b.conn); err != nil {
		return nfnl.Explain("delete table inet "+name, err)
	}
	return nil
}

// removeStale deletes ordinary tables of ours whose process is gone. Owned
// tables go with their process.
func (b *Backend) removeStale() error {
	all, err := tables(b.conn)
	if err != nil {
		return err
	}
	for _, t := range all {
		if t.Name == b.Table() || t.Owned || !t.known || !t.owner.Dead() {
			continue
		}
		if err := b.deleteTable(t.Name); err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return nil
}

// Counters implements [iptables.Backend].
func (b *Backend) Counters() (iptables.Counters, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.counters()
}

func (b *Backend) counters() (iptables.Counters, error) {
	out := iptables.Counters{}
	for _, k := range iptables.CounterKeys() {
		out[k] = b.total[k]
	}
	if !b.setup {
		return out, nil
	}
	// Reading asks for no ownership, so it does not use the owner's socket,
	// on which a commit may be waiting for its answers.
	conn, err := nftables.New(nftables.WithNetNSFd(b.cfg.NetNS))
	if err != nil {
		return nil, nfnl.Explain("open a netfilter netlink socket", err)
	}
	objs, err := conn.GetNamedObjects(b.rs.table)
	if err != nil {
		return nil, nfnl.Explain("read the counters of table "+b.Table(), err)
	}
	byName := map[string]uint64{}
	for _, o := range objs {
		named, ok := o.(*nftables.NamedObj)
		if !ok {
			continue
		}
		if c, ok := named.Obj.(*expr.Counter); ok {
			byName[named.Name] = c.Packets
		}
	}
	for _, k := range iptables.CounterKeys() {
		out[k] += byName[counterName(k)]
	}
	return out, nil
}
