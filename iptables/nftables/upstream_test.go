package nftables

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/internal/nfnl"
	"github.com/trackless-dns/trackless/iptables/internal/tracetest"
)

// upstreamSteps are packets in order, with names for addresses: node is this
// node, vip a Service, kubedns and other are pods, of which the rules name the
// former.
var upstreamSteps = []struct {
	name string
	hook iptables.Hook
	p    string // PROTOCOL SOURCE > DESTINATION
	want string
}{
	{"a query of ours", iptables.Output, "udp node:4000 > kubedns:53", "untracked"},
	{"its answer", iptables.Prerouting, "udp kubedns:53 > node:4000", "untracked"},
	{"a query over TCP", iptables.Output, "tcp node:4001 > kubedns:53", "untracked"},
	{"its answer", iptables.Prerouting, "tcp kubedns:53 > node:4001", "untracked"},
	{"an answer over the other protocol", iptables.Prerouting, "tcp kubedns:53 > node:4000", "tracked"},
	{"an answer to what kube-proxy rewrote for the node", iptables.Prerouting, "udp kubedns:53 > node:4002", "tracked"},
	{"an answer to what kube-proxy rewrote for a pod", iptables.Prerouting, "udp kubedns:53 > other:4000", "tracked"},
	{"a pod that asks the endpoint", iptables.Prerouting, "udp other:4000 > kubedns:53", "tracked"},
	{"the Service", iptables.Output, "udp node:4000 > vip:53", "tracked"},
	{"another port", iptables.Output, "tcp node:4000 > kubedns:9153", "tracked"},
	{"another pod", iptables.Output, "udp node:4000 > other:53", "tracked"},
	{"the node is asked", iptables.Prerouting, "udp other:53 > node:53", "tracked"},
}

var upstreamNames = map[string][2]string{
	"node": {"192.0.2.10", "2001:db8::10"}, "vip": {"10.96.0.10", "fd00:10:96::a"},
	"kubedns": {"10.244.0.3", "fd00:244::3"}, "other": {"10.244.0.11", "fd00:244::11"},
}

func upstreamPacket(t *testing.T, f iptables.Family, text string) tracetest.Packet {
	t.Helper()
	words := strings.Fields(text)
	at := func(word string) netip.AddrPort {
		name, port, _ := strings.Cut(word, ":")
		addr := upstreamNames[name][0]
		if f == iptables.IPv6 {
			addr = "[" + upstreamNames[name][1] + "]"
		}
		return netip.MustParseAddrPort(addr + ":" + port)
	}
	p := tracetest.Packet{Proto: iptables.UDP, Src: at(words[1]), Dst: at(words[3])}
	if words[0] == "tcp" {
		p.Proto, p.ACK = iptables.TCP, true
	}
	return p
}

func upstreamEndpoints(t *testing.T) []iptables.Endpoint {
	t.Helper()
	var out []iptables.Endpoint
	for _, f := range nfnl.Families {
		ap := upstreamPacket(t, f, "udp kubedns:53 > node:1").Src
		for _, proto := range []iptables.Proto{iptables.UDP, iptables.TCP} {
			out = append(out, iptables.Endpoint{Addr: ap.Addr(), Port: ap.Port(), Proto: proto})
		}
	}
	return out
}

// upstreamTwin is the table in memory.
func upstreamTwin(t *testing.T, all []chain) *Twin {
	t.Helper()
	twin := NewTwin()
	twin.present = true
	twin.variant = func(time.Duration, bool) []chain { return all }
	for _, e := range upstreamEndpoints(t) {
		twin.put(upstreamSet.instance(iptables.FamilyOf(e.Addr)), string(endpointKey(e)), time.Time{})
	}
	return twin
}

func TestUpstreamTraces(t *testing.T) {
	for _, f := range nfnl.Families {
		twin := upstreamTwin(t, upstreamChains())
		for _, s := range upstreamSteps {
			if got := twin.Trace(s.hook, upstreamPacket(t, f, s.p)).String(); got != s.want {
				t.Errorf("%s: %s at %s (%s): %s, want %s", f, s.p, s.hook, s.name, got, s.want)
			}
		}
	}
}

// Each rule is there for a step.
func TestEveryUpstreamRuleHasAStep(t *testing.T) {
	for c := range upstreamChains() {
		for r := range upstreamChains()[c].rules {
			all := upstreamChains()
			all[c].rules = append(append([]rule{}, all[c].rules[:r]...), all[c].rules[r+1:]...)
			bites := false
			for _, f := range nfnl.Families {
				twin := upstreamTwin(t, all)
				for _, s := range upstreamSteps {
					bites = bites || twin.Trace(s.hook, upstreamPacket(t, f, s.p)).String() != s.want
				}
			}
			if !bites {
				t.Errorf("chain %s works without rule %d", all[c].name, r)
			}
		}
	}
}
