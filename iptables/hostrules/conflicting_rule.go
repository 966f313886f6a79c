package hostrules

import (
	"cmp"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/hostrules/evaluator"
	"github.com/trackless-dns/trackless/iptables/internal/nfnl"
	"github.com/trackless-dns/trackless/iptables/owner"
	"github.com/trackless-dns/trackless/iptables/predecessor"
)

// ConflictingRule is a rule of another program that affects the DNS of this node before
// conntrack, or a rule that Kubernetes' node-cache left.
type ConflictingRule struct {
	// Family, Table and Chain are those of the rule, in the words of nft.
	Family, Table, Chain string
	// Legacy tells a table of iptables-legacy.
	Legacy bool
	// Hook and Priority are those of the base chain that leads to the rule.
	Hook     string
	Priority int
	// Handle is the number of the rule, as `nft -a list ruleset` shows it. In a
	// legacy table it is the place in the chain. 0 is the policy of the chain.
	Handle uint64
	// Effects are its effects: notrack, accept, drop, queue, or the name of another
	// statement.
	Effects []string
	// Concerns are the endpoints whose queries or responses match it.
	Concerns []iptables.Endpoint
	// Directions tell whether queries or responses match it.
	Directions []iptables.Direction
	// Certain tells that all these packets match it. Otherwise it has conditions on
	// the client, the interface or the like. If some packets certainly match,
	// packets that may match are left out.
	Certain bool
	// NodeCache tells that it has the comment of Kubernetes' node-cache.
	NodeCache bool
	// Text is the rule as text.
	Text string
}

// EffectZone is the effect of a rule that puts packets into a zone of connection
// tracking.
const EffectZone = evaluator.EffectZone

// conntrackPriority is NF_IP_PRI_CONNTRACK. A rule before it can keep a packet from our
// rules, or untrack it itself.
const conntrackPriority = -200

// ConflictingRules finds the rules of other tables that affect the endpoints: those in the
// base chains of prerouting, output and ingress before conntrack, those in the chains to
// which these jump, and the rules that node-cache left in raw and filter. It reads
// nf_tables, with the tables of iptables-nft, and the tables of iptables-legacy, but no
// BPF programs. It needs CAP_NET_ADMIN.
func ConflictingRules(cfg Config, endpoints []iptables.Endpoint) ([]ConflictingRule, error) {
	conn, err := nfnl.Dial(cfg)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	chains, err := nfnl.ActiveChains(cfg, conn)
	if err != nil && !nfnl.IsAbsent(err) {
		return nil, nfnl.Explain("list chains", err)
	}
	var probes []evaluator.Probe
	for _, e := range endpoints {
		probes = append(probes, evaluator.Probe{Endpoint: e, Direction: iptables.Query}, evaluator.Probe{Endpoint: e, Direction: iptables.Response})
	}
	mayMatch := evaluator.MayMatch(probes)
	s := newSearch(conn, func(f nftables.TableFamily, r nfnl.Rule) bool {
		return strings.HasPrefix(r.Comment, predecessor.NodeCacheComment) || mayMatch(f, r)
	})
	others, err := s.addLegacy(cfg)
	if err != nil {
		return nil, err
	}
	for _, c := range append(chains, others...) {
		if strings.HasPrefix(c.Table, owner.TablePrefix) {
			continue
		}
		hook, before := beforeConntrack(c)
		switch {
		case before:
			err = s.base(c, hook, endpoints)
		case hook != "":
			err = s.nodeCache(c, hook)
		}
		if err != nil {
			return nil, nfnl.Explain("read chain "+nfnl.FamilyName(c.Family)+" "+c.Table+" "+c.Name, err)
		}
	}
	return s.list(), nil
}

// beforeConntrack returns the hook of a base chain, "" for hooks that are not searched,
// and whether packets pass it before conntrack.
func beforeConntrack(c nfnl.BaseChain) (hook string, before bool) {
	switch c.Family {
	case nftables.TableFamilyNetdev:
		// Its second hook, egress, comes after all our hooks.
		if c.Hook == nfnl.HookNetdev {
			return "ingress", true
		}
	case nftables.TableFamilyBridge:
		// Packets that come in over a bridge of this node pass here first. The
		// other hooks come later, or are for packets that this node only forwards.
		if c.Hook == nfnl.HookPrerouting {
			return "prerouting", true
		}
	case nftables.TableFamilyINet, nftables.TableFamilyIPv4, nftables.TableFamilyIPv6:
		switch c.Hook {
		case nfnl.HookPrerouting:
			return "prerouting", c.Priority < conntrackPriority
		case nfnl.HookOutput:
			return "output", c.Priority < conntrackPriority
		case nfnl.HookInput:
			return "input", false
		case nfnl.HookInetIngress:
			return "ingress", true
		}
	}
	return "", false
}

// reach returns how certainly a packet comes to a base chain: some chains see only
// packets of certain devices.
func reach(c nfnl.BaseChain) evaluator.Certainty {
	if c.AtDevices() || c.Family == nftables.TableFamilyBridge {
		return evaluator.Maybe
	}
	return evaluator.Always
}

// chainID identifies a chain or a set.
type chainID struct {
	family      nftables.TableFamily
	table, name string
}

type foundKey struct {
	chainID
	base   string
	handle uint64
}

// foundRule is a rule and the probes that match it.
type foundRule struct {
	ConflictingRule
	hits []hit
}

type hit struct {
	evaluator.Probe
	certain bool
}

// finish fills in the fields that follow from the hits.
func (f *foundRule) finish() ConflictingRule {
	byCertainty := func(h hit) bool { return h.certain }
	f.Certain = len(f.hits) == 0 || slices.ContainsFunc(f.hits, byCertainty)
	for _, h := range f.hits {
		if h.certain != f.Certain {
			continue
		}
		if !slices.Contains(f.Concerns, h.Endpoint) {
			f.Concerns = append(f.Concerns, h.Endpoint)
		}
		if !slices.Contains(f.Directions, h.Direction) {
			f.Directions = append(f.Directions, h.Direction)
		}
	}
	slices.SortFunc(f.Concerns, iptables.Endpoint.Compare)
	slices.Sort(f.Directions)
	return f.ConflictingRule
}

// search follows packets through chains, and keeps the rules and sets that it has read.
type search struct {
	conn *netlink.Conn
	// wanted picks the rules that are kept, since other programs may have very many.
	wanted func(nftables.TableFamily, nfnl.Rule) bool

	rules map[chainID][]nfnl.Rule
	sets  map[chainID][]nfnl.Element
	// filled tells of sets whether packets fill them; only a cautious search asks.
	filled map[chainID]bool
	// filtered are the rules of chains that match one kind of packet.
	filtered map[relevantKey][]nfnl.Rule
	// ends reports whether a chain that may end so is looked for.
	ends func(verdicts) bool
	// cautious counts packets as dropped that a rule gives to another program or receiver,
	// and takes a client whose address or port is not known for any.
	cautious bool
	found    map[foundKey]*foundRule
}

func newSearch(conn *netlink.Conn, wanted func(nftables.TableFamily, nfnl.Rule) bool) *search {
	return &search{
		conn: conn, wanted: wanted, rules: map[chainID][]nfnl.Rule{}, sets: map[chainID][]nfnl.Element{},
		filled: map[chainID]bool{}, filtered: map[relevantKey][]nfnl.Rule{}, found: map[foundKey]*foundRule{},
	}
}

// base runs a query to each endpoint, and a response from it, through a base chain.
func (s *search) base(c nfnl.BaseChain, hook string, endpoints []iptables.Endpoint) error {
	if err := s.nodeCache(c, hook); err != nil {
		return err
	}
	for _, e := range endpoints {
		for _, d := range []iptables.Direction{iptables.Query, iptables.Response} {
			p := evaluator.Probe{Endpoint: e, Direction: d}
			if !p.Passes(c.Family) {
				continue
			}
			w := walk{search: s, base: c, hook: hook, probe: p}
			reached := reach(c)
			ended, err := w.chain(c.Name, reached, 0)
			if err != nil {
				return err
			}
			if c.Policy == nfnl.VerdictDrop && ended != evaluator.Always {
				w.add(c.Name, nfnl.Rule{}, evaluator.Outcome{Matches: evaluator.Always, Verdict: &nfnl.Verdict{Code: nfnl.VerdictDrop}}, min(reached, evaluator.Always-ended))
			}
		}
	}
	return nil
}

// nodeCache finds the rules of node-cache in a base chain of its tables.
func (s *search) nodeCache(c nfnl.BaseChain, hook string) error {
	if table, _ := legacyTable(c); table != "raw" && table != "filter" {
		return nil
	}
	rules, err := s.rulesOf(chainID{c.Family, c.Table, c.Name})
	if err != nil {
		return err
	}
	w := walk{search: s, base: c, hook: hook}
	for _, r := range rules {
		if strings.HasPrefix(r.Comment, predecessor.NodeCacheComment) {
			w.add(c.Name, r, evaluator.Unconditional(r, w.elements), evaluator.Always).NodeCache = true
		}
	}
	return nil
}

func (s *search) rulesOf(id chainID) ([]nfnl.Rule, error) {
	if rules, ok := s.rules[id]; ok {
		return rules, nil
	}
	rules, err := nfnl.Rules(s.conn, id.family, id.table, id.name, func(r nfnl.Rule) bool { return s.wanted(id.family, r) })
	s.rules[id] = rules
	return rules, err
}

func (s *search) list() []ConflictingRule {
	out := make([]ConflictingRule, 0, len(s.found))
	for _, f := range s.found {
		out = append(out, f.finish())
	}
	slices.SortFunc(out, func(a, b ConflictingRule) int {
		return cmp.Or(cmp.Compare(a.Hook, b.Hook), cmp.Compare(a.Priority, b.Priority), cmp.Compare(a.Family, b.Family),
			cmp.Compare(a.Table, b.Table), cmp.Compare(a.Chain, b.Chain), cmp.Compare(a.Handle, b.Handle))
	})
	return out
}

// walk runs one probe through one base chain and notes the rules that it matches.
type walk struct {
	*search
	base  nfnl.BaseChain
	hook  string
	probe evaluator.Probe
}

func (w *walk) elements(set string) ([]nfnl.Element, error) {
	id := chainID{w.base.Family, w.base.Table, set}
	if elements, ok := w.sets[id]; ok {
		return elements, nil
	}
	elements, err := nfnl.Elements(w.conn, id.family, id.table, id.name, nil)
	if err == nil {
		w.sets[id] = elements
	}
	return elements, err
}

// ourChains is the prefix of the chains of the iptables backend. They do not keep
// packets from other chains.
const ourChains = "TRACKLESS-"

// maxJumps is the kernel's bound (NFT_JUMP_STACK_SIZE).
const maxJumps = 16

// chain runs the probe through a chain, and returns how certainly a verdict ends its path
// through the base chain here.
func (w *walk) chain(name string, reached evaluator.Certainty, depth int) (ended evaluator.Certainty, err error) {
	if depth > maxJumps {
		return evaluator.Never, nil
	}
	rules, err := w.rulesOf(chainID{w.base.Family, w.base.Table, name})
	if err != nil {
		return evaluator.Never, err
	}
	for _, r := range rules {
		o := evaluator.Evaluate(r, w.probe, w.elements)
		if o.Matches == evaluator.Never || o.Verdict != nil && strings.HasPrefix(o.Verdict.Chain, ourChains) {
			continue
		}
		here := min(reached, o.Matches)
		if len(o.Effects) > 0 || o.Verdict != nil && o.Verdict.Final() {
			w.add(name, r, o, reached)
		}
		if o.Verdict == nil {
			continue
		}
		switch o.Verdict.Code {
		case nfnl.VerdictJump, nfnl.VerdictGoto:
			below, err := w.chain(o.Verdict.Chain, here, depth+1)
			if err != nil {
				return evaluator.Never, err
			}
			ended = max(ended, min(below, o.Matches))
			if o.Matches == evaluator.Always && (below == evaluator.Always || o.Verdict.Code == nfnl.VerdictGoto) {
				return ended, nil
			}
		case nfnl.VerdictReturn:
			if o.Matches == evaluator.Always {
				return ended, nil
			}
		default:
			if ended = max(ended, o.Matches); o.Matches == evaluator.Always {
				return ended, nil
			}
		}
	}
	return ended, nil
}

// add notes that the probe matches a rule.
func (w *walk) add(chain string, r nfnl.Rule, o evaluator.Outcome, reached evaluator.Certainty) *foundRule {
	key := foundKey{chainID{w.base.Family, w.base.Table, chain}, w.base.Name, r.Handle}
	f := w.found[key]
	if f == nil {
		effects := o.Effects
		if o.Verdict != nil && o.Verdict.Final() {
			effects = append(slices.Clone(effects), o.Verdict.String())
		}
		table, isLegacy := legacyTable(w.base)
		f = &foundRule{ConflictingRule: ConflictingRule{
			Family: nfnl.FamilyName(w.base.Family), Table: table, Chain: chain, Legacy: isLegacy,
			Hook: w.hook, Priority: int(w.base.Priority), Handle: r.Handle, Effects: effects,
			Text: evaluator.RuleText(r, ruleFamily(r, w.base.Family) == iptables.IPv6),
		}}
		if r.Handle == 0 {
			f.Text = "policy drop"
		}
		w.found[key] = f
	}
	if w.probe.Endpoint.Addr.IsValid() {
		f.hits = append(f.hits, hit{w.probe, min(reached, o.Matches) == evaluator.Always})
	}
	return f
}

// ruleFamily returns the IP version whose header a rule reads: that of the table, or in
// a table for both, the one that the rule matches.
func ruleFamily(r nfnl.Rule, family nftables.TableFamily) iptables.Family {
	switch family {
	case nftables.TableFamilyIPv4:
		return iptables.IPv4
	case nftables.TableFamilyIPv6:
		return iptables.IPv6
	}
	// nft puts a comparison directly after the load.
	for i, e := range r.Exprs[:max(len(r.Exprs)-1, 0)] {
		value := r.Exprs[i+1].Value(unix.NFTA_CMP_DATA)
		switch {
		case e.Name != "meta" || r.Exprs[i+1].Name != "cmp":
		case e.Number(unix.NFTA_META_KEY) == unix.NFT_META_NFPROTO && slices.Equal(value, []byte{unix.NFPROTO_IPV6}),
			e.Number(unix.NFTA_META_KEY) == unix.NFT_META_PROTOCOL && slices.Equal(value, []byte{0x86, 0xdd}):
			return iptables.IPv6
		}
	}
	return iptables.IPv4
}
