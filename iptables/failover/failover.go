package failover

import (
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/internal/nfnl"
	"github.com/trackless-dns/trackless/iptables/owner"
)

// failoverComment names the format of the table in its user data; `nft list` shows it.
// It changes when the rules for the same pairs change.
const failoverComment = "trackless failover 2"

// State is the table as the kernel holds it.
type State struct {
	// Present tells whether there is a table with that name. If not, the other
	// fields are empty.
	Present bool

	// Intact tells whether the table is exactly the one that Install makes of
	// Pairs. If not, another program changed it, or another version of Trackless
	// wrote it.
	Intact bool

	// Pairs are read from the rules that rewrite queries, normalized.
	Pairs []Pair

	// Outside are the clients that the table does not serve, normalized.
	Outside Outside

	// Counters are the packets that were rewritten since the content last changed:
	// queries to the Service, and responses from it. They do not change while the
	// queries are untracked.
	Counters iptables.Counters
}

// Install makes the table hold exactly these pairs, for all clients except those
// outside. It is one transaction: no packet sees half of it. If the table already is
// so, nothing is sent, and the generation of the ruleset stays. Without pairs there is
// no table.
//
// The kernel needs conntrack zones, NAT in the inet family (Linux 5.2) and the
// route hook; without them it returns an [iptables.UnsupportedError]. When the content
// changes, the counters start at 0, and late responses from a Service that is no
// longer in a pair are lost.
func Install(cfg Config, pairs []Pair, outside Outside) (err error) {
	pairs, err = normalizeFailover(pairs)
	if err != nil {
		return err
	}
	if len(pairs) == 0 {
		return Remove(cfg)
	}
	conn, err := nfnl.Dial(cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()

	want := failoverChains(pairs, outside.normalize())
	have, err := dumpFailover(conn)
	if err != nil {
		return err
	}
	if have.is(want) {
		return nil
	}
	tx, err := failoverTransaction(want)
	if err != nil {
		return err
	}
	return explainFailover("install table inet "+owner.FailoverTable, tx.Commit(conn))
}

// Remove deletes the table. It is no error if there is none.
func Remove(cfg Config) (err error) {
	conn, err := nfnl.Dial(cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	var tx nfnl.Transaction
	if err := tx.Prepend(unix.NFT_MSG_DELTABLE, 0, []netlink.Attribute{failoverTableName(unix.NFTA_TABLE_NAME)}); err != nil {
		return err
	}
	err = tx.Commit(conn)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return explainFailover("delete table inet "+owner.FailoverTable, err)
}

// Read reads the table. It is no error if there is none.
func Read(cfg Config) (_ State, err error) {
	conn, err := nfnl.Dial(cfg)
	if err != nil {
		return State{}, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	have, err := dumpFailover(conn)
	if nfnl.IsAbsent(err) {
		return State{}, nil
	}
	if err != nil || !have.present {
		return State{}, err
	}
	f := State{Present: true, Pairs: have.pairs(), Outside: have.outside(), Counters: have.counters}
	f.Intact = len(f.Pairs) > 0 && have.is(failoverChains(f.Pairs, f.Outside))
	return f, nil
}

// failoverTransaction replaces the table by a table with these chains.
func failoverTransaction(chains []failoverChain) (nfnl.Transaction, error) {
	table := &nftables.Table{Name: owner.FailoverTable, Family: nftables.TableFamilyINet}
	tx, err := nfnl.Encode(func(c *nfnl.Encoder) error {
		for _, k := range iptables.CounterKeys() {
			c.AddCounter(table, failoverCounter(k))
		}
		accept := nftables.ChainPolicyAccept
		for _, chain := range chains {
			added := &nftables.Chain{Table: table, Name: chain.name}
			if chain.hook != nil {
				added.Type, added.Hooknum, added.Priority, added.Policy = chain.kind, chain.hook, nftables.ChainPriorityRef(chain.priority), &accept
			}
			c.AddChain(added)
		}
		return nil
	})
	if err != nil {
		return tx, err
	}
	for _, chain := range chains {
		for _, rule := range chain.rules {
			m, err := rule.message(chain.name)
			if err != nil {
				return tx, err
			}
			tx.Messages = append(tx.Messages, m)
		}
	}
	// The table is added before it is deleted, so that the deletion succeeds also
	// if there was none. Without flags the first message does not change a table
	// that exists (nf_tables_updtable).
	name := failoverTableName(unix.NFTA_TABLE_NAME)
	comment := netlink.Attribute{Type: nfnl.TableUserdata, Data: userdata.AppendString(nil, nfnl.TableComment, failoverComment)}
	return tx, errors.Join(
		tx.Prepend(unix.NFT_MSG_NEWTABLE, netlink.Create|netlink.Excl, []netlink.Attribute{name, comment}),
		tx.Prepend(unix.NFT_MSG_DELTABLE, 0, []netlink.Attribute{name}),
		tx.Prepend(unix.NFT_MSG_NEWTABLE, netlink.Create, []netlink.Attribute{name}),
	)
}

func failoverTableName(attr uint16) netlink.Attribute {
	return netlink.Attribute{Type: attr, Data: append([]byte(owner.FailoverTable), 0)}
}

// failoverCounter returns for example "query-ipv4-udp".
func failoverCounter(k iptables.CounterKey) string {
	return fmt.Sprintf("%s-%s-%s", k.Direction, k.Family, k.Proto)
}

// explainFailover adds the remedy to the kernel's answer. The transaction makes all
// objects that it names, so "no such file or directory" can only be about a type of
// chain or expression.
func explainFailover(what string, err error) error {
	missing := []error{unix.ENOENT, unix.EOPNOTSUPP, unix.EPROTONOSUPPORT, unix.EAFNOSUPPORT}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("nftables: %s: %w (%w)", what, err, iptables.ErrPermission)
	case slices.ContainsFunc(missing, func(e error) bool { return errors.Is(err, e) }):
		return fmt.Errorf("nftables: %s: %w", what, &iptables.UnsupportedError{
			Feature: "stateless rewrite and conntrack zones in nf_tables",
			Remedy:  "load nft_ct, nft_masq and nft_chain_nat, and use a kernel of 5.2 or later with CONFIG_NF_CONNTRACK_ZONES; or set `failover off`",
			Err:     err,
		})
	}
	return fmt.Errorf("nftables: %s: %w", what, err)
}
