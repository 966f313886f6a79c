//go:build privileged

package hostrules

import (
	"fmt"
	"net/netip"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/kubeproxy"
	"github.com/trackless-dns/trackless/iptables/legacy"
)

// manyForeignRules are very many rules that do not affect DNS: blocked hosts before all
// others, and kube-proxy's rules for as many Services.
func manyForeignRules(n int) string {
	var b strings.Builder
	b.WriteString("*filter\n:INPUT ACCEPT [0:0]\n")
	for i := range n {
		fmt.Fprintf(&b, "-A INPUT -s 198.18.%d.%d/32 -j DROP\n", i/256, i%256)
	}
	b.WriteString("-A INPUT -s 10.244.0.0/16 -p udp -m udp --dport 53 -j DROP\nCOMMIT\n*raw\n")
	for i := range n {
		fmt.Fprintf(&b, "-A PREROUTING -s 198.18.%d.%d/32 -p udp -j DROP\n", i/256, i%256)
	}
	b.WriteString("-A PREROUTING -d 10.96.0.10/32 -p udp -m udp --dport 53 -j CT --notrack\nCOMMIT\n*nat\n:KUBE-SERVICES - [0:0]\n")
	for i := range n {
		fmt.Fprintf(&b, "-A KUBE-SERVICES -d 10.97.%d.%d/32 -p tcp -m comment --comment \"ns/svc-%d:http cluster IP\" -m tcp --dport 80 -j RETURN\n", i/256, i%256, i)
	}
	b.WriteString("-A KUBE-SERVICES -d 10.96.0.10/32 -p udp -m comment --comment \"kube-system/kube-dns:dns cluster IP\" -m udp --dport 53 -j RETURN\nCOMMIT\n")
	return b.String()
}

// peak returns the highest resident set since resetPeak.
func peak(t *testing.T) (bytes int) {
	t.Helper()
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if n, _ := fmt.Sscanf(line, "VmHWM: %d kB", &bytes); n == 1 {
			return bytes << 10
		}
	}
	t.Fatal("no VmHWM")
	return 0
}

func resetPeak(t *testing.T) int {
	t.Helper()
	debug.FreeOSMemory()
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil {
		t.Skipf("cannot reset the peak of resident memory: %v", err)
	}
	return peak(t)
}

// The memory does not grow with the number of other programs' rules, and those that affect
// us are found. Not parallel: the memory is the process's.
func TestMemoryOfOthersRules(t *testing.T) {
	// Parsed as a whole, the rules of one table take three times as much.
	const rules, most = 4_000, 10 << 20
	endpoints := []iptables.Endpoint{{Addr: netip.MustParseAddr("10.96.0.10"), Port: 53, Proto: iptables.UDP}}
	for _, tc := range []struct {
		program string
		// counted is added to the bound: the kernel counts a page of the window once
		// for each address at which it was used, which shows on a busy machine.
		counted int
	}{{"iptables-legacy-restore", 4 << 20}, {"iptables-nft-restore", 0}} {
		t.Run(tc.program, func(t *testing.T) {
			cfg := Config{NetNS: int(testns.Enter(t))}
			testns.Feed(t, manyForeignRules(rules), tc.program)
			began := time.Now()
			before := resetPeak(t)
			dropping, err := DroppingChains(cfg, endpoints, podDevices)
			if err != nil || len(dropping) != 1 || strings.Join(dropping[0].Devices, " ") != "veth0 cni0" || !strings.Contains(dropping[0].By, "10.244.0.0/16") {
				t.Errorf("dropping: %v, %v", dropping, err)
			}
			foreign, err := ConflictingRules(cfg, endpoints)
			if err != nil || len(foreign) != 1 || foreign[0].Handle == 0 || !slices.Equal(foreign[0].Effects, []string{"notrack"}) {
				t.Errorf("rules of others: %v, %v", foreign, err)
			}
			for _, service := range []struct {
				addr string
				want bool
			}{{"10.96.0.10", true}, {"10.96.0.11", false}} {
				a := netip.MustParseAddr(service.addr)
				is, err := kubeproxy.IsService(cfg, a)
				if err == nil && !is {
					is, err = legacy.IsService(legacy.Config{NetNS: cfg.NetNS}, a)
				}
				if err != nil || is != service.want {
					t.Errorf("%s is a Service address: %t, %v", a, is, err)
				}
			}
			grown := peak(t) - before
			t.Logf("%d KiB more for 3 times %d rules, in %s", grown>>10, rules, time.Since(began))
			if grown > most+tc.counted {
				t.Errorf("%d KiB more, want at most %d", grown>>10, (most+tc.counted)>>10)
			}
		})
	}
}
