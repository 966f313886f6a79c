package nft

import (
	"errors"
	"net/netip"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/iptables"
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
	out = regexp.MustCompile(`(?m)^(table .*\{).*$`).ReplaceAllString(out, "$1")
	return regexp.MustCompile(`packets \d+ bytes \d+`).ReplaceAllString(out, "packets 0 bytes 0")
}

func TestPrintIsWhatTheKernelHolds(t *testing.T) {
	checks := []iptables.Check{{Endpoint: endpoint("10.96.0.10", 41000, iptables.UDP)}, {Endpoint: endpoint("fd00:10:96::a", 41001, iptables.TCP)}}
	full := dnsPlan("169.254.20.10", "10.96.0.10", "fd00:10:96::a")
	full.Untrack = []iptables.Endpoint{endpoint("169.254.20.10", 8080, iptables.TCP)}
	full = full.Normalize()
	small := dnsPlan("10.96.0.10")

	for _, tc := range []struct {
		name     string
		do       func(*Backend) error
		plan     iptables.Plan
		attached bool
	}{
		{"installed, queries not untracked yet", func(b *Backend) error {
			return b.Install(full, checks)
		}, full, false},
		{"attached", func(b *Backend) error {
			return errors.Join(b.Install(full, checks), b.Attach())
		}, full, true},
		{"attached twice", func(b *Backend) error {
			return errors.Join(b.Install(full, checks), b.Attach(), b.Attach())
		}, full, true},
		{"detached: responses stay", func(b *Backend) error {
			return errors.Join(b.Install(full, checks), b.Attach(), b.Detach())
		}, full, false},
		{"a smaller plan leaves what stays attached", func(b *Backend) error {
			return errors.Join(b.Install(full, checks), b.Attach(), b.Install(small, checks))
		}, small, true},
		{"removed and made again", func(b *Backend) error {
			return errors.Join(b.Install(full, checks), b.Attach(), b.Remove(), b.Install(small, checks))
		}, small, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			testns.Program(t, "nft")
			b := newBackend(t)
			if err := tc.do(b); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(Print(b.Table(), tc.plan, checks, tc.attached), listed(t, b)); diff != "" {
				t.Errorf("printed plan and kernel differ (-printed +kernel):\n%s", diff)
			}
		})
	}
}

func TestALargerPlanAttachesNothingByItself(t *testing.T) {
	b := newBackend(t)
	small, full := dnsPlan("10.96.0.10"), dnsPlan("10.96.0.10", "10.96.0.11")
	if err := errors.Join(b.Install(small, nil), b.Attach(), b.Install(full, nil)); err != nil {
		t.Fatal(err)
	}
	got := listed(t, b)
	if !strings.Contains(got, "set live4 {\n\t\ttype ipv4_addr . inet_proto . inet_service\n\t\telements = { 10.96.0.10 . tcp . 53,\n\t\t\t     10.96.0.10 . udp . 53 }") {
		t.Errorf("the endpoints that stay must stay live, and the new ones wait for Attach:\n%s", got)
	}
}

func TestOthersCannotTouchTheTable(t *testing.T) {
	b := newBackend(t)
	if err := errors.Join(b.Install(dnsPlan("10.96.0.10"), nil), b.Attach()); err != nil {
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
	if err := b.Install(dnsPlan("10.96.0.10"), nil); err != nil {
		t.Fatal(err)
	}
	// What the kernel does when the process dies.
	if err := b.conn.Close(); err != nil {
		t.Fatal(err)
	}
	b.setup = false
	if got := testns.Run(t, "nft", "list", "tables"); strings.Contains(got, TablePrefix) {
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
		if err := errors.Join(b.Install(dnsPlan("10.96.0.10"), nil), b.Attach()); err != nil {
			t.Fatal(err)
		}
		bs = append(bs, b)
	}
	if n, err := bs[0].Others(); n != 1 || err != nil {
		t.Errorf("Others() = %d, %v; want 1", n, err)
	}
	if err := bs[1].Remove(); err != nil {
		t.Fatal(err)
	}
	if n, err := bs[0].Others(); n != 0 || err != nil {
		t.Errorf("Others() after the other's end = %d, %v; want 0", n, err)
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
	if err := errors.Join(b.Install(dnsPlan("10.96.0.10"), nil), b.Attach()); err != nil {
		t.Fatal(err)
	}
	before := listed(t, b)
	bad := dnsPlan("10.96.0.11")
	bad.Listen[0].Addr = netip.MustParseAddr("10.96.0.12").Next()
	err := func() error {
		// A set that does not exist makes the kernel refuse one message in
		// the middle of the batch.
		set := b.rs.sets[iptables.IPv4].check
		defer func(name string) { set.Name = name }(set.Name)
		set.Name = "nosuchset"
		return b.Install(bad, nil)
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
	if err := b.Install(dnsPlan("10.96.0.11"), nil); err != nil {
		t.Errorf("the next transaction after a refused one: %v", err)
	}
}
