package xtables

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/iptables"
)

// nodeCacheRules are the lines that node-cache installs for an address by its
// own flags' plan, in the order in which it does: each before the others.
func nodeCacheRules(a netip.Addr, healthPort string) (raw, filter []string) {
	address := netip.PrefixFrom(a, a.BitLen()).String()
	rule := func(chain, protocol, side, port, comment, target string) string {
		direction := map[string]string{"-d": "--dport", "-s": "--sport"}[side]
		return "-I " + chain + " -p " + protocol + " " + side + " " + address + " " + direction + " " + port +
			" -m comment --comment \"" + comment + "\" -j " + target
	}
	for _, protocol := range []string{iptables.TCP.String(), iptables.UDP.String()} {
		raw = append(raw, rule(preroutingChain, protocol, "-d", "53", nodeCacheSkip, "NOTRACK"),
			rule(outputChain, protocol, "-s", "53", nodeCacheSkip, "NOTRACK"),
			rule(outputChain, protocol, "-d", "53", nodeCacheSkip, "NOTRACK"))
		filter = append(filter, rule("INPUT", protocol, "-d", "53", nodeCacheAllow, "ACCEPT"),
			rule(outputChain, protocol, "-s", "53", nodeCacheAllow, "ACCEPT"))
	}
	for _, side := range []string{"-d", "-s"} {
		raw = append(raw, rule(outputChain, "tcp", side, healthPort, nodeCacheSkip, "NOTRACK"))
	}
	return raw, filter
}

// asNodeCache installs what node-cache does.
func asNodeCache(t *testing.T, v Variant, addrs ...string) {
	t.Helper()
	for _, text := range addrs {
		a := netip.MustParseAddr(text)
		p, err := findProgram(iptables.FamilyOf(a), v)
		if err != nil {
			t.Fatal(err)
		}
		raw, filter := nodeCacheRules(a, "8080")
		lines := append(append([]string{"*raw"}, raw...), "COMMIT", "*filter")
		if err := p.restoreTables(append(append(lines, filter...), "COMMIT"), lastWait); err != nil {
			t.Fatal(err)
		}
	}
}

// everything is what the programs of a variant show of raw and filter.
func everything(t *testing.T, v Variant) string {
	t.Helper()
	var b strings.Builder
	for _, base := range []string{"iptables", "ip6tables"} {
		for line := range strings.Lines(testns.Run(t, base+"-"+string(v)+"-save")) {
			if strings.HasPrefix(line, "-A") {
				b.WriteString(line)
			}
		}
	}
	return b.String()
}

func TestNodeCacheIsAdopted(t *testing.T) {
	eachVariant(t, func(t *testing.T, v Variant) {
		addrs := []netip.Addr{netip.MustParseAddr("169.254.20.10"), netip.MustParseAddr("fd00::a")}
		foreign := []string{
			"-A PREROUTING -d 169.254.20.10/32 -p udp -m udp --dport 53 -j CT --notrack",
			"-A PREROUTING -d 169.254.20.10/32 -p udp -m udp --dport 53 -m comment --comment mine -j CT --notrack",
			`-A PREROUTING -d 169.254.20.10/32 -p udp -m udp --dport 53 -m comment --comment "NodeLocal DNS Cache: skip conntrack" -j DROP`,
			`-A PREROUTING -m comment --comment "NodeLocal DNS Cache: skip conntrack" -j CT --notrack`,
		}
		p, err := findProgram(iptables.IPv4, v)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.restore(foreign, lastWait); err != nil {
			t.Fatal(err)
		}
		before := everything(t, v)
		asNodeCache(t, v, "169.254.20.10", "fd00::a")
		if n := strings.Count(everything(t, v), "NodeLocal DNS Cache") - 2; n != 24 {
			t.Fatalf("the stand-in made %d rules, want 12 for each address:\n%s", n, everything(t, v))
		}
		// Duplicates, as iptables before 1.8.8 could make.
		asNodeCache(t, v, "169.254.20.10")
		n, err := Adopt(addrs)
		if err != nil || n != 36 {
			t.Errorf("%d rules are deleted, %v; want 36", n, err)
		}
		if got := everything(t, v); got != before {
			t.Errorf("before:\n%s\nafter:\n%s", before, got)
		}
		if n, err := Adopt(addrs); n != 0 || err != nil {
			t.Errorf("a second time %d rules are deleted, %v", n, err)
		}
	})
}

// Rules for addresses that are not ours go only if nobody is behind them.
func TestNodeCacheThatServesOtherAddresses(t *testing.T) {
	testns.Enter(t)
	testns.Program(t, "iptables-nft")
	testns.Run(t, "ip", "address", "add", "169.254.20.11/32", "dev", "lo")
	living, err := net.ListenPacket("udp", "169.254.20.11:53")
	if err != nil {
		t.Fatal(err)
	}
	defer living.Close()
	asNodeCache(t, NFT, "169.254.20.11", "169.254.20.12")
	if _, err := Adopt([]netip.Addr{netip.MustParseAddr("169.254.20.10")}); err != nil {
		t.Fatal(err)
	}
	got := everything(t, NFT)
	if strings.Contains(got, "169.254.20.12") {
		t.Errorf("rules without a listener stay:\n%s", got)
	}
	if n := strings.Count(got, "169.254.20.11"); n != 10 { // nobody serves the health port
		t.Errorf("%d rules of a living node-cache are left, want 10:\n%s", n, got)
	}
}
