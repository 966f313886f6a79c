package hostrules

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/hostrules/evaluator"
	"github.com/trackless-dns/trackless/iptables/internal/nfnl"
)

// AcceptComment is the comment of our accept rules in the chains of iptables. The number
// is the version of the rules.
const AcceptComment = "trackless 1: untracked DNS"

// acceptTag is the prefix of the comments of all versions.
const acceptTag = "trackless "

// AcceptRule accepts untracked DNS in a chain of iptables' table filter. It has no effect
// if nothing is untracked.
type AcceptRule struct {
	// Family is "ip" or "ip6"; Legacy tells a table of iptables-legacy.
	Family string
	Legacy bool
	Chain  string // INPUT or OUTPUT
	Handle uint64 // of nf_tables; in a legacy chain the number of the rule
	// Endpoint and Direction are those of the packets that it accepts.
	Endpoint  iptables.Endpoint
	Direction iptables.Direction
	Text      string // as nft writes it
}

// Arguments returns the rule as arguments of iptables, without the chain.
func (r AcceptRule) Arguments() []string { return acceptRule{r.Endpoint, r.Direction}.arguments() }

// acceptRule is the traffic that a rule accepts.
type acceptRule evaluator.Traffic

func ruleOf(o DroppingChain) acceptRule { return acceptRule{o.Endpoint, o.Direction} }

func (r acceptRule) v6() bool { return r.Endpoint.Addr.Is6() }

// iptables returns the rule in the syntax of iptables.
func (r acceptRule) iptables() string {
	return strings.Replace(strings.Join(r.arguments(), " "), AcceptComment, strconv.Quote(AcceptComment), 1)
}

// Arguments returns the rule that accepts the dropped packets as arguments of iptables,
// without the chain.
func (o DroppingChain) Arguments() []string { return ruleOf(o).arguments() }

func (r acceptRule) arguments() []string {
	side, port := "-d", "--dport"
	if r.Direction == iptables.Response {
		side, port = "-s", "--sport"
	}
	e := r.Endpoint
	return []string{
		side, netip.PrefixFrom(e.Addr, e.Addr.BitLen()).String(), "-p", e.Proto.String(), "-m", e.Proto.String(), port, fmt.Sprint(e.Port),
		"-m", "conntrack", "--ctstate", "UNTRACKED", "-m", "comment", "--comment", AcceptComment, "-j", "ACCEPT",
	}
}

// nft returns the rule in the syntax of nft.
func (r acceptRule) nft() string {
	family, side, port := "ip", "daddr", "dport"
	if r.v6() {
		family = "ip6"
	}
	if r.Direction == iptables.Response {
		side, port = "saddr", "sport"
	}
	e := r.Endpoint
	return fmt.Sprintf("%s %s %s %s %s %d ct state untracked accept", family, side, e.Addr, e.Proto, port, e.Port)
}

// exprs returns the rule as iptables-nft writes it. The kernel would accept matches of
// nf_tables, too. But iptables 1.8.9 refuses to list a chain with a match that it does
// not write.
func (r acceptRule) exprs() []expr.Any {
	e := r.Endpoint
	offset := uint32(12)
	if r.v6() {
		offset = 8
	}
	ports, any := [2]uint16{e.Port, e.Port}, [2]uint16{0, 0xffff}
	from, to := any, ports
	if r.Direction == iptables.Query {
		offset += uint32(e.Addr.BitLen() / 8)
	} else {
		from, to = ports, any
	}
	transport := &expr.Match{Name: "udp", Info: &xt.Udp{SrcPorts: from, DstPorts: to}}
	if e.Proto == iptables.TCP {
		transport = &expr.Match{Name: "tcp", Info: &xt.Tcp{SrcPorts: from, DstPorts: to}}
	}
	const stateIsUntracked = 1 << 8 // XT_CONNTRACK_STATE_UNTRACKED
	state := &xt.ConntrackMtinfo3{}
	state.MatchFlags, state.StateMask = uint16(xt.ConntrackState), stateIsUntracked
	comment := xt.Comment(AcceptComment)
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(e.Addr.BitLen() / 8)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: e.Addr.AsSlice()},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{byte(e.Proto)}},
		transport,
		&expr.Match{Name: "conntrack", Rev: 3, Info: state},
		&expr.Match{Name: "comment", Info: &comment},
		&expr.Counter{},
		&expr.Verdict{Kind: expr.VerdictAccept},
	}
}

// Accept puts a rule at the top of each chain that drops, in one transaction. All chains
// must be amendable and of nf_tables. It moves a rule of ours that another program's
// rule has come before.
func Accept(cfg Config, dropping []DroppingChain) error {
	if len(dropping) == 0 {
		return nil
	}
	conn, err := nfnl.Dial(cfg)
	if err != nil {
		return err
	}
	defer conn.Close()
	tx, err := nfnl.Encode(func(c *nfnl.Encoder) error {
		for _, o := range dropping {
			if !o.Amendable() || o.Legacy {
				return fmt.Errorf("accept untracked DNS: chain %s %s %s is of a kind to which we add no rules", o.Family, o.Table, o.Chain)
			}
			table := &nftables.Table{Name: o.Table, Family: nftables.TableFamilyIPv4}
			if o.Family == "ip6" {
				table.Family = nftables.TableFamilyIPv6
			}
			chain := &nftables.Chain{Table: table, Name: o.Chain}
			former, err := acceptRules(conn, table.Family, o.Chain)
			if err != nil {
				return err
			}
			for _, r := range former {
				if evaluator.MatchesAll(r, evaluator.Traffic(ruleOf(o))) {
					if err := c.DelRule(&nftables.Rule{Table: table, Chain: chain, Handle: r.Handle}); err != nil {
						return err
					}
				}
			}
			c.InsertRule(&nftables.Rule{Table: table, Chain: chain, Exprs: ruleOf(o).exprs()})
		}
		return nil
	})
	if err != nil {
		return err
	}
	return nfnl.Explain("accept untracked DNS in table filter", tx.Commit(conn))
}

func isAcceptRule(r nfnl.Rule) bool { return strings.HasPrefix(r.Comment, acceptTag) }

// acceptRules reads our rules of a chain.
func acceptRules(conn *netlink.Conn, family nftables.TableFamily, chain string) ([]nfnl.Rule, error) {
	rules, err := nfnl.Rules(conn, family, "filter", chain, isAcceptRule)
	if err != nil && !nfnl.IsAbsent(err) {
		return nil, nfnl.Explain("read chain "+nfnl.FamilyName(family)+" filter "+chain, err)
	}
	return rules, nil
}

// AcceptRules finds our accept rules, also in legacy tables.
func AcceptRules(cfg Config) ([]AcceptRule, error) {
	conn, err := nfnl.Dial(cfg)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	var out []AcceptRule
	s := newSearch(conn, func(_ nftables.TableFamily, r nfnl.Rule) bool { return isAcceptRule(r) })
	legacyChains, err := s.addLegacy(cfg)
	if err != nil {
		return nil, err
	}
	for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
		add := func(chain string, isLegacy bool, rules []nfnl.Rule) {
			for _, r := range rules {
				matched := evaluator.TrafficOf(r)
				out = append(out, AcceptRule{
					nfnl.FamilyName(family), isLegacy, chain, r.Handle, matched.Endpoint, matched.Direction,
					evaluator.RuleText(r, family == nftables.TableFamilyIPv6),
				})
			}
		}
		for _, chain := range []string{"INPUT", "OUTPUT"} {
			rules, err := acceptRules(conn, family, chain)
			if err != nil {
				return nil, err
			}
			add(chain, false, rules)
		}
		for _, c := range legacyChains {
			if table, _ := legacyTable(c); table == "filter" && c.Family == family {
				add(c.Name, true, s.rules[chainID{family, c.Table, c.Name}])
			}
		}
	}
	slices.SortStableFunc(out, func(a, b AcceptRule) int { return cmp.Compare(a.Family, b.Family) })
	return out, nil
}

// RemoveAcceptRule deletes an accept rule of ours from nf_tables. It is no error if the
// rule is gone.
func RemoveAcceptRule(cfg Config, r AcceptRule) error {
	if r.Legacy {
		return fmt.Errorf("delete our rule from chain %s: it is a rule of iptables-legacy", r.Chain)
	}
	table := &nftables.Table{Name: "filter", Family: nftables.TableFamilyIPv4}
	if r.Family == "ip6" {
		table.Family = nftables.TableFamilyIPv6
	}
	tx, err := nfnl.Encode(func(c *nfnl.Encoder) error {
		return c.DelRule(&nftables.Rule{Table: table, Chain: &nftables.Chain{Table: table, Name: r.Chain}, Handle: r.Handle})
	})
	if err != nil {
		return err
	}
	conn, err := nfnl.Dial(cfg)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := tx.Commit(conn); err != nil && !errors.Is(err, unix.ENOENT) {
		return nfnl.Explain("delete our rule from chain "+r.Family+" filter "+r.Chain, err)
	}
	return nil
}
