package nftables

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/internal/nfnl"
)

// The ruleset. Sets, for each family (their names end in 4 or 6):
//
//	listen   endpoints of the plan, static
//	live     listen addresses whose queries are untracked; elements time out
//	lease    full tuples of the answers that renew live
//	check    source addresses and ports of our own checks
//	exempt   TCP connections that are tracked and stay so until they end
//	held     TCP connections that our listeners hold
//	opening  TCP connections that our listeners have agreed to, for a moment
//	closing  TCP connections of ours that have ended, for a moment
//	draining listen addresses whose connections we keep after a detach
//	unowned  listen addresses that no Service owns
//	sources  who is served although an uplink brings it
//	uplinks  devices with a default route, both families
//	asked    devices whose queries were untracked and have not arrived yet
//	arrived  devices whose queries passed everybody's filter rules lately
//	aside    devices whose queries stay tracked, since they do not arrive
//
// Queries all pass prerouting (the node's own arrive there over lo) and
// responses all leave through output, so each packet is counted once although
// what the node sends to itself passes both hooks. A packet that is no DNS
// costs two set lookups per hook.

// Timeouts of what packets put into sets. Every packet of the connection sets
// them anew; DNS servers close idle connections much earlier (RFC 7766 6.2.3).
//
// Whoever can send a SYN can send as many as a set has room for. So a connection
// that has only begun is noted for as long as its handshake takes, apart from those
// that are in use, which the kernel makes of a handshake that was ended; and one
// that has ended for as long as its last segments take.
const (
	connectionTimeout = 10 * time.Minute
	openingTimeout    = 2 * time.Second // a SYN-ACK is sent again after 1 s (RFC 6298)
	closingTimeout    = 10 * time.Second
	begunTimeout      = 10 * time.Second // of one that will be tracked: its next segment may take a second SYN
)

// chains of one variant of the ruleset.
func chains(lease time.Duration, dryRun bool) []chain {
	prerouting, output := iptables.Prerouting, iptables.Output
	count := func(name string, d iptables.Direction) chain {
		c := chain{name: name}
		if !dryRun {
			c.rules = append(c.rules, rule{notrack{}})
		}
		if !dryRun && d == iptables.Query {
			c.rules = append(c.rules, asked(iptables.IPv4), asked(iptables.IPv6))
		}
		for _, k := range iptables.CounterKeys() {
			if k.Direction == d {
				c.rules = append(c.rules, rule{ofClass{k.Family, k.Proto}, countKey(k)})
			}
		}
		return c
	}
	pre, post := chain{name: "prerouting", hook: &prerouting}, chain{name: "output", hook: &output}
	if dryRun {
		// kube-proxy rewrites what stays tracked, so the node's own queries do
		// not arrive here: they are counted as they leave, all others as they
		// arrive. Responses do not come from our listeners. Only our own checks
		// are untracked, or kube-proxy would have somebody else answer them.
		out := []chain{count("queries", iptables.Query)}
		pre.rules = append(pre.rules, rule{onLo(prerouting), accept{}})
		for _, f := range nfnl.Families {
			counting := chain{name: fmt.Sprintf("arriving%d", f), rules: []rule{
				append(foreign(f), accept{}),
				{goToChain("queries")},
			}}
			out = append(out, counting)
			pre.rules = append(pre.rules, rule{in{f, listenSet.key, listenSet, false}, goToChain(counting.name)})
			post.rules = append(post.rules,
				check(f, output), checkAnswer(f, output),
				rule{in{f, listenSet.key, listenSet, false}, goToChain("queries")},
			)
		}
		return append(out, pre, post)
	}
	out := []chain{count("queries", iptables.Query), count("responses", iptables.Response)}
	for _, f := range nfnl.Families {
		out = append(out, arriving(f), leaving(f), answering(f))
	}
	for _, f := range nfnl.Families {
		if lease > 0 {
			post.rules = append(post.rules, rule{
				onLo(output), in{f, leaseSet.key, leaseSet, false},
				put{f, []field{saddr}, liveSet, true, lease}, notrack{}, accept{},
			})
		}
		pre.rules = append(pre.rules,
			check(f, prerouting),
			rule{in{f, listenSet.key, listenSet, false}, goToChain(fmt.Sprintf("arriving%d", f))},
			rule{in{f, responseKey, listenSet, false}, notrack{}, accept{}},
		)
		post.rules = append(post.rules,
			check(f, output), checkAnswer(f, output),
			rule{in{f, listenSet.key, listenSet, false}, goToChain(fmt.Sprintf("leaving%d", f))},
			rule{in{f, responseKey, listenSet, false}, goToChain(fmt.Sprintf("answering%d", f))},
		)
	}
	return append(out, pre, post, arrived())
}

// askedFor and arrivedFor are how long devices stay in the sets. A query that arrives
// takes its device out of those that asked, so that one that is left there has lost
// its queries on the way. It stays there until somebody looks; and what arrived
// lately tells for so short a time that a loss which begins now is found soon.
const (
	askedFor   = iptables.LostFor
	arrivedFor = 500 * time.Millisecond
)

// asked notes the device of a query that nobody but a rule of the node can keep from
// arriving. Of what its client may forge the kernel drops behind our rules a source
// that does not route back through the device (a martian one, or by rp_filter),
// IP options that it does not like, fragments of which no more come, and, if asked
// to, what was broadcast. Where a query arrived lately there is nothing to note.
func asked(f iptables.Family) rule {
	return rule{
		in{f, []field{inDevice}, arrivedSet, true},
		whole(f), toUs{}, routesBack{},
		put{f, []field{inDevice}, askedSet, true, askedFor},
	}
}

// arrived notes behind everybody's filter rules by which devices queries come.
func arrived() chain {
	input := iptables.Input
	c := chain{name: "arrived", hook: &input}
	for _, f := range nfnl.Families {
		c.rules = append(c.rules, rule{
			in{f, listenSet.key, listenSet, false},
			take{f, []field{inDevice}, askedSet}, put{f, []field{inDevice}, arrivedSet, true, arrivedFor}, accept{},
		})
	}
	return c
}

// aside leaves what comes from some devices tracked, as it would be without us.
func aside(f iptables.Family) []rule {
	by := in{f, []field{inDevice}, asideSet, false}
	return []rule{
		{by, isSYN, put{f, tuple, exemptSet, true, begunTimeout}},
		{by, accept{}},
	}
}

// responseKey is the key of the listen set in a response.
var responseKey = []field{saddr, l4proto, sport}

// check and checkAnswer untrack our own checks of the listeners, in every state.
func check(f iptables.Family, h iptables.Hook) rule {
	return rule{onLo(h), in{f, checkSet.key, checkSet, false}, in{f, listenSet.key, listenSet, false}, notrack{}, accept{}}
}

func checkAnswer(f iptables.Family, h iptables.Hook) rule {
	return rule{onLo(h), in{f, responseKey, listenSet, false}, in{f, []field{daddr, l4proto, dport}, checkSet, false}, notrack{}, accept{}}
}

// foreign begins a rule for what comes from outside.
func foreign(f iptables.Family) rule {
	return rule{
		in{f, []field{inDevice}, uplinkSet, false},
		in{f, []field{saddr}, sourceSet, true},
	}
}

// arriving decides about queries in prerouting.
func arriving(f iptables.Family) chain {
	return chain{name: fmt.Sprintf("arriving%d", f), rules: append([]rule{
		// From outside: to a Service address it goes on to kube-proxy as ever,
		// an address that no Service owns is nobody's business out there.
		append(foreign(f), in{f, []field{daddr}, unownedSet, false}, drop{}),
		append(foreign(f), accept{}),
	}, queryRules(f, aside(f), goToChain("queries"))...)}
}

// leaving decides about the node's own queries in output.
func leaving(f iptables.Family) chain {
	return chain{name: fmt.Sprintf("leaving%d", f), rules: queryRules(f, nil, notrack{}, accept{})}
}

// tuple is the key of TCP connections as queries have it, and as the responses
// to them do.
var (
	tuple         = []field{saddr, l4proto, sport, daddr, dport}
	reversedTuple = []field{daddr, l4proto, dport, saddr, sport}
)

// queryRules decide about queries; tracked are rules about those that stay tracked
// whether or not we are attached.
func queryRules(f iptables.Family, tracked []rule, untrack ...statement) []rule {
	out := []rule{
		// A client's reset is the last that is heard of a connection. A forged one
		// does nothing: the kernel answers it, and the connection is held again.
		ended(f, tuple, isReset),
		// Tracked before we attached: kube-proxy rewrites it until it ends.
		{in{f, tuple, exemptSet, false}, put{f, tuple, exemptSet, true, connectionTimeout}, accept{}},
	}
	out = append(out, tracked...)
	out = append(out, append(rule{in{f, []field{daddr}, liveSet, false}}, untrack...))
	// Not live, but the connection is ours: it stays so during the drain. A
	// lapse does not count as one: a process that hangs gives up its
	// connections with the rest, and the cluster's DNS resets them at once.
	for _, set := range []setKind{heldSet, openingSet, closingSet} {
		out = append(out, append(rule{in{f, []field{daddr}, drainSet, false}, in{f, tuple, set, false}}, untrack...))
	}
	// A connection that will be tracked, since nothing above took it.
	return append(out, rule{isSYN, put{f, tuple, exemptSet, true, begunTimeout}})
}

// ended notes the end of a connection that we hold.
func ended(f iptables.Family, key []field, segment tcpFlags) rule {
	return rule{segment, in{f, key, heldSet, false}, take{f, key, heldSet}, put{f, key, closingSet, true, closingTimeout}}
}

// answering untracks and counts responses, and notes connections that we hold.
func answering(f iptables.Family) chain {
	return chain{name: fmt.Sprintf("answering%d", f), rules: []rule{
		// One that answers here is none that is tracked, although the rules above
		// may have taken it for one: another instance untracks it. Its port may
		// have been that of one before it.
		{isSYNACK, take{f, reversedTuple, exemptSet}, take{f, reversedTuple, closingSet}, put{f, reversedTuple, openingSet, true, openingTimeout}},
		ended(f, reversedTuple, isEnd),
		{isMiddle, in{f, reversedTuple, closingSet, true}, put{f, reversedTuple, heldSet, true, connectionTimeout}},
		{goToChain("responses")},
	}}
}

// lastPriority is behind the filter and security rules of everybody.
const lastPriority = 1000

func countKey(k iptables.CounterKey) statement { return count(k) }

// counterName gives for example "query-ipv4-udp".
func counterName(k iptables.CounterKey) string {
	return fmt.Sprintf("%s-%s-%s", k.Direction, k.Family, k.Proto)
}

// ruleset holds the objects of one table by which transactions name them.
type ruleset struct {
	table *nftables.Table
	sets  map[string]*nftables.Set
	noFIB bool // the kernel has no nft_fib_inet: nobody notes who asked
}

func (rs *ruleset) chains(p iptables.Plan) []chain {
	all := chains(p.Lease, p.DryRun)
	if !rs.noFIB {
		return all
	}
	for i := range all {
		all[i].rules = slices.DeleteFunc(all[i].rules, func(r rule) bool { return slices.Contains(r, statement(routesBack{})) })
	}
	return all
}

func newRuleset(name string) *ruleset { return newRulesetOf(name, setKinds) }

func newRulesetOf(name string, kinds []setKind) *ruleset {
	rs := &ruleset{
		table: &nftables.Table{Name: name, Family: nftables.TableFamilyINet},
		sets:  map[string]*nftables.Set{},
	}
	for _, k := range kinds {
		for _, f := range k.families() {
			set := &nftables.Set{Table: rs.table, Name: k.instance(f), KeyType: k.datatype(f)}
			if k.dynamic {
				set.Dynamic, set.HasTimeout, set.Size = true, true, k.size
			}
			set.Interval = k.ranges
			if k.any {
				set.KeyByteOrder = binaryutil.NativeEndian // device names, as nft marks them
			}
			rs.sets[set.Name] = set
		}
	}
	return rs
}

func (rs *ruleset) set(k setKind, f iptables.Family) *nftables.Set { return rs.sets[k.instance(f)] }

// build queues everything but the table itself and the sets' elements.
func (rs *ruleset) build(c *nfnl.Encoder, p iptables.Plan) error {
	if err := rs.addSets(c, setKinds); err != nil {
		return err
	}
	for _, k := range iptables.CounterKeys() {
		c.AddCounter(rs.table, counterName(k))
	}
	rs.addChains(c, rs.chains(p))
	return nil
}

func (rs *ruleset) addSets(c *nfnl.Encoder, kinds []setKind) error {
	for _, k := range kinds {
		for _, f := range k.families() {
			if err := c.AddSet(rs.set(k, f)); err != nil {
				return err
			}
		}
	}
	return nil
}

// rebuild replaces the rules of one variant by those of another. Sets and
// counters stay.
func (rs *ruleset) rebuild(c *nfnl.Encoder, old, p iptables.Plan) {
	former := rs.chains(old)
	for _, ch := range former {
		c.FlushChain(&nftables.Chain{Table: rs.table, Name: ch.name})
	}
	// Not before all are flushed: a chain cannot go while a rule leads to it.
	for _, ch := range former {
		c.DelChain(&nftables.Chain{Table: rs.table, Name: ch.name})
	}
	rs.addChains(c, rs.chains(p))
}

func (rs *ruleset) addChains(c *nfnl.Encoder, all []chain) {
	policy := nftables.ChainPolicyAccept
	added := map[string]*nftables.Chain{}
	for _, ch := range all {
		n := &nftables.Chain{Table: rs.table, Name: ch.name}
		if ch.hook != nil {
			n.Type, n.Priority, n.Policy = nftables.ChainTypeFilter, nftables.ChainPriorityRaw, &policy
			switch *ch.hook {
			case iptables.Prerouting:
				n.Hooknum = nftables.ChainHookPrerouting
			case iptables.Output:
				n.Hooknum = nftables.ChainHookOutput
			case iptables.Input:
				n.Hooknum, n.Priority = nftables.ChainHookInput, nftables.ChainPriorityRef(lastPriority)
			}
		}
		added[ch.name] = c.AddChain(n)
	}
	for _, ch := range all {
		for _, r := range ch.rules {
			var exprs []expr.Any
			for _, s := range r {
				exprs = append(exprs, s.exprs(rs)...)
			}
			c.AddRule(&nftables.Rule{Table: rs.table, Chain: added[ch.name], Exprs: exprs})
		}
	}
}

// contents are what the static sets shall hold for the rules.
func (rs *ruleset) contents(r iptables.Rules) (all []content) {
	static := staticElements(r)
	for _, k := range setKinds {
		if k.dynamic {
			continue
		}
		for _, f := range k.families() {
			s := content{set: rs.set(k, f)}
			if k.ranges {
				s.elements = intervals(f, r.Plan.Sources)
			}
			for _, key := range static[s.set.Name] {
				s.elements = append(s.elements, nftables.SetElement{Key: key})
			}
			all = append(all, s)
		}
	}
	return all
}

// staticElements are the keys of the sets that packets do not fill, by the
// set's name. Intervals are not among them.
func staticElements(r iptables.Rules) map[string][][]byte {
	out := map[string][][]byte{}
	add := func(k setKind, a netip.Addr, key []byte) {
		name := k.instance(iptables.FamilyOf(a))
		out[name] = append(out[name], key)
	}
	for _, k := range setKinds {
		if !k.dynamic {
			for _, f := range k.families() {
				out[k.instance(f)] = nil
			}
		}
	}
	for _, e := range r.Plan.Endpoints() {
		add(listenSet, e.Addr, endpointKey(e))
	}
	for _, c := range r.Checks {
		add(checkSet, c.Addr, endpointKey(c.Endpoint))
	}
	for _, l := range r.Leases {
		// The answer: from the listen endpoint to the lease port.
		add(leaseSet, l.Listen.Addr(), tupleKey(iptables.UDP, l.Listen, l.Source))
	}
	for _, a := range r.Unowned {
		add(unownedSet, a, addrKey(a))
	}
	if !r.Plan.AnySource {
		for _, device := range r.Uplinks {
			out[uplinkSet.name] = append(out[uplinkSet.name], nfnl.DeviceKey(device))
		}
	}
	return out
}

// intervals are the elements of an interval set: the first address of each
// prefix, and the first one behind it.
func intervals(f iptables.Family, prefixes []netip.Prefix) []nftables.SetElement {
	var out []nftables.SetElement
	for _, p := range prefixes {
		if iptables.FamilyOf(p.Addr()) != f {
			continue
		}
		p = p.Masked()
		end := p.Addr().AsSlice()
		for i := p.Bits(); i < len(end)*8; i++ {
			end[i/8] |= 0x80 >> (i % 8)
		}
		out = append(out, nftables.SetElement{Key: addrKey(p.Addr())})
		last, _ := netip.AddrFromSlice(end)
		if next := last.Next(); next.IsValid() {
			out = append(out, nftables.SetElement{Key: addrKey(next), IntervalEnd: true})
		}
	}
	return out
}

// Keys of set elements: every part is padded to 32 bits.

func addrKey(a netip.Addr) []byte { return a.AsSlice() }

func protoPortKey(p iptables.Proto, port uint16) []byte {
	return []byte{byte(p), 0, 0, 0, byte(port >> 8), byte(port), 0, 0}
}

// endpointKey is the key of listen and check: address . protocol . port.
func endpointKey(e iptables.Endpoint) []byte {
	return append(addrKey(e.Addr), protoPortKey(e.Proto, e.Port)...)
}

// tupleKey is the key of lease, exempt and held: source, protocol, source
// port, destination, destination port.
func tupleKey(proto iptables.Proto, src, dst netip.AddrPort) []byte {
	key := append(addrKey(src.Addr()), protoPortKey(proto, src.Port())...)
	key = append(key, addrKey(dst.Addr())...)
	return append(key, byte(dst.Port()>>8), byte(dst.Port()), 0, 0)
}
