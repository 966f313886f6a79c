package nftables

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/internal/nfnl"
	"github.com/trackless-dns/trackless/iptables/owner"
)

// upstreamTimeout is how long the answer to a packet may take. Each packet to
// the upstream sets it anew.
const upstreamTimeout = time.Minute

var (
	upstreamSet = setKind{name: "upstream", key: []field{daddr, l4proto, dport}}
	expectedSet = setKind{name: "expected", key: tuple, dynamic: true}

	upstreamKinds = []setKind{upstreamSet, expectedSet}
)

// upstreamChains untrack what this node sends to an upstream, and the answers.
//
// What others send to a Service and kube-proxy rewrites to the same endpoint has
// the Service as its destination when it passes output here, so that it stays
// tracked, and so do the answers to it: only those to a packet that was
// untracked are. Packets of pods do not pass output.
func upstreamChains() []chain {
	prerouting, output := iptables.Prerouting, iptables.Output
	pre, post := chain{name: "prerouting", hook: &prerouting}, chain{name: "output", hook: &output}
	for _, f := range nfnl.Families {
		pre.rules = append(pre.rules, rule{in{f, tuple, expectedSet, false}, notrack{}, accept{}})
		post.rules = append(post.rules, rule{
			in{f, upstreamSet.key, upstreamSet, false},
			put{f, reversedTuple, expectedSet, true, upstreamTimeout}, notrack{}, accept{},
		})
	}
	return []chain{pre, post}
}

// Upstreams keeps queries of this node to DNS servers, and the answers, out of
// the conntrack table. The rules stand in a table of their own, which the kernel
// binds to this process. The zero value is for this network namespace; its
// methods are safe for concurrent use.
type Upstreams struct {
	Config Config

	mu   sync.Mutex
	rs   *ruleset
	conn *netlink.Conn // nil: there is no table
}

// Set makes the endpoints those that are untracked, in one transaction; none
// removes the table. It needs owned tables (Linux 5.12), which leave nothing
// behind: without them the error is an [iptables.UnsupportedError].
func (u *Upstreams) Set(endpoints []iptables.Endpoint) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	switch {
	case len(endpoints) == 0:
		return u.remove()
	case u.conn == nil:
		return u.create(endpoints)
	}
	contents := u.contents(endpoints)
	tx, err := nfnl.Encode(func(c *nfnl.Encoder) error { return replaceAll(c, contents) })
	if err != nil {
		return err
	}
	if err := tx.Commit(u.conn); err != nil {
		return explainUpstream("change table inet "+u.rs.table.Name, err)
	}
	return readBack(u.Config, contents)
}

// Close removes the table.
func (u *Upstreams) Close() error { return u.Set(nil) }

func (u *Upstreams) create(endpoints []iptables.Endpoint) error {
	var id [4]byte
	if _, err := rand.Read(id[:]); err != nil {
		return err
	}
	u.rs = newRulesetOf(owner.UpstreamPrefix+hex.EncodeToString(id[:]), upstreamKinds)
	contents := u.contents(endpoints)
	tx, err := nfnl.Encode(func(c *nfnl.Encoder) error {
		if err := u.rs.addSets(c, upstreamKinds); err != nil {
			return err
		}
		u.rs.addChains(c, upstreamChains())
		return replaceAll(c, contents)
	})
	if err != nil {
		return err
	}
	if err := tx.NewTable(u.rs.table.Name, owner.Self(tableFormat), nfnl.TableFlagOwner, nil); err != nil {
		return err
	}
	conn, err := nfnl.Dial(u.Config)
	if err != nil {
		return err
	}
	if err := tx.Commit(conn); err != nil {
		return errors.Join(explainUpstream("add table inet "+u.rs.table.Name, err), conn.Close())
	}
	u.conn = conn
	return readBack(u.Config, contents)
}

func (u *Upstreams) contents(endpoints []iptables.Endpoint) (all []content) {
	elements := map[iptables.Family][]nftables.SetElement{}
	for _, e := range endpoints {
		f := iptables.FamilyOf(e.Addr)
		elements[f] = append(elements[f], nftables.SetElement{Key: endpointKey(e)})
	}
	for _, f := range nfnl.Families {
		all = append(all, content{u.rs.set(upstreamSet, f), elements[f]})
	}
	return all
}

func (u *Upstreams) remove() error {
	if u.conn == nil {
		return nil
	}
	// The table goes with the socket that owns it.
	err := u.conn.Close()
	u.conn = nil
	return err
}

func explainUpstream(what string, err error) error {
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("nftables: %s: %w", what, &iptables.UnsupportedError{
			Feature: "owned tables in nf_tables", Remedy: "they came with Linux 5.12", Err: err,
		})
	}
	return nfnl.Explain(what, err)
}
