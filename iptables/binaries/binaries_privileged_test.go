//go:build privileged

package binaries

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/iptables"
)

func endpoint(addr string, port uint16, proto iptables.Proto) iptables.Endpoint {
	return iptables.Endpoint{Addr: netip.MustParseAddr(addr), Port: port, Proto: proto}
}

func dnsPlan(addrs ...string) iptables.Plan {
	p := iptables.Plan{Lease: Lease}
	for _, a := range addrs {
		p.Listen = append(p.Listen, endpoint(a, 53, iptables.UDP), endpoint(a, 53, iptables.TCP))
	}
	return p.Normalize()
}

var variants = []Variant{Legacy, NFT}

// eachVariant runs a test with the programs of both variants, each in an empty
// network namespace.
func eachVariant(t *testing.T, f func(t *testing.T, v Variant)) {
	for _, v := range variants {
		t.Run(string(v), func(t *testing.T) {
			testns.Enter(t)
			testns.Program(t, "iptables-"+string(v))
			f(t, v)
		})
	}
}

func newBackend(t *testing.T, cfg Config) *Backend {
	t.Helper()
	b, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Remove(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// saved returns the raw tables as the programs of a variant show them, without counters
// and comments.
func saved(t *testing.T, v Variant) string {
	t.Helper()
	var b strings.Builder
	for _, base := range []string{"iptables", "ip6tables"} {
		for line := range strings.Lines(testns.Run(t, base+"-"+string(v)+"-save", "-t", "raw")) {
			if !strings.HasPrefix(line, "#") {
				b.WriteString(strings.ReplaceAll(line, fmt.Sprintf("[%d:%d]", 0, 0), ""))
			}
		}
	}
	return b.String()
}

func setNames(t *testing.T) (names []string) {
	t.Helper()
	err := withSets(func(s *sets) (err error) {
		names, err = s.names(setPrefix)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestLifeOfABackend(t *testing.T) {
	eachVariant(t, func(t *testing.T, v Variant) {
		b := newBackend(t, Config{Variant: v})
		before := saved(t, v)
		present := func(want bool) {
			t.Helper()
			if got, err := b.Present(); got != want || err != nil {
				t.Errorf("present: %t, %v", got, err)
			}
		}
		live := func(want ...netip.Addr) {
			t.Helper()
			got, err := b.Live()
			slices.SortFunc(got, netip.Addr.Compare)
			if !slices.Equal(got, want) || err != nil {
				t.Errorf("live: %v, %v, want %v", got, err, want)
			}
		}
		present(false)
		full := iptables.Rules{Plan: dnsPlan("10.96.0.10", "169.254.20.10", "fd00:10:96::a"), Uplinks: []string{"eth0"},
			Checks: []iptables.Check{{Endpoint: endpoint("10.96.0.10", 41000, iptables.UDP)}}}
		if err := b.Install(full); err != nil {
			t.Fatal(err)
		}
		present(true)
		live()
		if err := b.Attach(); err != nil {
			t.Fatal(err)
		}
		live(full.Plan.Addresses()...)
		small := iptables.Rules{Plan: dnsPlan("10.96.0.10")}
		if err := b.Install(small); err != nil {
			t.Fatal(err)
		}
		present(true)
		live(small.Plan.Addresses()...)
		if strings.Contains(saved(t, v), "fd00:10:96::a") {
			t.Errorf("a family that is no longer in the plan has rules:\n%s", saved(t, v))
		}
		if err := b.Detach(nil); err != nil {
			t.Fatal(err)
		}
		present(true)
		live()
		if err := b.Remove(); err != nil {
			t.Fatal(err)
		}
		present(false)
		// The first transaction of iptables-nft makes the base chains.
		after := strings.NewReplacer("*raw\n", "", "COMMIT\n", "", ":PREROUTING ACCEPT \n", "", ":OUTPUT ACCEPT \n", "")
		if got := after.Replace(saved(t, v)); got != after.Replace(before) {
			t.Errorf("left behind:\n%s", got)
		}
		if got := setNames(t); len(got) > 0 {
			t.Errorf("left behind: sets %v", got)
		}
	})
}

func TestLeasesThatAreRefused(t *testing.T) {
	testns.Enter(t)
	b := newBackend(t, Config{Variant: NFT})
	for _, lease := range []time.Duration{0, 500 * time.Millisecond, 2 * time.Second} {
		plan := dnsPlan("10.96.0.10")
		plan.Lease = lease
		if err := b.Install(iptables.Rules{Plan: plan}); err == nil {
			t.Errorf("lease %s is accepted", lease)
		}
	}
	without := newBackend(t, Config{Variant: NFT, lacking: features{recent: true, ipset: true}})
	if err := without.Install(iptables.Rules{Plan: dnsPlan("10.96.0.10")}); err == nil {
		t.Error("a lease is accepted where the kernel has none")
	}
	plan := dnsPlan("10.96.0.10")
	plan.Lease = 0
	if err := without.Install(iptables.Rules{Plan: plan}); err != nil {
		t.Error(err)
	}
	can, err := without.Capabilities()
	if want := (features{}).lacks(); err != nil || !slices.Equal(can.Lacks, want) || !can.NoLeases {
		t.Errorf("capabilities %+v, error %v, want that it lacks %q", can, err, want)
	}
	if got := b.rs.features.lacks(); len(got) > 0 {
		t.Errorf("this kernel lacks nothing, but %q", got)
	}
}

// Present finds all changes of other programs to our rules, and Install undoes them.
func TestDamageIsFoundAndRepaired(t *testing.T) {
	eachVariant(t, func(t *testing.T, v Variant) {
		program := "iptables-" + string(v)
		b := newBackend(t, Config{Variant: v})
		rules := iptables.Rules{Plan: dnsPlan("10.96.0.10")}
		if err := b.Install(rules); err != nil {
			t.Fatal(err)
		}
		for _, damage := range [][]string{
			{"-F"},
			{"-F", "PREROUTING"},
			{"-F", b.rs.chain(queryingChain)},
			{"-F", b.rs.chain(queriesChain)},
			{"-D", b.rs.chain(untrackChain), "1"},
			{"-A", "PREROUTING", "-j", b.rs.chain(inChain)},
			{"-I", "PREROUTING", "-p", "udp", "-j", "ACCEPT"},
			{"-I", "OUTPUT", "-p", "udp", "-j", "ACCEPT"},
		} {
			testns.Run(t, program, append([]string{"-t", "raw"}, damage...)...)
			if present, err := b.Present(); present || err != nil {
				t.Errorf("%v goes unseen: %v", damage, err)
			}
			if err := b.Install(rules); err != nil {
				t.Fatalf("after %v: %v", damage, err)
			}
			if present, err := b.Present(); !present || err != nil {
				t.Errorf("%v is not repaired: %v", damage, err)
			}
			for _, base := range []string{"PREROUTING", "OUTPUT"} {
				if n := strings.Count(saved(t, v), "-A "+base+" -m comment"); n != 1 {
					t.Errorf("after %v %d rules lead from %s to ours", damage, n, base)
				}
			}
		}
	})
}

func TestForeignRulesStay(t *testing.T) {
	eachVariant(t, func(t *testing.T, v Variant) {
		program := "iptables-" + string(v)
		for _, rule := range []string{"-A PREROUTING -i eth7 -j DROP", "-N HERS", "-A HERS -j ACCEPT", "-A OUTPUT -j HERS"} {
			testns.Run(t, program, append([]string{"-t", "raw"}, strings.Fields(rule)...)...)
		}
		want := saved(t, v)
		b := newBackend(t, Config{Variant: v})
		if err := b.Install(iptables.Rules{Plan: dnsPlan("10.96.0.10")}); err != nil {
			t.Fatal(err)
		}
		if err := b.Remove(); err != nil {
			t.Fatal(err)
		}
		if got := saved(t, v); got != want {
			t.Errorf("before:\n%s\nafter:\n%s", want, got)
		}
	})
}

// The rules of two instances are in the order of their starts. The next start removes
// those of a dead one.
func TestSeveralInstances(t *testing.T) {
	eachVariant(t, func(t *testing.T, v Variant) {
		rules := iptables.Rules{Plan: dnsPlan("10.96.0.10", "fd00::a")}
		dead, first, second := newBackend(t, Config{Variant: v}), newBackend(t, Config{Variant: v}), newBackend(t, Config{Variant: v})
		dead.rs.mark.PID = 1 << 30
		for _, b := range []*Backend{dead, first, second} {
			if err := b.Install(rules); err != nil {
				t.Fatal(err)
			}
		}
		for _, b := range []*Backend{first, second} {
			if present, err := b.Present(); !present || err != nil {
				t.Errorf("present: %t, %v", present, err)
			}
		}
		if got := saved(t, v); strings.Contains(got, dead.Table()) {
			t.Errorf("the rules of a dead instance stay:\n%s", got)
		}
		if got := setNames(t); slices.ContainsFunc(got, func(s string) bool { return strings.Contains(s, dead.rs.id) }) {
			t.Errorf("the sets of a dead instance stay: %v", got)
		}
		text := saved(t, v)
		if strings.Index(text, "-j "+first.rs.chain(inChain)) > strings.Index(text, "-j "+second.rs.chain(inChain)) {
			t.Errorf("the one that came later is asked first:\n%s", text)
		}
		if err := first.Remove(); err != nil {
			t.Fatal(err)
		}
		if present, err := second.Present(); !present || err != nil {
			t.Errorf("after the other's end: present %t, %v", present, err)
		}
	})
}

// If one family fails, the change of the other is undone.
func TestAFailureChangesNothing(t *testing.T) {
	eachVariant(t, func(t *testing.T, v Variant) {
		b := newBackend(t, Config{Variant: v})
		before := saved(t, v)
		if err := b.probe(); err != nil {
			t.Fatal(err)
		}
		broken := *b.programs[iptables.IPv6]
		directory := t.TempDir()
		for _, suffix := range []string{"-save", "-restore"} {
			script := "#!/bin/sh\ncase $0 in *-save) exec " + b.programs[iptables.IPv6].companion(suffix) + " \"$@\";; esac\necho refused >&2; exit 2\n"
			if err := os.WriteFile(filepath.Join(directory, "broken"+suffix), []byte(script), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		broken.path = filepath.Join(directory, "broken")
		counted := map[string]int{}
		b.cfg.Count = func(errorType string) { counted[errorType]++ }
		working := b.programs[iptables.IPv6]
		b.programs[iptables.IPv6] = &broken
		err := b.Install(iptables.Rules{Plan: dnsPlan("10.96.0.10", "fd00::a")})
		b.programs[iptables.IPv6] = working
		if err == nil || errors.Is(err, iptables.ErrBusy) || counted["iptables"] != 1 {
			t.Errorf("error %v, counted %v", err, counted)
		}
		clean := strings.NewReplacer("*raw\n", "", "COMMIT\n", "", ":PREROUTING ACCEPT \n", "", ":OUTPUT ACCEPT \n", "")
		if got := clean.Replace(saved(t, v)); got != clean.Replace(before) {
			t.Errorf("left behind:\n%s", got)
		}
		if got := setNames(t); len(got) > 0 {
			t.Errorf("left behind: sets %v", got)
		}
	})
}

// In a set that packets have filled, known connections replace the other elements.
func TestAFullSetTakesWhatIsKnown(t *testing.T) {
	testns.Enter(t)
	testns.Program(t, "iptables-"+string(NFT))
	const room = 512
	b := newBackend(t, Config{Variant: NFT, room: room})
	if err := b.Install(iptables.Rules{Plan: dnsPlan("10.96.0.10")}); err != nil {
		t.Fatal(err)
	}
	if !b.rs.features.ipset {
		testns.Skip(t, "ip_set")
	}
	of := func(first, n int) (conns []iptables.Connection) {
		for i := first; i < first+n; i++ {
			client := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 244, byte(i >> 16), byte(i >> 8)}), 1024+uint16(i&0xff))
			conns = append(conns, iptables.Connection{Client: client, Listen: netip.MustParseAddrPort("10.96.0.10:53")})
		}
		return conns
	}
	held := b.rs.heldSet(iptables.IPv4)
	err := withSets(func(s *sets) error {
		for _, c := range of(0, room) {
			if err := s.add(held, tupleOf(c)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	known := of(room, 300)
	if err := b.Detach(known); err != nil {
		t.Fatal(err)
	}
	err = withSets(func(s *sets) error {
		elements, err := s.list(held)
		if len(elements) != len(known) {
			t.Errorf("%d connections are in the set, want the %d that are known", len(elements), len(known))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
