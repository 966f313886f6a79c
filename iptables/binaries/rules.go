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

// The ruleset of one instance in the raw table of one family. Its chains are
// called TRACKLESS-ID-NAME; the first rule of PREROUTING leads to IN, the first
// of OUTPUT to OUT. A goto leaves for good: what ends in the chain behind it
// goes on in PREROUTING or OUTPUT behind our rule, so that rules of others are
// passed as if we were not there.
//
//	IN         what arrives: by endpoint to ARRIVING, responses to UNTRACK
//	ARRIVING   queries: our own to ASKING, from outside to FOREIGN
//	ASKING     over lo: checks are untracked in every state
//	QUERYING   exempt, live, held, or noted
//	TAKE       untracked and counted as a query
//	OUT        what leaves: by endpoint to LEAVING or ANSWERING
//	LEAVING    the node's own queries: checks, exempt, live, held, or noted
//	ANSWERING  responses; those over lo pass the next chain on their way
//	LOCAL      answers to lease probes renew the lease, those to checks are
//	           untracked in every state
//	REPLYING   connections that we agree to, hold or end are noted; untracked and
//	           counted
//	QUERIES, RESPONSES  count by protocol and are never emptied
//
// Packets that are no DNS pass one rule for each endpoint and direction.

var families = []iptables.Family{iptables.IPv4, iptables.IPv6}

// Names of chains behind the prefix, and their order in `rules plan`.
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

// counting chains keep their counters over changes of the rest.
var countingChains = []string{queriesChain, responsesChain}

// connectionTimeout is how long a connection is remembered; every packet of it
// sets the time anew. DNS servers close idle connections much earlier (RFC 7766
// 6.2.3). One that has only begun, or has ended, is remembered for a moment: whoever
// can send a SYN can send as many as a set has room for.
const (
	connectionTimeout = 10 * time.Minute
	openingTimeout    = 2 * time.Second // a SYN-ACK is sent again after 1 s (RFC 6298)
	closingTimeout    = 10 * time.Second
	begunTimeout      = 10 * time.Second // of one that will be tracked: its next segment may take a second SYN
)

// features are what the rules can be made of.
type features struct {
	recent bool // xt_recent
	ipset  bool // ip_set and xt_set
}

// leases reports whether queries can be untracked for a time only.
func (f features) leases() bool { return f.recent || f.ipset }

// ruleset says what the chains of an instance hold. It is a pure value.
type ruleset struct {
	id       string
	mark     owner.Mark
	features features
	lease    time.Duration
	rules    iptables.Rules

	// Where rules cannot note connections, and where nothing can renew a
	// lease, the state of things stands in the rules themselves.
	attached bool
	draining bool
	exempt   []iptables.Connection
	held     []iptables.Connection
}

func (rs *ruleset) chain(name string) string { return chainPrefix + rs.id + "-" + name }

// comment is the owner's mark. It stands on the two rules that lead to our
// chains, for people, and in the chain UNTRACK, for us: others may flush the
// former.
func (rs *ruleset) comment() string {
	return fmt.Sprintf("-m comment --comment %q", rs.mark)
}

// jump leads from a chain of the table to ours.
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

// setPrefix begins the names of our sets and lists.
const setPrefix = "trackless-"

// rule is one rule: what it matches and what it does, as iptables-save has it.
func rule(words ...string) string { return strings.Join(words, " ") }

// to is `-g` to one of our chains.
func (rs *ruleset) to(chain string) string { return "-g " + rs.chain(chain) }

const notrack = "-j CT --notrack"

// chains are the rules of all chains for a family, by the chain's name.
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
			// kube-proxy rewrites what stays tracked, so the node's own queries
			// do not arrive here: they are counted as they leave, all others as
			// they arrive. Responses do not come from our listeners.
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
		// A connection is noted for a moment as our SYN-ACK leaves, and as held by
		// whatever else of it does until it ends. It is not tracked: its SYN may
		// have come to us because another instance untracked it. Its port may have
		// been that of one before it.
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

// arriving tells those who are served from those who come in over an uplink.
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

// ended are the rules that note the end of a connection that we hold.
func (rs *ruleset) ended(f iptables.Family, flag, tuple string) []string {
	of := rule("-p tcp -m tcp --tcp-flags", flag, flag, "-m set --match-set", rs.heldSet(f), tuple)
	return []string{
		rule(of, "-j SET --add-set", rs.closingSet(f), tuple, "--exist --timeout", seconds(closingTimeout)),
		rule(of, "-j SET --del-set", rs.heldSet(f), tuple),
	}
}

// query decides about a query that may be untracked.
func (rs *ruleset) query(f iptables.Family, untrack string) (out []string) {
	add := func(words ...string) { out = append(out, rule(words...)) }
	tuple := func(c iptables.Connection) string {
		return fmt.Sprintf("-s %s -d %s -p tcp -m tcp --sport %d --dport %d", c.Client.Addr(), c.Listen.Addr(), c.Client.Port(), c.Listen.Port())
	}
	note := func(d time.Duration) string {
		return rule("-j SET --add-set", rs.exemptSet(f), "src,src,dst --exist --timeout", seconds(d))
	}
	if rs.features.ipset {
		// A client's reset is the last that is heard of a connection. A forged one
		// does nothing: the kernel answers it, and the connection is held again.
		out = append(out, rs.ended(f, "RST", "src,src,dst")...)
		// Tracked before we attached: kube-proxy rewrites it until it ends.
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
	// Not live, but the connection is ours: it stays so during the drain. A
	// lapse does not count as one.
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
		// A connection that will be tracked, since nothing above took it, nor
		// another instance before us.
		add("-p tcp -m tcp --tcp-flags SYN,ACK SYN -m conntrack ! --ctstate UNTRACKED", note(begunTimeout))
	}
	return out
}

// renewal are the rules for the answer to a lease probe: of this endpoint, over
// lo, to the very ports of this instance.
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

// families returns those that the plan has endpoints of.
func (rs *ruleset) families() (out []iptables.Family) {
	for _, f := range families {
		if len(rs.endpoints(f)) > 0 {
			out = append(out, f)
		}
	}
	return out
}

// portGroup is an address with as many ports as one rule takes.
type portGroup struct {
	addr   netip.Addr
	proto  iptables.Proto
	listen uint16
	ports  string
}

// multiport takes 15 ports (XT_MULTI_PORTS in xt_multiport.h).
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
