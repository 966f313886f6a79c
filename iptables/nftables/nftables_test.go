//go:build privileged

package nftables

import (
	"errors"
	"net/netip"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/owner"
)

func endpoint(addr string, port uint16, proto iptables.Proto) iptables.Endpoint {
	return iptables.Endpoint{Addr: netip.MustParseAddr(addr), Port: port, Proto: proto}
}

func dnsPlan(addrs ...string) iptables.Plan {
	var p iptables.Plan
	for _, a := range addrs {
		p.Listen = append(p.Listen, endpoint(a, 53, iptables.UDP), endpoint(a, 53, iptables.TCP))
	}
	return p.Normalize()
}

func newBackend(t *testing.T) *Backend {
	t.Helper()
	ns := testns.Enter(t)
	b, err := New(Config{NetNS: int(ns)})
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

// listed is what nft shows of the backend's table, without the comment, the
// flags and the counts, which differ from run to run.
func listed(t *testing.T, b *Backend) string {
	t.Helper()
	out := testns.Run(t, "nft", "list", "table", "inet", b.Table())
	out = regexp.MustCompile(`(?m)^\t(comment|flags) .*\n(\n)?`).ReplaceAllString(out, "")
	out = regexp.MustCompile(`(?s)(set (?:live|exempt|held)\d \{[^}]*?)\n\t\telements = \{[^}]*\}`).ReplaceAllString(out, "$1")
	out = regexp.MustCompile(`(?m)^(table .*\{).*$`).ReplaceAllString(out, "$1")
	return regexp.MustCompile(`packets \d+ bytes \d+`).ReplaceAllString(out, "packets 0 bytes 0")
}

func TestPrintIsWhatTheKernelHolds(t *testing.T) {
	checks := []iptables.Check{{Endpoint: endpoint("10.96.0.10", 41000, iptables.UDP)}, {Endpoint: endpoint("fd00:10:96::a", 41001, iptables.TCP)}}
	plan := dnsPlan("169.254.20.10", "10.96.0.10", "fd00:10:96::a")
	plan.Untrack = []iptables.Endpoint{endpoint("169.254.20.10", 8080, iptables.TCP)}
	plan.Lease = time.Second
	full := iptables.Rules{
		Plan:   plan.Normalize(),
		Checks: checks,
		Leases: []iptables.Lease{{
			Source: netip.MustParseAddrPort("10.96.0.10:42000"), Listen: netip.MustParseAddrPort("10.96.0.10:53"),
		}},
		Uplinks: []string{"eth0"},
		Unowned: []netip.Addr{netip.MustParseAddr("169.254.20.10")},
	}
	full.Plan.Sources = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("fd00:244::/48")}
	noLease := full
	noLease.Plan.Lease = 0
	dryRun := full
	dryRun.Plan.DryRun = true
	small := iptables.Rules{Plan: dnsPlan("10.96.0.10")}

	for _, tc := range []struct {
		name string
		do   func(*Backend) error
		want iptables.Rules
	}{
		{"a lease", func(b *Backend) error { return b.Install(full) }, full},
		{"no lease", func(b *Backend) error { return b.Install(noLease) }, noLease},
		{"dry-run", func(b *Backend) error { return b.Install(dryRun) }, dryRun},
		{"a smaller plan", func(b *Backend) error {
			return errors.Join(b.Install(noLease), b.Install(small))
		}, small},
		{"from a lease to none", func(b *Backend) error {
			return errors.Join(b.Install(full), b.Install(noLease))
		}, noLease},
		{"from dry-run to a lease", func(b *Backend) error {
			return errors.Join(b.Install(dryRun), b.Install(full))
		}, full},
		{"removed and made again", func(b *Backend) error {
			return errors.Join(b.Install(full), b.Remove(), b.Install(small))
		}, small},
	} {
		t.Run(tc.name, func(t *testing.T) {
			testns.Program(t, "nft")
			b := newBackend(t)
			if err := tc.do(b); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(Print(b.Table(), tc.want), listed(t, b)); diff != "" {
				t.Errorf("printed plan and kernel differ (-printed +kernel):\n%s", diff)
			}
		})
	}
}

func live(t *testing.T, b *Backend) []string {
	t.Helper()
	addrs, err := b.Live()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, a := range addrs {
		out = append(out, a.String())
	}
	slices.Sort(out)
	return out
}

func TestLive(t *testing.T) {
	full, small := iptables.Rules{Plan: dnsPlan("10.96.0.10", "fd00::a")}, iptables.Rules{Plan: dnsPlan("10.96.0.10")}
	for _, tc := range []struct {
		name string
		do   func(*Backend) error
		want []string
	}{
		{"installed only", func(b *Backend) error { return b.Install(full) }, nil},
		{"attached", func(b *Backend) error { return errors.Join(b.Install(full), b.Attach()) }, []string{"10.96.0.10", "fd00::a"}},
		{"attached twice", func(b *Backend) error { return errors.Join(b.Install(full), b.Attach(), b.Attach()) }, []string{"10.96.0.10", "fd00::a"}},
		{"detached", func(b *Backend) error { return errors.Join(b.Install(full), b.Attach(), b.Detach(nil)) }, nil},
		{"a smaller plan keeps what stays", func(b *Backend) error {
			return errors.Join(b.Install(full), b.Attach(), b.Install(small))
		}, []string{"10.96.0.10"}},
		{"a smaller plan of what was never live", func(b *Backend) error {
			return errors.Join(b.Install(full), b.Install(small))
		}, nil},
		{"a larger plan attaches nothing by itself", func(b *Backend) error {
			return errors.Join(b.Install(small), b.Attach(), b.Install(full))
		}, []string{"10.96.0.10"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBackend(t)
			if err := tc.do(b); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, live(t, b)); diff != "" {
				t.Errorf("live addresses (-want +got):\n%s", diff)
			}
		})
	}
}

func TestOthersCannotTouchTheTable(t *testing.T) {
	b := newBackend(t)
	if err := errors.Join(b.Install(iptables.Rules{Plan: dnsPlan("10.96.0.10")}), b.Attach()); err != nil {
		t.Fatal(err)
	}
	if !b.Owned() {
		t.Fatal("this kernel (5.12 or later) must own the table")
	}
	before := listed(t, b)
	testns.Run(t, "nft", "flush", "ruleset")
	if diff := cmp.Diff(before, listed(t, b)); diff != "" {
		t.Errorf("flush ruleset changed an owned table:\n%s", diff)
	}
	for _, args := range [][]string{
		{"delete", "table", "inet", b.Table()},
		{"flush", "chain", "inet", b.Table(), "prerouting"},
	} {
		if out, err := exec.Command("nft", args...).CombinedOutput(); err == nil {
			t.Errorf("nft %v worked on an owned table: %s", args, out)
		}
	}
}

func TestTheTableGoesWithItsSocket(t *testing.T) {
	b := newBackend(t)
	if err := b.Install(iptables.Rules{Plan: dnsPlan("10.96.0.10")}); err != nil {
		t.Fatal(err)
	}
	// What the kernel does when the process dies.
	if err := b.closeOwner(); err != nil {
		t.Fatal(err)
	}
	b.setup = false
	if got := testns.Run(t, "nft", "list", "tables"); strings.Contains(got, owner.TablePrefix) {
		t.Errorf("left behind: %s", got)
	}
}

func TestTwoInstances(t *testing.T) {
	ns := testns.Enter(t)
	var bs []*Backend
	for range 2 {
		b, err := New(Config{NetNS: int(ns)})
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(b.Install(iptables.Rules{Plan: dnsPlan("10.96.0.10")}), b.Attach()); err != nil {
			t.Fatal(err)
		}
		bs = append(bs, b)
	}
	if all, err := Instances(Config{NetNS: int(ns)}); len(all) != 2 || err != nil {
		t.Errorf("Instances() = %v, %v; want 2", all, err)
	}
	if err := bs[1].Remove(); err != nil {
		t.Fatal(err)
	}
	if all, err := Instances(Config{NetNS: int(ns)}); len(all) != 1 || err != nil || !all[0].Owner.IsSelf() {
		t.Errorf("Instances() after the other's end = %v, %v; want our own", all, err)
	}
	if !strings.Contains(listed(t, bs[0]), "10.96.0.10 . udp . 53") {
		t.Error("the end of one instance took the rules of the other")
	}
	if err := bs[0].Remove(); err != nil {
		t.Fatal(err)
	}
}

func TestARefusedTransactionChangesNothing(t *testing.T) {
	b := newBackend(t)
	if err := errors.Join(b.Install(iptables.Rules{Plan: dnsPlan("10.96.0.10")}), b.Attach()); err != nil {
		t.Fatal(err)
	}
	before := listed(t, b)
	bad := dnsPlan("10.96.0.11")
	bad.Listen[0].Addr = netip.MustParseAddr("10.96.0.12").Next()
	err := func() error {
		// A set that does not exist makes the kernel refuse one message in
		// the middle of the batch.
		set := b.rs.set(checkSet, iptables.IPv4)
		defer func(name string) { set.Name = name }(set.Name)
		set.Name = "nosuchset"
		return b.Install(iptables.Rules{Plan: bad})
	}()
	if err == nil {
		t.Fatal("a transaction on a missing set worked")
	}
	if !strings.Contains(err.Error(), "no such file or directory") || !strings.Contains(err.Error(), b.Table()) {
		t.Errorf("the error must name the table and the kernel's answer: %v", err)
	}
	if diff := cmp.Diff(before, listed(t, b)); diff != "" {
		t.Errorf("a refused transaction changed the table:\n%s", diff)
	}
	if err := b.Install(iptables.Rules{Plan: dnsPlan("10.96.0.11")}); err != nil {
		t.Errorf("the next transaction after a refused one: %v", err)
	}
}
