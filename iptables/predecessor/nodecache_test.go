//go:build privileged

package predecessor

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/legacy"
)

// nodeCacheRules are the rules that node-cache installs for an address, in its order:
// it inserts each before the others.
func nodeCacheRules(a netip.Addr, healthPort string) (raw, filter []string) {
	address := netip.PrefixFrom(a, a.BitLen()).String()
	rule := func(chain, protocol, side, port, comment, target string) string {
		direction := map[string]string{"-d": "--dport", "-s": "--sport"}[side]
		return "-I " + chain + " -p " + protocol + " " + side + " " + address + " " + direction + " " + port +
			" -m comment --comment \"" + comment + "\" -j " + target
	}
	for _, protocol := range []string{iptables.TCP.String(), iptables.UDP.String()} {
		raw = append(raw, rule("PREROUTING", protocol, "-d", "53", nodeCacheSkip, "NOTRACK"),
			rule("OUTPUT", protocol, "-s", "53", nodeCacheSkip, "NOTRACK"),
			rule("OUTPUT", protocol, "-d", "53", nodeCacheSkip, "NOTRACK"))
		filter = append(filter, rule("INPUT", protocol, "-d", "53", nodeCacheAllow, "ACCEPT"),
			rule("OUTPUT", protocol, "-s", "53", nodeCacheAllow, "ACCEPT"))
	}
	for _, side := range []string{"-d", "-s"} {
		raw = append(raw, rule("OUTPUT", "tcp", side, healthPort, nodeCacheSkip, "NOTRACK"))
	}
	return raw, filter
}

var programOf = map[iptables.Family]string{iptables.IPv4: "iptables", iptables.IPv6: "ip6tables"}

// eachVariant runs a test with the programs of both variants, each in an empty
// network namespace and with an xtables lock of its own.
func eachVariant(t *testing.T, f func(t *testing.T, variant string)) {
	for _, variant := range []string{"legacy", "nft"} {
		t.Run(variant, func(t *testing.T) {
			testns.Enter(t)
			testns.Program(t, "iptables-"+variant)
			lock := filepath.Join(t.TempDir(), "xtables.lock")
			if err := os.WriteFile(lock, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			t.Setenv("XTABLES_LOCKFILE", lock)
			f(t, variant)
		})
	}
}

// asNodeCache installs the rules of node-cache, several times.
func asNodeCache(t *testing.T, variant string, times int, addrs ...string) {
	t.Helper()
	for _, text := range addrs {
		a := netip.MustParseAddr(text)
		raw, filter := nodeCacheRules(a, "8080")
		lines := slices.Concat([]string{"*raw"}, slices.Repeat(raw, times), []string{"COMMIT", "*filter"}, slices.Repeat(filter, times), []string{"COMMIT\n"})
		testns.Feed(t, strings.Join(lines, "\n"), programOf[iptables.FamilyOf(a)]+"-"+variant+"-restore", "--noflush")
	}
}

// adopt calls AdoptNodeCache without the binaries in PATH: it must not need them.
func adopt(t *testing.T, addrs ...string) (int, error) {
	t.Helper()
	var all []netip.Addr
	for _, a := range addrs {
		all = append(all, netip.MustParseAddr(a))
	}
	path := os.Getenv("PATH")
	defer t.Setenv("PATH", path)
	t.Setenv("PATH", "")
	return AdoptNodeCache(Config{}, all)
}

// everything returns the tables raw and filter as the programs of a variant show them,
// with the counters.
func everything(t *testing.T, variant string) string {
	t.Helper()
	var b strings.Builder
	for _, base := range []string{"iptables", "ip6tables"} {
		for line := range strings.Lines(testns.Run(t, base+"-"+variant+"-save", "-c")) {
			if strings.HasPrefix(line, "[") {
				b.WriteString(line)
			}
		}
	}
	return b.String()
}

// othersRules look like rules of node-cache and are not.
const othersRules = `*raw
[1:10] -A PREROUTING -d 169.254.20.10/32 -p udp -m udp --dport 53 -j CT --notrack
[2:20] -A PREROUTING -d 169.254.20.10/32 -p udp -m udp --dport 53 -m comment --comment mine -j CT --notrack
[3:30] -A PREROUTING -d 169.254.20.10/32 -p udp -m udp --dport 53 -m comment --comment "NodeLocal DNS Cache: skip conntrack" -j DROP
[4:40] -A PREROUTING -m comment --comment "NodeLocal DNS Cache: skip conntrack" -j CT --notrack
[5:50] -A PREROUTING -d 169.254.20.10/32 -p udp -m comment --comment "NodeLocal DNS Cache: skip conntrack" -j CT --notrack
[6:60] -A PREROUTING -d 169.254.20.10/31 -p udp -m udp --dport 53 -m comment --comment "NodeLocal DNS Cache: skip conntrack" -j CT --notrack
[7:70] -A PREROUTING -d 169.254.20.10/32 -p udp -m udp --dport 53:54 -m comment --comment "NodeLocal DNS Cache: skip conntrack" -j CT --notrack
[8:80] -A PREROUTING -s 10.0.0.1/32 -d 169.254.20.10/32 -p udp -m udp --dport 53 -m comment --comment "NodeLocal DNS Cache: skip conntrack" -j CT --notrack
[9:90] -A PREROUTING -d 169.254.20.10/32 -i eth0 -p udp -m udp --dport 53 -m comment --comment "NodeLocal DNS Cache: skip conntrack" -j CT --notrack
[10:100] -A PREROUTING -d 169.254.20.10/32 -p udp -m udp --dport 53 -m comment --comment "NodeLocal DNS Cache: skip conntrack" -j CT --zone 1
[11:110] -A PREROUTING -d 169.254.20.10/32 -p udp -m udp --dport 53 -m comment --comment "NodeLocal DNS Cache: skip conntrack, not" -j CT --notrack
COMMIT
*filter
[12:120] -A INPUT -d 169.254.20.10/32 -p udp -m udp --dport 53 -m comment --comment "NodeLocal DNS Cache: allow DNS traffic" -j DROP
[13:130] -A INPUT -d 169.254.20.10/32 -p udp -m udp --dport 53 -m comment --comment "NodeLocal DNS Cache: skip conntrack" -j ACCEPT
[14:140] -A FORWARD -d 169.254.20.10/32 -p udp -m udp --dport 53 -m comment --comment "NodeLocal DNS Cache: allow DNS traffic" -j ACCEPT
COMMIT
`

func TestNodeCacheIsAdopted(t *testing.T) {
	eachVariant(t, func(t *testing.T, variant string) {
		testns.Feed(t, othersRules, "iptables-"+variant+"-restore", "-c")
		before := everything(t, variant)
		asNodeCache(t, variant, 1, "169.254.20.10", "fd00::a")
		if n := strings.Count(everything(t, variant), "NodeLocal DNS Cache") - strings.Count(before, "NodeLocal DNS Cache"); n != 24 {
			t.Fatalf("the stand-in made %d rules, want 12 for each address:\n%s", n, everything(t, variant))
		}
		if n, err := adopt(t, "169.254.20.10", "fd00::a"); err != nil || n != 24 {
			t.Errorf("%d rules are deleted, %v; want 24", n, err)
		}
		if got := everything(t, variant); got != before {
			t.Errorf("before:\n%s\nafter:\n%s", before, got)
		}
		if n, err := adopt(t, "169.254.20.10", "fd00::a"); n != 0 || err != nil {
			t.Errorf("a second time %d rules are deleted, %v", n, err)
		}
	})
}

// iptables before 1.8.8 made thousands of duplicates (kubernetes/dns#568).
func TestNodeCacheManyTimesOver(t *testing.T) {
	eachVariant(t, func(t *testing.T, variant string) {
		asNodeCache(t, variant, 300, "169.254.20.10", "10.96.0.10")
		if n, err := adopt(t, "169.254.20.10", "10.96.0.10"); n != 300*24 || err != nil {
			t.Errorf("%d rules are deleted, %v", n, err)
		}
		if left := everything(t, variant); left != "" {
			t.Errorf("left:\n%.2000s", left)
		}
	})
}

// Two instances may find them at the same time, as in a rolling update.
func TestNodeCacheAdoptedTwiceAtOnce(t *testing.T) {
	cfg := Config{NetNS: int(testns.Enter(t))}
	testns.Program(t, "iptables-nft")
	const times = 100
	asNodeCache(t, "nft", times, "169.254.20.10")
	addrs := []netip.Addr{netip.MustParseAddr("169.254.20.10")}
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			if _, err := AdoptNodeCache(cfg, addrs); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if left := everything(t, "nft"); left != "" {
		t.Errorf("left:\n%.2000s", left)
	}
}

// If some of the rules are deleted already, the others are deleted.
func TestNodeCacheInPart(t *testing.T) {
	eachVariant(t, func(t *testing.T, variant string) {
		raw, filter := nodeCacheRules(netip.MustParseAddr("169.254.20.10"), "8080")
		for table, rules := range map[string][]string{"raw": raw, "filter": filter} {
			for _, rule := range rules {
				testns.Feed(t, "*"+table+"\n"+rule+"\nCOMMIT\n", "iptables-"+variant+"-restore", "--noflush")
				if n, err := adopt(t, "169.254.20.10"); n != 1 || err != nil || everything(t, variant) != "" {
					t.Errorf("%s: %d rules are deleted, %v", rule, n, err)
				}
			}
		}
	})
}

// Rules for addresses that are not ours are deleted only if nothing listens there.
func TestNodeCacheThatServesOtherAddresses(t *testing.T) {
	eachVariant(t, func(t *testing.T, variant string) {
		testns.Run(t, "ip", "address", "add", "169.254.20.11/32", "dev", "lo")
		living, err := net.ListenPacket("udp", "169.254.20.11:53")
		if err != nil {
			t.Fatal(err)
		}
		defer living.Close()
		asNodeCache(t, variant, 1, "169.254.20.11", "169.254.20.12")
		if _, err := adopt(t, "169.254.20.10"); err != nil {
			t.Fatal(err)
		}
		got := everything(t, variant)
		if strings.Contains(got, "169.254.20.12") {
			t.Errorf("rules without a listener stay:\n%s", got)
		}
		if n := strings.Count(got, "169.254.20.11"); n != 10 { // nothing listens at the health port
			t.Errorf("%d rules of a living node-cache are left, want 10:\n%s", n, got)
		}
	})
}

// iptables-nft refuses to read a table with a rule that it cannot write.
func TestNodeCacheBesideRulesOfNFT(t *testing.T) {
	testns.Enter(t)
	testns.Program(t, "iptables-nft")
	testns.Program(t, "nft")
	asNodeCache(t, "nft", 1, "169.254.20.10")
	testns.Run(t, "nft", "add", "rule", "ip", "raw", "PREROUTING", "meta", "random", "<", "5", "accept")
	if n, err := adopt(t, "169.254.20.10"); n != 12 || err != nil {
		t.Errorf("%d rules are deleted, %v", n, err)
	}
}

// Without the lock legacy rules stay, and only their addresses are reported.
func TestNodeCacheWithoutTheLock(t *testing.T) {
	testns.Enter(t)
	testns.Program(t, "iptables-legacy")
	addrs := []netip.Addr{netip.MustParseAddr("169.254.20.10"), netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00::a")}
	directory := t.TempDir()
	t.Setenv("XTABLES_LOCKFILE", filepath.Join(directory, "xtables.lock"))
	if fixed, err := FixedByNodeCache(Config{}, addrs); len(fixed) > 0 || err != nil {
		t.Errorf("no rules: %v, %v", fixed, err)
	}
	asNodeCache(t, "legacy", 1, "169.254.20.10", "fd00::a") // which makes the file
	if fixed, err := FixedByNodeCache(Config{}, addrs); len(fixed) > 0 || err != nil {
		t.Errorf("with the lock: %v, %v", fixed, err)
	}
	before := everything(t, "legacy")
	t.Setenv("XTABLES_LOCKFILE", filepath.Join(directory, "none"))
	fixed, err := FixedByNodeCache(Config{}, addrs)
	if err != nil || len(fixed) != 2 || fixed[addrs[0]] == nil || fixed[addrs[2]] == nil {
		t.Errorf("without the lock: %v, %v", fixed, err)
	}
	if n, err := adopt(t, "169.254.20.10"); n != 0 || !errors.Is(err, legacy.ErrNoLock) {
		t.Errorf("%d rules are deleted, %v", n, err)
	}
	if got := everything(t, "legacy"); got != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, got)
	}
}
