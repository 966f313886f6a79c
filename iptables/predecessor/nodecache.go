package predecessor

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/hostrules/evaluator"
	"github.com/trackless-dns/trackless/iptables/internal/nfnl"
	"github.com/trackless-dns/trackless/iptables/legacy"
)

// Comments of the rules of Kubernetes' node-cache (kubernetes/dns,
// cmd/node-cache/app/cache_app.go), by the effect of the rule.
const (
	nodeCacheSkip  = NodeCacheComment + " skip conntrack"
	nodeCacheAllow = NodeCacheComment + " allow DNS traffic"
)

// nodeCacheChains are the chains of these rules, by table.
var nodeCacheChains = map[string][]string{
	"raw":    {"PREROUTING", "OUTPUT"},
	"filter": {"INPUT", "OUTPUT"},
}

// AdoptNodeCache deletes the rules of Kubernetes' node-cache for the addresses, and for
// addresses at which nothing in this network namespace listens any more. These rules
// untrack permanently, so without a listener nobody answers. It reads the tables of
// iptables-nft and of iptables-legacy, and needs the binaries of neither. It returns how
// many rules it deleted, with all duplicates. If legacy rules cannot be deleted the
// error is that of [legacy.Delete].
//
// It recognises the rules by comment, chain, target and matches.
func AdoptNodeCache(cfg Config, addrs []netip.Addr) (deleted int, err error) {
	hasListener := map[iptables.Endpoint]bool{}
	isLeft := func(table string, r nfnl.Rule) bool {
		e, ok := nodeCacheRule(table, r)
		if !ok || slices.Contains(addrs, e.Addr) {
			return ok
		}
		e.Proto = 0
		if _, known := hasListener[e]; !known {
			hasListener[e] = listening(e.AddrPort())
		}
		return !hasListener[e]
	}
	var errs []error
	for _, table := range []string{"raw", "filter"} {
		for _, f := range nfnl.Families {
			n, err := deleteRules(cfg, f, table, func(r nfnl.Rule) bool { return isLeft(table, r) })
			deleted += n
			errs = append(errs, err)
			n, err = legacy.Delete(legacy.Config{NetNS: cfg.NetNS}, f, table, func(chain string, r legacy.Rule) bool {
				return slices.Contains(nodeCacheChains[table], chain) && isLeft(table, nfnl.Rule{Comment: r.Comment(), Exprs: evaluator.LegacyExpressions(r)})
			})
			deleted += n
			errs = append(errs, err)
		}
	}
	return deleted, errors.Join(errs...)
}

// FixedByNodeCache returns the addresses whose DNS cannot fail over to the cluster, each
// with the reason: node-cache left rules in legacy tables that untrack it permanently,
// and this process cannot delete them.
func FixedByNodeCache(cfg Config, addrs []netip.Addr) (map[netip.Addr]error, error) {
	missing := legacy.CanLock()
	if missing == nil {
		return nil, nil
	}
	out := map[netip.Addr]error{}
	for _, f := range nfnl.Families {
		t, found, err := legacy.Read(legacy.Config{NetNS: cfg.NetNS}, f, "raw", func(_ string, r legacy.Rule) bool {
			return r.Comment() == nodeCacheSkip
		})
		if err != nil {
			return nil, err
		}
		if !found {
			continue
		}
		for _, name := range nodeCacheChains["raw"] {
			chain := t.Chain(name)
			if chain == nil {
				continue
			}
			for _, r := range chain.Rules {
				e, ok := nodeCacheRule("raw", nfnl.Rule{Comment: r.Comment(), Exprs: evaluator.LegacyExpressions(r)})
				if ok && slices.Contains(addrs, e.Addr) && out[e.Addr] == nil {
					out[e.Addr] = fixedError(f, missing)
				}
			}
		}
	}
	return out, nil
}

func fixedError(f iptables.Family, missing error) error {
	program := map[iptables.Family]string{iptables.IPv4: "iptables-legacy", iptables.IPv6: "ip6tables-legacy"}[f]
	return fmt.Errorf("%w: NodeLocal DNSCache left them in the legacy table raw, so nobody answers when this process does not, and they cannot be deleted: %w (mount the lock file into the container, as node-cache's manifest does; or run `%s-save -c -t raw | grep -v %q | %[3]s-restore -c` on the node, or in the image that has the iptables binaries)", iptables.ErrUntracked, missing, program, NodeCacheComment)
}

// deleteRules deletes rules from the chains of node-cache in a table of nf_tables.
func deleteRules(cfg Config, f iptables.Family, name string, isLeft func(nfnl.Rule) bool) (deleted int, err error) {
	table := &nftables.Table{Name: name, Family: nftables.TableFamilyIPv4}
	if f == iptables.IPv6 {
		table.Family = nftables.TableFamilyIPv6
	}
	for _, name := range nodeCacheChains[name] {
		chain := &nftables.Chain{Table: table, Name: name}
		for tries := 0; ; tries++ {
			n, err := deleteFrom(cfg, chain, isLeft)
			deleted += n
			switch {
			case err == nil:
			case nfnl.IsAbsent(err):
				return deleted, nil
			case errors.Is(err, unix.ENOENT) && tries < 10:
				continue // another program has deleted one of them
			default:
				return deleted, nfnl.Explain("delete rules of node-cache from chain "+nfnl.FamilyName(table.Family)+" "+table.Name+" "+name, err)
			}
			break
		}
	}
	return deleted, nil
}

// deleteFrom uses a new socket: after a refusal, answers may be left in the old one.
func deleteFrom(cfg Config, chain *nftables.Chain, isLeft func(nfnl.Rule) bool) (deleted int, err error) {
	conn, err := nfnl.Dial(cfg)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	rules, err := nfnl.Rules(conn, chain.Table.Family, chain.Table.Name, chain.Name, isLeft)
	if err != nil {
		return 0, err
	}
	// The answers to one batch must fit into the buffer of the socket.
	for part := range slices.Chunk(rules, 64) {
		tx, err := nfnl.Encode(func(c *nfnl.Encoder) error {
			for _, r := range part {
				if err := c.DelRule(&nftables.Rule{Table: chain.Table, Chain: chain, Handle: r.Handle}); err != nil {
					return err
				}
			}
			return nil
		})
		if err == nil {
			err = tx.Commit(conn)
		}
		if err != nil {
			return deleted, err
		}
		deleted += len(part)
	}
	return deleted, nil
}

// nodeCacheRule returns the endpoint of a rule of node-cache, and whether it is one: it
// has the comment, and the effect in the comment on all packets to, or from, one
// address, port and protocol, and on no others.
func nodeCacheRule(table string, r nfnl.Rule) (iptables.Endpoint, bool) {
	want := map[string]string{"raw": nodeCacheSkip, "filter": nodeCacheAllow}[table]
	if r.Comment != want {
		return iptables.Endpoint{}, false
	}
	does := evaluator.Unconditional(r, func(string) ([]nfnl.Element, error) { return nil, nil })
	switch {
	case table == "raw" && (does.Verdict != nil || !slices.Equal(does.Effects, []string{"notrack"})),
		table == "filter" && (does.Verdict == nil || does.Verdict.Code != nfnl.VerdictAccept || len(does.Effects) > 0):
		return iptables.Endpoint{}, false
	}
	it := evaluator.TrafficOf(r)
	e := it.Endpoint
	if !e.Addr.IsValid() || e.Port == 0 || e.Proto == 0 || !evaluator.MatchesAll(r, it) {
		return e, false
	}
	for _, other := range []iptables.Endpoint{
		{Addr: e.Addr.Next(), Port: e.Port, Proto: e.Proto}, {Addr: e.Addr.Prev(), Port: e.Port, Proto: e.Proto},
		{Addr: e.Addr, Port: e.Port + 1, Proto: e.Proto}, {Addr: e.Addr, Port: e.Port - 1, Proto: e.Proto},
		{Addr: e.Addr, Port: e.Port, Proto: iptables.UDP ^ iptables.TCP ^ e.Proto},
	} {
		if other.Addr.IsValid() && evaluator.MatchesAll(r, evaluator.Traffic{Endpoint: other, Direction: it.Direction}) {
			return e, false
		}
	}
	return e, true
}

// listening reports whether any socket of this network namespace receives packets to an
// address and port, over UDP or TCP.
func listening(at netip.AddrPort) bool {
	for _, name := range []string{"udp", "udp6", "tcp", "tcp6"} {
		text, err := os.ReadFile("/proc/thread-self/net/" + name)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(text)) {
			words := strings.Fields(line)
			if len(words) < 4 || strings.HasPrefix(name, "tcp") && words[3] != "0A" {
				continue
			}
			local, ok := parseSocket(words[1])
			if ok && local.Port() == at.Port() && (local.Addr() == at.Addr() || local.Addr().IsUnspecified()) {
				return true
			}
		}
	}
	return false
}

// NodeCacheComment is the prefix of the comments of node-cache's rules (kubernetes/dns,
// cmd/node-cache/app/cache_app.go).
const NodeCacheComment = "NodeLocal DNS Cache:"
