//go:build privileged

package legacy

import (
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/iptables"
)

// manyRules are kube-proxy's rules for that number of Services, with chains before and
// after KUBE-SERVICES.
func manyRules(services int) string {
	var b strings.Builder
	b.WriteString("*nat\n:KUBE-SERVICES - [0:0]\n")
	for i := range services {
		fmt.Fprintf(&b, ":KUBE-SEP-%d - [0:0]\n:KUBE-SVC-%d - [0:0]\n", i, i)
	}
	b.WriteString("-A PREROUTING -j KUBE-SERVICES\n")
	for i := range services {
		fmt.Fprintf(&b, `-A KUBE-SERVICES -d 10.97.%d.%d/32 -p tcp -m comment --comment "ns/svc-%d:http cluster IP" -m tcp --dport 80 -j KUBE-SVC-%[3]d
-A KUBE-SVC-%[3]d -m comment --comment "ns/svc-%[3]d:http" -j KUBE-SEP-%[3]d
-A KUBE-SEP-%[3]d -p tcp -m tcp -j DNAT --to-destination 10.244.%[1]d.%[2]d:8080
`, i/250, i%250+1, i)
	}
	b.WriteString("COMMIT\n")
	return b.String()
}

// A window of any size gives the same rules as reading the table at once.
func TestReadThroughAWindow(t *testing.T) {
	cfg := Config{NetNS: int(testns.Enter(t))}
	restore(t, "iptables-legacy-restore", manyRules(600))
	whole, found, err := Read(cfg, iptables.IPv4, "nat", nil)
	if err != nil || !found || len(whole.Chain("KUBE-SERVICES").Rules) != 600 {
		t.Fatalf("%v, %v", found, err)
	}
	for _, pages := range []int{1 << 17, 1<<17 + 1<<12, 1 << 18} {
		t.Run(fmt.Sprint(pages), func(t *testing.T) {
			var got Table
			parts := 0
			err := within(cfg, func() error {
				h, err := info(iptables.IPv4, "nat")
				if err != nil {
					return err
				}
				w, err := openWindow(iptables.IPv4, "nat", h, pages)
				if err != nil {
					return err
				}
				defer func() { parts, err = w.parts, w.close() }()
				got, err = parse(iptables.IPv4, "nat", h, w.entries(layout4, 0), nil)
				return err
			})
			if err != nil || parts < 3 {
				t.Fatalf("%d parts, %v", parts, err)
			}
			if !reflect.DeepEqual(whole, got) {
				t.Errorf("%d parts are not the whole: %d and %d chains", parts, len(got.Chains), len(whole.Chains))
			}
		})
	}
}

// A table is read again if one of another size replaces it between two parts.
func TestReadChangesBetweenParts(t *testing.T) {
	cfg := Config{NetNS: int(testns.Enter(t))}
	restore(t, "iptables-legacy-restore", manyRules(600))
	begun := 0
	err := within(cfg, func() error {
		return readEntries(iptables.IPv4, "nat", 1<<17, func(_ header, from entriesFrom) error {
			begun++
			n := 0
			for _, err := range from(0) {
				if err != nil {
					return err
				}
				if n++; n == 1 && begun == 1 {
					testns.Run(t, "iptables-legacy", "-t", "nat", "-A", "KUBE-SEP-7", "-j", "RETURN")
				}
			}
			return nil
		})
	})
	if err != nil || begun != 2 {
		t.Errorf("read %d times, %v", begun, err)
	}
}

// KUBE-SERVICES is found whether or not prerouting jumps to it.
func TestIsServiceThroughAWindow(t *testing.T) {
	for _, tc := range []struct{ name, without string }{
		{"prerouting leads to it", ""},
		{"nothing leads to it", "-A PREROUTING -j KUBE-SERVICES\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := Config{NetNS: int(testns.Enter(t))}
			restore(t, "iptables-legacy-restore", strings.Replace(manyRules(600), tc.without, "", 1))
			for a, want := range map[string]bool{"10.97.0.1": true, "10.97.2.100": true, "10.97.2.101": false, "10.244.0.1": false} {
				var is bool
				err := within(cfg, func() error {
					return readEntries(iptables.IPv4, "nat", 1<<17, lookForService(netip.MustParseAddr(a), &is))
				})
				if err != nil || is != want {
					t.Errorf("%s: %t, %v", a, is, err)
				}
			}
		})
	}
}

// Only the wanted rules are kept, with their places and the chains that they jump to.
func TestReadWanted(t *testing.T) {
	cfg := Config{NetNS: int(testns.Enter(t))}
	restore(t, "iptables-legacy-restore", manyRules(20))
	one := netip.MustParseAddr("10.97.0.8")
	got, _, err := Read(cfg, iptables.IPv4, "nat", func(chain string, r Rule) bool {
		return chain == "KUBE-SERVICES" && r.Destination.IsAddr(one)
	})
	if err != nil {
		t.Fatal(err)
	}
	services := got.Chain("KUBE-SERVICES")
	if services == nil || len(services.Rules) != 1 || services.Rules[0].Place != 8 || services.Rules[0].Verdict.Chain != "KUBE-SVC-7" ||
		services.Rules[0].Comment() != "ns/svc-7:http cluster IP" {
		t.Errorf("%+v", services)
	}
	for _, c := range got.Chains {
		if !c.Base && c.Name != "KUBE-SERVICES" {
			t.Errorf("chain %s is kept, of which nothing was wanted", c.Name)
		}
	}
}

func BenchmarkIsService(b *testing.B) {
	cfg := Config{NetNS: int(testns.Enter(b))}
	restore(b, "iptables-legacy-restore", manyRules(5000))
	b.ReportAllocs()
	for b.Loop() {
		if is, err := IsService(cfg, netip.MustParseAddr("10.97.19.200")); err != nil || !is {
			b.Fatal(is, err)
		}
	}
}
