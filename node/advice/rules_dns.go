package advice

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/trackless-dns/trackless/conntrack/summary"
	"github.com/trackless-dns/trackless/internal/figure"
)

const (
	// fewServerEntries is how many entries it takes to judge a DNS server.
	fewServerEntries = 10
	// A server answers nothing if this share of its entries is unreplied, and
	// answers if that share is below the other.
	deadShare  = 0.90
	aliveShare = 0.50
)

func unrepliedShare(s summary.Server) float64 {
	return float64(s.Unreplied) / float64(max(1, s.Entries))
}

// deadDNSEndpoint judges a server of a Service by its neighbours: where others
// answer the same Service and one never does, that one is gone.
func deadDNSEndpoint(m *Measurements) []Finding {
	if m.Table == nil {
		return nil
	}
	var findings []Finding
	for _, s := range m.Table.DNS.Servers {
		if s.Entries < fewServerEntries || unrepliedShare(s) < deadShare || s.Asked == s.Address {
			continue
		}
		var alive []string
		for _, other := range m.Table.DNS.Servers {
			if other.Asked == s.Asked && other.Address != s.Address && unrepliedShare(other) < aliveShare {
				alive = append(alive, other.Address.String())
			}
		}
		f := Finding{
			Severity: Warning,
			Title:    fmt.Sprintf("the DNS server %s behind %s does not answer", s.Address, s.Asked),
			Evidence: []string{fmt.Sprintf("%s of %s entries to it never saw an answer", figure.Thousands(s.Unreplied), figure.Thousands(s.Entries))},
			Remedy: []string{
				fmt.Sprintf("if no such pod runs any more, delete its entries: conntrack -D -p udp --reply-src %s; a client that keeps its port would go on asking it", s.Address),
				"if the pod runs, ask it: dig @" + s.Address.String() + "; check the network policies and its node",
				"run Trackless on this node: clients then ask it, and no entry pins them to a server",
			},
			Risk: "deleting entries is safe for DNS: the next query makes a new one",
		}
		if len(alive) > 0 {
			f.Evidence = append(f.Evidence, fmt.Sprintf("other servers of the same Service answer: %v", alive))
		} else {
			f.Severity = Critical
			f.Evidence = append(f.Evidence, "no server of this Service answers")
		}
		findings = append(findings, f)
	}
	return findings
}

// local reports whether a server is the cache on this node.
func (m *Measurements) local(a netip.Addr) bool { return slices.Contains(m.Listeners, a) }

// untracked reports whether rules in force untrack both directions of an
// address; known is false if the rules could not be read.
func (m *Measurements) untracked(a netip.Addr) (untracked, known bool) {
	i := slices.IndexFunc(m.Notrack, func(n Notrack) bool { return n.Address == a })
	if i < 0 {
		return false, false
	}
	return m.Notrack[i].Queries && m.Notrack[i].Responses, true
}

// past reports whether the entries of a flow to the server at a are only left
// over: no packet of it was tracked during the measurement, and no rule is known
// to be missing.
func (m *Measurements) past(a netip.Addr, f summary.DNSFlow) bool {
	untracked, known := m.untracked(a)
	return m.Recent != nil && !m.Recent[f] && (untracked || !known)
}

func (m *Measurements) detached(a netip.Addr) bool {
	return slices.ContainsFunc(m.Notrack, func(n Notrack) bool { return n.Address == a && n.Detached && !n.Queries })
}

// detachedFrom is the finding about an address whose queries a Trackless lets
// pass; seen is what else shows it, if anything.
func detachedFrom(a netip.Addr, seen string) Finding {
	f := Finding{
		Severity: Warning,
		Title:    fmt.Sprintf("Trackless is detached from %s: its queries go to kube-dns", a),
		Evidence: []string{"its table names the address, and the queries to it are not untracked at the moment: it found itself unable to answer, or was told to detach"},
		Remedy:   []string{"see its log and coredns_notrack_attached; after trackless rules detach: trackless rules attach"},
		Risk:     "none: this is the fallback",
	}
	if seen != "" {
		f.Evidence = append(f.Evidence, seen)
	}
	return f
}

// trackedNevertheless is the finding about DNS that rules untrack and that is
// tracked all the same.
func trackedNevertheless(m *Measurements, s summary.Server) Finding {
	return Finding{
		Severity: Warning,
		Title:    fmt.Sprintf("DNS to %s is tracked, although rules untrack it", s.Asked),
		Evidence: []string{
			fmt.Sprintf("%s entries, answered by %s; packets were tracked within the last %s", figure.Thousands(s.Entries), s.Address, m.Interval),
			"the rules in force untrack both directions",
		},
		Remedy: m.zoneFirst(s.Asked,
			"a rule that assigns a zone undoes NOTRACK, also one that comes after it: search for `ct zone set` in nft list ruleset and for CT --zone in iptables-save -t raw",
			"if packets come in elsewhere, on another device or address, they may not meet the rules: trackless rules show",
		),
		Risk: "none in looking",
	}
}

// zoneFirst is the remedy for queries that are tracked: where a rule puts them into
// a zone, no rule of NOTRACK helps.
func (m *Measurements) zoneFirst(a netip.Addr, remedy ...string) []string {
	for _, n := range m.Notrack {
		if n.Address == a && n.Zone != "" {
			return []string{
				fmt.Sprintf("a rule puts these queries into a conntrack zone, which tracks them whatever NOTRACK says: %s", n.Zone),
				"let that rule pass DNS to the address: trackless rules show",
			}
		}
	}
	return remedy
}

func notrackMissing(m *Measurements) []Finding {
	if m.Table == nil {
		return nil
	}
	var findings []Finding
	for _, s := range m.Table.DNS.Servers {
		if !m.local(s.Asked) || m.past(s.Asked, summary.DNSFlow{Asked: s.Asked, Server: s.Address}) {
			continue
		}
		untracked, _ := m.untracked(s.Asked)
		switch {
		case untracked:
			findings = append(findings, trackedNevertheless(m, s))
		case m.detached(s.Asked):
			findings = append(findings, detachedFrom(s.Asked, fmt.Sprintf("%s entries of its queries, answered by %s", figure.Thousands(s.Entries), s.Address)))
		case s.Address != s.Asked:
			findings = append(findings, Finding{
				Severity: Warning,
				Title:    fmt.Sprintf("queries to %s pass the cache on this node by", s.Asked),
				Evidence: []string{fmt.Sprintf("%s entries: a DNS server listens on %s, but destination NAT sends the queries to %s before they reach it", figure.Thousands(s.Entries), s.Asked, s.Address)},
				Remedy:   m.zoneFirst(s.Asked, "the rules that keep these queries untracked are missing: trackless rules show"),
				Risk:     "none",
			})
		case s.Unreplied < s.Entries:
			findings = append(findings, Finding{
				Severity: Warning,
				Title:    fmt.Sprintf("DNS to %s on this node is tracked", s.Asked),
				Evidence: []string{fmt.Sprintf("%s entries, %s of them answered: neither direction is exempt from tracking", figure.Thousands(s.Entries), figure.Thousands(s.Entries-s.Unreplied))},
				Remedy: m.zoneFirst(s.Asked,
					"add NOTRACK rules for both directions in raw prerouting and output, as Trackless does by itself: trackless rules show",
				),
				Risk: "with rules for one direction only answers are lost: see notrack-one-sided",
			})
		}
	}
	for _, n := range m.unseen() {
		switch {
		case n.Detached && !n.Queries:
			findings = append(findings, detachedFrom(n.Address, ""))
		case !n.Queries && !n.Responses:
			findings = append(findings, Finding{
				Severity: Warning,
				Title:    fmt.Sprintf("no rule keeps DNS to %s untracked", n.Address),
				Evidence: []string{fmt.Sprintf("a DNS server listens on %s, packets of this namespace are tracked, and nf_tables holds no NOTRACK rule for it", n.Address)},
				Remedy:   []string{"serve the address with Trackless, which brings the rules with it, or add them for both directions in raw prerouting and output"},
				Risk:     "with rules for one direction only answers are lost: see notrack-one-sided",
			})
		}
	}
	return findings
}

// unseen returns the addresses about whose rules the table says nothing, for
// lack of traffic.
func (m *Measurements) unseen() []Notrack {
	if m.Active == nil || !*m.Active {
		return nil
	}
	var list []Notrack
	for _, n := range m.Notrack {
		seen := m.Table != nil && (slices.ContainsFunc(m.Table.DNS.Servers, func(s summary.Server) bool { return s.Asked == n.Address }) ||
			slices.ContainsFunc(m.Table.DNS.ReversedSources, func(c summary.Counted) bool { return c.Address == n.Address }))
		if !seen {
			list = append(list, n)
		}
	}
	return list
}

func notrackOneSided(m *Measurements) []Finding {
	if m.Table == nil {
		return nil
	}
	var findings []Finding
	for _, r := range m.Table.DNS.ReversedSources {
		if m.local(r.Address) && m.past(r.Address, summary.DNSFlow{Server: r.Address}) {
			continue
		}
		findings = append(findings, Finding{
			Severity: Critical,
			Title:    fmt.Sprintf("answers from %s are tracked, the queries to it are not", r.Address),
			Evidence: []string{
				fmt.Sprintf("%s entries whose first packet came from %s port 53", figure.Thousands(r.Entries), r.Address),
				"the client's next query from the same port counts as a reply to such an entry: it is not translated, and once the server stops it is lost",
			},
			Remedy: []string{
				"add the missing NOTRACK rules for source port 53 in raw output (and prerouting), or remove those for the queries: trackless rules show",
				fmt.Sprintf("then delete the entries: conntrack -D -p udp -s %s --orig-port-src 53", r.Address),
			},
			Risk: "deleting entries is safe for DNS",
		})
	}
	for _, s := range m.Table.DNS.Servers {
		if untracked, _ := m.untracked(s.Asked); untracked || m.past(s.Asked, summary.DNSFlow{Asked: s.Asked, Server: s.Address}) {
			continue
		}
		if m.local(s.Asked) && s.Address == s.Asked && s.Entries >= fewServerEntries && s.Unreplied == s.Entries {
			findings = append(findings, Finding{
				Severity: Warning,
				Title:    fmt.Sprintf("queries to %s are tracked, the answers are not", s.Asked),
				Evidence: []string{fmt.Sprintf("%s entries to the DNS server on this node, none with an answer", figure.Thousands(s.Entries))},
				Remedy: m.zoneFirst(s.Asked,
					"add the missing NOTRACK rules for destination port 53 in raw prerouting and output: trackless rules show",
					"if clients get no answers the server is at fault, not the rules: dig @"+s.Asked.String(),
				),
				Risk: "none",
			})
		}
	}
	for _, n := range m.unseen() {
		switch {
		case n.Queries && !n.Responses:
			findings = append(findings, Finding{
				Severity: Critical,
				Title:    fmt.Sprintf("rules untrack the queries to %s, and none the answers", n.Address),
				Evidence: []string{"the answers will be tracked as flows of their own: the client's next query from the same port then counts as a reply to one, and once the server stops it is lost"},
				Remedy:   []string{"add the missing NOTRACK rules for source port 53 in raw output and prerouting, or remove those for the queries: trackless rules show"},
				Risk:     "none",
			})
		case n.Responses && !n.Queries && !n.Detached:
			findings = append(findings, Finding{
				Severity: Warning,
				Title:    fmt.Sprintf("rules untrack the answers from %s, and none the queries", n.Address),
				Evidence: []string{"every query makes an entry that never sees its answer, and if it is translated the answer comes from the wrong address"},
				Remedy:   []string{"add the missing NOTRACK rules for destination port 53 in raw prerouting and output: trackless rules show"},
				Risk:     "none",
			})
		}
	}
	return findings
}
