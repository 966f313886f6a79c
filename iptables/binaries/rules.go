package binaries

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/owner"
)

// The ruleset of one instance in the raw table of one family. Its chains are called
// TRACKLESS-ID-NAME. The first rule of PREROUTING jumps to IN, the first of OUTPUT to
// OUT. Our chains use goto, which does not come back: at the end of its target a packet
// goes on in PREROUTING or OUTPUT after our jump. So packets pass the rules of other
// programs as if we were not there.
//
//	IN         packets that arrive: queries to ARRIVING, responses to UNTRACK
//	ARRIVING   queries: our own to ASKING, from outside to FOREIGN
//	ASKING     over lo: checks are untracked in every state
//	QUERYING   exempt, live, held, or noted
//	TAKE       untracked and counted as a query
//	OUT        packets that leave: queries to LEAVING, responses to ANSWERING
//	LEAVING    the node's own queries: checks, exempt, live, held, or noted
//	ANSWERING  responses; those over lo pass LOCAL first
//	LOCAL      answers to lease probes renew the lease; answers to checks are
//	           untracked in every state
//	REPLYING   notes connections that we accept, hold or end; responses are untracked
//	           and counted
//	QUERIES, RESPONSES  count by protocol and are never emptied
//
// Packets that are not DNS pass one rule for each endpoint and direction.

var families = []iptables.Family{iptables.IPv4, iptables.IPv6}

// Names of chains after the prefix, and their order in `rules plan`.
const (
	inChain         = "IN"
	arrivingChain   = "ARRIVING"
	askingChain     = "ASKING"
	foreignChain    = "FOREIGN"
	queryingChain   = "QUERYING"
	takeChain       = "TAKE"
	outChain        = "OUT"
	leavingChain    = "LEAVING"
	answeringChain  = "ANSWERING"
	localChain      = "LOCAL"
	replyingChain   = "REPLYING"
	untrackChain    = "UNTRACK"
	queriesChain    = "QUERIES"
	responsesChain  = "RESPONSES"
	chainPrefix     = "TRACKLESS-"
	preroutingChain = "PREROUTING"
	outputChain     = "OUTPUT"
)

var chainNames = []string{
	inChain, arrivingChain, askingChain, foreignChain, queryingChain, takeChain,
	outChain, leavingChain, answeringChain, localChain, replyingChain, untrackChain,
	queriesChain, responsesChain,
}

// countingChains keep their counters when the other chains change.
var countingChains = []string{queriesChain, responsesChain}

// connectionTimeout is how long a connection is noted after its last packet. DNS servers
// close idle connections much earlier (RFC 7766 6.2.3). A connection that has only begun,
// or has ended, is noted for a short time: a client that sends SYNs could fill the set.
const (
	connectionTimeout = 10 * time.Minute
	openingTimeout    = 2 * time.Second // a SYN-ACK is sent again after 1 s (RFC 6298)
	closingTimeout    = 10 * time.Second
	begunTimeout      = 10 * time.Second // of a tracked connection: it may need a second SYN
)

// features are the matches that the kernel has.
type features struct {
	recent bool // xt_recent
	ipset  bool // ip_set and xt_set
}

// leases reports whether queries can be untracked for a limited time.
func (f features) leases() bool { return f.recent || f.ipset }

// ruleset is the content of the chains of an instance. It is a pure value.
type ruleset struct {
	id       string
	mark     owner.Mark
	features features
	lease    time.Duration
	rules    iptables.Rules

	// If rules cannot note connections, or nothing can renew a lease, these are
	// written into the rules.
	attached bool
	draining bool
	exempt   []iptables.Connection
	held     []iptables.Connection
}

func (rs *ruleset) chain(name string) string { return chainPrefix + rs.id + "-" + name }

// comment is the owner's mark. The two rules that jump to our chains have it, for
// operators, and a rule of the chain UNTRACK, for us: other programs may delete the jumps.
func (rs *ruleset) comment() string {
	return fmt.Sprintf("-m comment --comment %q", rs.mark)
}

// jump is the rule that jumps from a chain of the table to ours.
func (rs *ruleset) jump(chain string) string {
	target := map[string]string{preroutingChain: inChain, outputChain: outChain}[chain]
	return rule(rs.comment(), "-j", rs.chain(target))
}

// Names of sets and of the list, for one family.
func (rs *ruleset) liveSet(f iptables.Family) string   { return rs.set("live", f) }
func (rs *ruleset) exemptSet(f iptables.Family) string { return rs.set("exempt", f) }
func (rs *ruleset) heldSet(f iptables.Family) string   { return rs.set("held", f) }
func (rs *ruleset) openingSet(f iptables.Family) string {
	return rs.set("opening", f)
}
func (rs *ruleset) closingSet(f iptables.Family) string {
	return rs.set("closing", f)
}
func (rs *ruleset) drainSet(f iptables.Family) string { return rs.set("draining", f) }

// connectionSet is a set of TCP connections.
type connectionSet struct {
	name    string
	timeout time.Duration
}

func (rs *ruleset) connectionSets(f iptables.Family) []connectionSet {
	return []connectionSet{
		{rs.exemptSet(f), connectionTimeout}, {rs.heldSet(f), connectionTimeout},
		{rs.openingSet(f), openingTimeout}, {rs.closingSet(f), closingTimeout},
	}
}

func (rs *ruleset) set(name string, f iptables.Family) string {
	return fmt.Sprintf("%s%s-%s%d", setPrefix, rs.id, name, f)
}

// setPrefix is the prefix of the names of our sets and lists.
const setPrefix = "trackless-"

// rule is one rule, its matches and its target, as iptables-save prints it.
func rule(words ...string) string { return strings.Join(words, " ") }

// to is `-g` to one of our chains.
func (rs *ruleset) to(chain string) string { return "-g " + rs.chain(chain) }

const notrack = "-j CT --notrack"

// chains returns the rules of all chains for a family, by the name of the chain.
func (rs *ruleset) chains(f iptables.Family) map[string][]string {
	out := map[string][]string{
		queriesChain:   {"-p udp", "-p tcp"},
		responsesChain: {"-p udp", "-p tcp"},
		untrackChain:   {rule(rs.comment(), notrack)},
		takeChain:      {notrack, rs.to(queriesChain)},
	}
	add := func(chain string, words ...string) { out[chain] = append(out[chain], rule(words...)) }
	dryRun := rs.rules.Plan.DryRun
	for _, e := range rs.endpoints(f) {
		query := fmt.Sprintf("-d %s -p %s -m %[2]s --dport %d", e.Addr, e.Proto, e.Port)
		response := fmt.Sprintf("-s %s -p %s -m %[2]s --sport %d", e.Addr, e.Proto, e.Port)
		if dryRun {
			// Queries stay tracked and kube-proxy rewrites them, so the node's own
			// queries do not arrive here. They are counted when they leave, others
			// when they arrive. Responses do not come from our listeners.
			add(inChain, "! -i lo", query, rs.to(arrivingChain))
			add(outChain, query, rs.to(leavingChain))
			add(outChain, "-o lo", response, rs.to(localChain))
			continue
		}
		add(inChain, query, rs.to(arrivingChain))
		add(inChain, response, rs.to(untrackChain))
		add(outChain, query, rs.to(leavingChain))
		add(outChain, response, rs.to(answeringChain))
	}
	for _, c := range rs.checks(f) {
		query := fmt.Sprintf("-s %s -p %s -m multiport --sports %s", c.addr, c.proto, c.ports)
		if !dryRun {
			add(askingChain, query, rs.to(untrackChain))
		}
		add(leavingChain, "-o lo", query, rs.to(untrackChain))
	}
	for _, l := range rs.leases(f) {
		out[localChain] = append(out[localChain], rs.renewal(f, l)...)
	}
	for _, c := range rs.checks(f) {
		add(localChain, fmt.Sprintf("-d %s -p %s -m multiport --dports %s", c.addr, c.proto, c.ports), rs.to(untrackChain))
	}
	if dryRun {
		rs.arriving(f, add, "-j RETURN", rs.to(queriesChain))
		add(leavingChain, rs.to(queriesChain))
		return out
	}
	add(arrivingChain, "-i lo", rs.to(askingChain))
	add(askingChain, rs.to(queryingChain))
	rs.arriving(f, add, rs.to(foreignChain), rs.to(queryingChain))
	for _, a := range rs.rules.Unowned {
		if iptables.FamilyOf(a) == f {
			add(foreignChain, "-d", a.String(), "-j DROP")
		}
	}
	out[queryingChain] = rs.query(f, rs.to(takeChain))
	out[leavingChain] = append(out[leavingChain], rs.query(f, rs.to(untrackChain))...)
	add(answeringChain, "-o lo", rs.to(localChain))
	add(answeringChain, rs.to(replyingChain))
	add(localChain, rs.to(replyingChain))
	if rs.features.ipset {
		// Our SYN-ACK notes a connection for a short time. Its later responses note
		// it as held, until it ends. Its SYN came here, so it is not tracked, perhaps
		// because another instance untracked it: it is no longer exempt or closing. An
		// earlier connection may have had its port.
		const tuple, both = "dst,dst,src", "SYN,ACK"
		agreed := rule("-p tcp -m tcp --tcp-flags", both, both)
		add(replyingChain, agreed, "-j SET --add-set", rs.openingSet(f), tuple, "--exist --timeout", seconds(openingTimeout))
		add(replyingChain, agreed, "-j SET --del-set", rs.exemptSet(f), tuple)
		add(replyingChain, agreed, "-j SET --del-set", rs.closingSet(f), tuple)
		for _, flag := range []string{"FIN", "RST"} {
			for _, r := range rs.ended(f, flag, tuple) {
				add(replyingChain, r)
			}
		}
		add(replyingChain, "-p tcp -m tcp --tcp-flags FIN,SYN,RST NONE -m set ! --match-set", rs.closingSet(f), tuple,
			"-j SET --add-set", rs.heldSet(f), tuple, "--exist --timeout", seconds(connectionTimeout))
	}
	add(replyingChain, notrack)
	add(replyingChain, rs.to(responsesChain))
	return out
}

// arriving separates clients that are served from those that come in over an uplink.
func (rs *ruleset) arriving(f iptables.Family, add func(string, ...string), outside, served string) {
	if !rs.rules.Plan.AnySource {
		for _, p := range rs.rules.Plan.Sources {
			if iptables.FamilyOf(p.Addr()) == f {
				add(arrivingChain, "-s", p.Masked().String(), served)
			}
		}
		for _, device := range rs.rules.Uplinks {
			add(arrivingChain, "-i", device, outside)
		}
	}
	add(arrivingChain, served)
}

// ended returns the rules that note the end of a connection that we hold.
func (rs *ruleset) ended(f iptables.Family, flag, tuple string) []string {
	of := rule("-p tcp -m tcp --tcp-flags", flag, flag, "-m set --match-set", rs.heldSet(f), tuple)
	return []string{
		rule(of, "-j SET --add-set", rs.closingSet(f), tuple, "--exist --timeout", seconds(closingTimeout)),
		rule(of, "-j SET --del-set", rs.heldSet(f), tuple),
	}
}

// query returns the rules that decide whether a query is untracked.
func (rs *ruleset) query(f iptables.Family, untrack string) (out []string) {
	add := func(words ...string) { out = append(out, rule(words...)) }
	tuple := func(c iptables.Connection) string {
		return fmt.Sprintf("-s %s -d %s -p tcp -m tcp --sport %d --dport %d", c.Client.Addr(), c.Listen.Addr(), c.Client.Port(), c.Listen.Port())
	}
	note := func(d time.Duration) string {
		return rule("-j SET --add-set", rs.exemptSet(f), "src,src,dst --exist --timeout", seconds(d))
	}
	if rs.features.ipset {
		// A client's reset is the last packet of a connection. After a forged one
		// the kernel answers, and the connection is held again.
		out = append(out, rs.ended(f, "RST", "src,src,dst")...)
		// It was tracked before we attached: kube-proxy rewrites it until it ends.
		known := rule("-p tcp -m set --match-set", rs.exemptSet(f), "src,src,dst")
		add(known, note(connectionTimeout))
		add(known, "-j RETURN")
	}
	for _, c := range rs.exempt {
		if iptables.FamilyOf(c.Listen.Addr()) == f {
			add(tuple(c), "-j RETURN")
		}
	}
	switch {
	case rs.features.recent:
		add("-m recent --name", rs.liveSet(f), "--rdest --rcheck --seconds", seconds(rs.lease), untrack)
	case rs.features.ipset:
		add("-m set --match-set", rs.liveSet(f), "dst", untrack)
	case rs.attached:
		add(untrack)
	}
	// The address is not live, but the connection is ours: it stays so during a drain,
	// not after a lease that ran out.
	if rs.features.ipset {
		for _, set := range []string{rs.heldSet(f), rs.openingSet(f), rs.closingSet(f)} {
			add("-p tcp -m set --match-set", rs.drainSet(f), "dst -m set --match-set", set, "src,src,dst", untrack)
		}
	}
	for _, c := range rs.held {
		if iptables.FamilyOf(c.Listen.Addr()) == f && rs.draining {
			add(tuple(c), untrack)
		}
	}
	if rs.features.ipset {
		// A connection that will be tracked: no rule above untracks it, and no other
		// instance before us.
		add("-p tcp -m tcp --tcp-flags SYN,ACK SYN -m conntrack ! --ctstate UNTRACKED", note(begunTimeout))
	}
	return out
}

// renewal returns the rules for the answer to a lease probe: from this endpoint, over
// lo, to the ports of this instance.
func (rs *ruleset) renewal(f iptables.Family, l portGroup) []string {
	match := fmt.Sprintf("-o lo -s %s -d %[1]s -p udp -m udp --sport %d -m multiport --dports %s", l.addr, l.listen, l.ports)
	if rs.features.ipset {
		match += " -m set ! --match-set " + rs.drainSet(f) + " src" // nothing renews after a detach
	}
	switch {
	case rs.features.recent:
		return []string{rule(match, "-m recent --name", rs.liveSet(f), "--rsource --set", rs.to(untrackChain))}
	case rs.features.ipset:
		return []string{
			rule(match, "-j SET --add-set", rs.liveSet(f), "src --exist --timeout", seconds(rs.lease)),
			rule(match, rs.to(untrackChain)),
		}
	}
	return nil
}

func seconds(d time.Duration) string { return strconv.Itoa(int(d / time.Second)) }

func (rs *ruleset) endpoints(f iptables.Family) (out []iptables.Endpoint) {
	for _, e := range rs.rules.Plan.Endpoints() {
		if iptables.FamilyOf(e.Addr) == f {
			out = append(out, e)
		}
	}
	return out
}

// families returns the families of the endpoints in the plan.
func (rs *ruleset) families() (out []iptables.Family) {
	for _, f := range families {
		if len(rs.endpoints(f)) > 0 {
			out = append(out, f)
		}
	}
	return out
}

// portGroup is an address with the ports of one rule.
type portGroup struct {
	addr   netip.Addr
	proto  iptables.Proto
	listen uint16
	ports  string
}

// portsPerRule is the limit of multiport (XT_MULTI_PORTS in xt_multiport.h).
const portsPerRule = 15

func groupPorts(ports map[portGroup][]uint16) (out []portGroup) {
	for g, all := range ports {
		slices.Sort(all)
		for part := range slices.Chunk(slices.Compact(all), portsPerRule) {
			var words []string
			for _, p := range part {
				words = append(words, strconv.Itoa(int(p)))
			}
			g.ports = strings.Join(words, ",")
			out = append(out, g)
		}
	}
	slices.SortFunc(out, func(a, b portGroup) int {
		return cmp.Or(a.addr.Compare(b.addr), cmp.Compare(a.proto, b.proto), cmp.Compare(a.listen, b.listen), cmp.Compare(a.ports, b.ports))
	})
	return out
}

func (rs *ruleset) checks(f iptables.Family) []portGroup {
	ports := map[portGroup][]uint16{}
	for _, c := range rs.rules.Checks {
		if iptables.FamilyOf(c.Addr) == f {
			g := portGroup{addr: c.Addr, proto: c.Proto}
			ports[g] = append(ports[g], c.Port)
		}
	}
	return groupPorts(ports)
}

func (rs *ruleset) leases(f iptables.Family) []portGroup {
	ports := map[portGroup][]uint16{}
	for _, l := range rs.rules.Leases {
		a := l.Listen.Addr()
		if iptables.FamilyOf(a) == f && l.Source.Addr() == a {
			g := portGroup{addr: a, proto: iptables.UDP, listen: l.Listen.Port()}
			ports[g] = append(ports[g], l.Source.Port())
		}
	}
	return groupPorts(ports)
}
