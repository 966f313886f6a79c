//go:build privileged

package failover

import (
	"fmt"
	"net"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/internal/nfnl"
	"github.com/trackless-dns/trackless/iptables/internal/tracetest"
	"github.com/trackless-dns/trackless/iptables/owner"
)

type failoverNode struct{ *tracetest.Node }

// newFailoverNode is a node between pods behind pod0 and a Service behind dns0.
// Frames that leave go to a link-layer address that no device has.
func newFailoverNode(t *testing.T) *failoverNode {
	t.Helper()
	n := &failoverNode{tracetest.NewNode(t)}
	testns.Run(t, "nft", "delete", "table", "inet", "observer")
	// Before Linux 6.2 a link that is up keeps its name.
	for old, name := range map[string]string{"uplink": "dns0", "uplinkp": "dns0p"} {
		testns.Run(t, "ip", "link", "set", old, "down")
		testns.Run(t, "ip", "link", "set", old, "name", name)
		testns.Run(t, "ip", "link", "set", name, "up")
	}
	n.Links["dns0"], n.Links["dns0p"] = n.Links["uplink"], n.Links["uplinkp"]
	testns.Run(t, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.dns0.rp_filter=0", "net.ipv4.conf.pod0.rp_filter=0")
	for _, f := range nfnl.Families {
		bits, nodad := "/32", []string{}
		if f == iptables.IPv6 {
			bits, nodad = "/128", []string{"nodad"}
		}
		addr := func(name string) string { return tracetest.Addr(f, name).String() }
		testns.Run(t, "ip", "address", "del", addr("vip")+bits, "dev", "lo")
		testns.Run(t, "ip", append([]string{"address", "add", addr("local2") + bits, "dev", "lo"}, nodad...)...)
		testns.Run(t, "ip", append([]string{"address", "add", addr("node") + bits, "dev", "dns0"}, nodad...)...)
		for _, via := range [][2]string{{"vip", "dns0"}, {"pod", "pod0"}} {
			testns.Run(t, "ip", "route", "replace", addr(via[0])+bits, "dev", via[1])
			testns.Run(t, "ip", "neighbour", "replace", addr(via[0]), "lladdr", "02:00:00:00:00:99", "dev", via[1])
		}
	}
	if err := Install(Config{NetNS: n.NetNS}, failoverTracePairs(), failoverOutside()); err != nil {
		t.Fatal(err)
	}
	return n
}

// failoverObserver counts one packet directly before a chain and directly after it, by
// its possible results.
func failoverObserver(f iptables.Family, chain failoverChain, p tracetest.Packet, ct Tracking, outcomes []string) string {
	ip := "ip"
	if f == iptables.IPv6 {
		ip = "ip6"
	}
	ports := fmt.Sprintf("%[1]s sport %[2]d %[1]s dport %[3]d", p.Proto, p.Src.Port(), p.Dst.Port())
	state := "ct state != untracked"
	early, behind := chain.priority == failoverRewritePriority, chain.priority+1
	if early {
		behind = -199 // conntrack (-200) shows the zone
	}
	switch {
	case ct.Untracked:
		state = "ct state untracked"
	case early: // before conntrack
	case ct.Invalid:
		state = "ct state invalid"
	case ct.Reply:
		state = fmt.Sprintf("ct direction reply ct original zone %d", ct.Zone)
	default:
		state = fmt.Sprintf("ct direction original ct original zone %d", ct.Zone)
	}
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("table inet observer {")
	for i := range outcomes {
		line("counter outcome-%d { }", i)
	}
	line("counter before { }")
	line("counter behind { }")
	if ct.Untracked {
		line("chain untracking { type filter hook %s priority -300; %s notrack; }", chain.hookName, ports)
	}
	line("chain before { type filter hook %s priority %d; %s saddr %s %[3]s daddr %[5]s %[6]s %[7]s counter name before; }",
		chain.hookName, chain.priority-1, ip, p.Src.Addr(), p.Dst.Addr(), ports, state)
	line("chain behind { type filter hook %s priority %d;", chain.hookName, behind)
	line("%s dport %d counter name behind", p.Proto, p.Dst.Port())
	for i, o := range outcomes {
		words := strings.Fields(o)
		if words[0] != "rewritten" {
			continue
		}
		line("%s saddr %s %[1]s daddr %[3]s %[4]s ct original zone %[5]s counter name outcome-%[6]d", ip,
			hostOf(words[1]), hostOf(words[3]), ports, words[5], i)
	}
	line("%s saddr %s %[1]s daddr %[3]s %[4]s counter name outcome-%[5]d", ip, p.Src.Addr(), p.Dst.Addr(), ports, slices.Index(outcomes, "unchanged"))
	line("}\n}")
	return b.String()
}

func hostOf(addrPort string) string {
	host, _, _ := net.SplitHostPort(addrPort)
	return host
}

// traceFailoverRow sends the packets of a row and returns the result of the last one at
// the chain.
func (n *failoverNode) traceFailoverRow(t *testing.T, f iptables.Family, row, port int) string {
	t.Helper()
	tc := failoverTraces[row]
	var chain failoverChain
	for _, c := range allFailoverChains(t) {
		if c.name == tc.chain {
			chain = c
		}
	}
	device := map[string]string{"prerouting": "pod0", "output": "lo"}[tc.chain]
	send := tc.send
	if send == nil {
		send = []string{tc.chain + " " + device + " " + tc.packet}
	}
	_, p := tracetest.ReadPacket(f, strings.Fields("prerouting x "+withPort(tc.packet, port)))
	// The possible results: those that any row wants, and those with this client.
	outcomes := []string{"unchanged"}
	unchanged := fmt.Sprintf("rewritten %s > %s zone %d", p.Src, p.Dst, tc.ct.Zone)
	for _, other := range failoverTraces {
		words := strings.Fields(failoverWant(f, other.want, port))
		if words[0] != "rewritten" {
			continue
		}
		for _, source := range []string{words[1], p.Src.String()} {
			words[1] = source
			if o := strings.Join(words, " "); o != unchanged && !slices.Contains(outcomes, o) {
				outcomes = append(outcomes, o)
			}
		}
	}
	testns.Run(t, "nft", "-f", tempFile(t, failoverObserver(f, chain, p, tc.ct, outcomes)))
	defer testns.Run(t, "nft", "delete", "table", "inet", "observer")
	before := map[string]uint64{}
	for i, text := range send {
		if i == len(send)-1 {
			before = n.Counted(t)
		}
		hook, packet := tracetest.ReadPacket(f, strings.Fields(withPort(text, port)))
		n.Inject(t, hook, packet)
	}
	var after map[string]uint64
	tracetest.Await(t, tc.name+": the packet comes to the chain "+tc.chain+" as the row says", func() bool {
		after = n.Counted(t)
		return after["before"] > before["before"]
	})
	// Sending has run the receiving side, too. A packet that has not arrived by now
	// would fail the row as "dropped".
	after = n.Counted(t)
	for i, o := range outcomes {
		if name := fmt.Sprintf("outcome-%d", i); after[name] > before[name] && o != "unchanged" {
			return o
		}
	}
	switch {
	case after["outcome-0"] > before["outcome-0"] && tc.ct.Untracked:
		return "untracked"
	case after["outcome-0"] > before["outcome-0"]:
		return "tracked"
	case after["behind"] > before["behind"] && tc.chain == "masquerading":
		return "masqueraded"
	case after["behind"] > before["behind"]:
		return "something else"
	}
	return "dropped"
}

func TestFailoverKernelTraces(t *testing.T) {
	n := newFailoverNode(t)
	port := 4000
	for _, f := range nfnl.Families {
		for i, tc := range failoverTraces {
			port++
			if got, want := n.traceFailoverRow(t, f, i, port), failoverWant(f, tc.want, port); got != want {
				t.Errorf("%s, %s: %s, want %s", f, tc.name, got, want)
			}
		}
	}
}

func TestFailoverKernelWithoutARule(t *testing.T) {
	n := newFailoverNode(t)
	port := 4000
	for c, chain := range allFailoverChains(t) {
		for r, rule := range chain.rules {
			port++
			f, row, want, found := withoutFailoverRule(t, c, r, port)
			if !found {
				continue // TestEveryFailoverRuleHasARow fails
			}
			if err := Install(Config{NetNS: n.NetNS}, failoverTracePairs(), failoverOutside()); err != nil {
				t.Fatal(err)
			}
			// The library cannot read these rules back.
			listed := testns.Run(t, "nft", "-a", "list", "chain", "inet", owner.FailoverTable, chain.name)
			handles := regexp.MustCompile(`(?m)^\t\t.* # handle (\d+)$`).FindAllStringSubmatch(listed, -1)
			if len(handles) != len(chain.rules) {
				t.Fatalf("%d rules are listed, want %d:\n%s", len(handles), len(chain.rules), listed)
			}
			testns.Run(t, "nft", "delete", "rule", "inet", owner.FailoverTable, chain.name, "handle", handles[r][1])
			if got := n.traceFailoverRow(t, f, row, port); got != want {
				t.Errorf("without chain %s: %s\n%s, %s: the simulator gives %s and the kernel %s", chain.name, rule.text, f, failoverTraces[row].name, want, got)
			}
		}
	}
}
