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
// cmd/node-cache/app/cache_app.go), by what such a rule does.
const (
	nodeCacheSkip  = NodeCacheComment + " skip conntrack"
	nodeCacheAllow = NodeCacheComment + " allow DNS traffic"
)

// nodeCacheChains are where it puts them, by table.
var nodeCacheChains = map[string][]string{
	"raw":    {"PREROUTING", "OUTPUT"},
	"filter": {"INPUT", "OUTPUT"},
}

// AdoptNodeCache deletes what Kubernetes' node-cache left for the addresses, and
// for those at which nobody in this network namespace listens any more: its rules
// untrack for good, so that without a listener nobody answers. It looks at the
// tables of iptables-nft and of iptables-legacy, needs the binaries of neither, and
// returns how many rules it deleted; what is there many times goes as often. Where
// legacy rules cannot be deleted the error is that of [legacy.Delete].
//
// Rules are told by their comment, chain, target and shape.
func AdoptNodeCache(cfg Config, addrs []netip.Addr) (deleted int, err error) {
	heard := map[iptables.Endpoint]bool{}
	gone := func(table string, r nfnl.Rule) bool {
		e, ok := nodeCacheRule(table, r)
		if !ok || slices.Contains(addrs, e.Addr) {
			return ok
		}
		e.Proto = 0
		if _, known := heard[e]; !known {
			heard[e] = listening(e.AddrPort())
		}
		return !heard[e]
	}
	var errs []error
	for _, table := range []string{"raw", "filter"} {
		for _, f := range nfnl.Families {
			n, err := deleteRules(cfg, f, table, func(r nfnl.Rule) bool { return gone(table, r) })
			deleted += n
			errs = append(errs, err)
			n, err = legacy.Delete(legacy.Config{NetNS: cfg.NetNS}, f, table, func(chain string, r legacy.Rule) bool {
				return slices.Contains(nodeCacheChains[table], chain) && gone(table, nfnl.Rule{Comment: r.Comment(), Exprs: evaluator.LegacyExpressions(r)})
			})
			deleted += n
			errs = append(errs, err)
		}
	}
	return deleted, errors.Join(errs...)
}

// FixedByNodeCache says of the addresses why DNS to them cannot be given back to
// the cluster: rules that node-cache left in legacy tables untrack it for good, and
// they cannot be deleted from here. It is empty where all is well.
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
	return fmt.Errorf("%w: NodeLocal DNSCache left them in the legacy table raw, so that nobody answers while this process does not, and they cannot be deleted: %w (mount it into the container, as node-cache's manifest does; or, on the node or in the image flavour that has the iptables binaries, run `%s-save -c -t raw | grep -v %q | %[3]s-restore -c`)", iptables.ErrUntracked, missing, program, NodeCacheComment)
}

// deleteRules deletes rules from the chains of node-cache in a table of nf_tables.
func deleteRules(cfg Config, f iptables.Family, name string, gone func(nfnl.Rule) bool) (deleted int, err error) {
	table := &nftables.Table{Name: name, Family: nftables.TableFamilyIPv4}
	if f == iptables.IPv6 {
		table.Family = nftables.TableFamilyIPv6
	}
	for _, name := range nodeCacheChains[name] {
		chain := &nftables.Chain{Table: table, Name: name}
		for tries := 0; ; tries++ {
			n, err := deleteFrom(cfg, chain, gone)
			deleted += n
			switch {
			case err == nil:
			case nfnl.IsAbsent(err):
				return deleted, nil
			case errors.Is(err, unix.ENOENT) && tries < 10:
				continue // somebody else has deleted one of them meanwhile
			default:
				return deleted, nfnl.Explain("delete rules of node-cache from chain "+nfnl.FamilyName(table.Family)+" "+table.Name+" "+name, err)
			}
			break
		}
	}
	return deleted, nil
}

// deleteFrom has a socket of its own: after a refusal answers may be left in one.
func deleteFrom(cfg Config, chain *nftables.Chain, gone func(nfnl.Rule) bool) (deleted int, err error) {
	conn, err := nfnl.Dial(cfg)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	rules, err := nfnl.Rules(conn, chain.Table.Family, chain.Table.Name, chain.Name, gone)
	if err != nil {
		return 0, err
	}
	// The answers to one batch have to find room in the socket.
	for part := range slices.Chunk(rules, 64) {
		tx, err := nfnl.Encode(func(c *nftables.Conn) error {
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

// nodeCacheRule reports whether a rule is one of node-cache's, and of which
// endpoint: it has the comment and does what the comment says to all packets to, or
// from, one address, port and protocol, and to no others.
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
	it := evaluator.AsksFor(r)
	e := it.Endpoint
	if !e.Addr.IsValid() || e.Port == 0 || e.Proto == 0 || !evaluator.MeetsAll(r, it) {
		return e, false
	}
	for _, other := range []iptables.Endpoint{
		{Addr: e.Addr.Next(), Port: e.Port, Proto: e.Proto}, {Addr: e.Addr.Prev(), Port: e.Port, Proto: e.Proto},
		{Addr: e.Addr, Port: e.Port + 1, Proto: e.Proto}, {Addr: e.Addr, Port: e.Port - 1, Proto: e.Proto},
		{Addr: e.Addr, Port: e.Port, Proto: iptables.UDP ^ iptables.TCP ^ e.Proto},
	} {
		if other.Addr.IsValid() && evaluator.MeetsAll(r, evaluator.Traffic{Endpoint: other, Direction: it.Direction}) {
			return e, false
		}
	}
	return e, true
}

// listening reports whether any socket of this network namespace takes what
// comes to an address and port, over UDP or TCP.
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

// NodeCacheComment starts the comment of node-cache's rules (kubernetes/dns,
// cmd/node-cache/app/cache_app.go).
const NodeCacheComment = "NodeLocal DNS Cache:"
