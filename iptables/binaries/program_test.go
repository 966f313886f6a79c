//go:build privileged

package binaries

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/iptables"
)

// withoutNFT puts programs of the nft variant first in PATH that fail as iptables 1.8.9
// does on a kernel without nf_tables.
func withoutNFT(t *testing.T) {
	t.Helper()
	directory := t.TempDir()
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(directory, name), []byte("#!/bin/sh\n"+text+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, base := range []string{"iptables", "ip6tables"} {
		for _, name := range []string{base, base + "-nft"} {
			write(name, "echo '"+base+" v1.8.9 (nf_tables)'")
			for _, suffix := range []string{"-save", "-restore"} {
				write(name+suffix, "echo '"+name+suffix+": Could not fetch rule set generation id: Invalid argument' >&2; exit 1")
			}
		}
	}
	t.Setenv("PATH", directory+":"+os.Getenv("PATH"))
}

// On a kernel without nf_tables the program without a suffix may still be the nft
// variant, as with Debian's alternatives. Then the legacy variant is used.
func TestKernelWithoutNFTables(t *testing.T) {
	testns.Enter(t)
	testns.Program(t, "iptables-legacy")
	withoutNFT(t)
	b := newBackend(t, Config{})
	if b.Variant() != Legacy {
		t.Fatalf("variant %s is chosen", b.Variant())
	}
	if err := b.Install(iptables.Rules{Plan: dnsPlan("10.96.0.10", "fd00::a")}); err != nil {
		t.Fatal(err)
	}
	if all, err := Instances(); len(all) != 1 || err != nil {
		t.Errorf("%v, %v", all, err)
	}
}

// onlyPrograms makes these programs the only ones in PATH.
func onlyPrograms(t *testing.T, names ...string) {
	t.Helper()
	directory := t.TempDir()
	for _, name := range names {
		for _, suffix := range []string{"", "-save", "-restore"} {
			path, err := exec.LookPath(name + suffix)
			if err != nil {
				t.Skip(err)
			}
			if err := os.Symlink(path, filepath.Join(directory, name+suffix)); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Setenv("PATH", directory)
}

func TestProgramsThatAreThere(t *testing.T) {
	for _, test := range []struct {
		name  string
		there []string
		asked Variant
		want  map[iptables.Family]Variant
	}{
		{name: "none"},
		{name: "legacy alone", there: []string{"iptables-legacy", "ip6tables-legacy"}, want: map[iptables.Family]Variant{iptables.IPv4: Legacy, iptables.IPv6: Legacy}},
		{name: "nft alone", there: []string{"iptables-nft", "ip6tables-nft"}, want: map[iptables.Family]Variant{iptables.IPv4: NFT, iptables.IPv6: NFT}},
		{name: "one family", there: []string{"ip6tables-nft"}, want: map[iptables.Family]Variant{iptables.IPv6: NFT}},
		{name: "another variant than asked for", there: []string{"iptables-nft", "ip6tables-nft"}, asked: Legacy},
		{name: "one of each", there: []string{"iptables-nft", "ip6tables-legacy"}, want: map[iptables.Family]Variant{iptables.IPv4: NFT, iptables.IPv6: Legacy}},
		{
			name: "both, and legacy first", there: []string{"iptables-legacy", "iptables-nft", "ip6tables-nft", "ip6tables-legacy"},
			want: map[iptables.Family]Variant{iptables.IPv4: Legacy, iptables.IPv6: Legacy},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			testns.Enter(t)
			onlyPrograms(t, test.there...)
			found, err := findPrograms(test.asked)
			if len(found) != len(test.want) || (err == nil) != (len(found) == len(families)) {
				t.Errorf("found %d programs, error %v", len(found), err)
			}
			for f, p := range found {
				if p.variant != test.want[f] {
					t.Errorf("%s: %s of variant %s", f, p.path, p.variant)
				}
			}
			if _, err := New(Config{Variant: test.asked}); (err != nil) != (len(test.want) == 0) {
				t.Errorf("a backend: %v", err)
			}
		})
	}
}

// The watch of legacy tables makes no table for a family whose rules are elsewhere.
func TestWatchMakesNoTable(t *testing.T) {
	testns.Enter(t)
	onlyPrograms(t, "iptables-legacy", "ip6tables-nft")
	b := newBackend(t, Config{})
	if err := b.Install(iptables.Rules{Plan: dnsPlan("10.96.0.10", "fd00::a")}); err != nil {
		t.Fatal(err)
	}
	if got := b.watched(); !slices.Equal(got, []iptables.Family{iptables.IPv4}) {
		t.Errorf("watched: %v", got)
	}
}

// The node uses the variant whose tables have kubelet's or kube-proxy's chains.
func TestVariantOfTheNode(t *testing.T) {
	for _, v := range variants {
		t.Run(string(v), func(t *testing.T) {
			testns.Enter(t)
			testns.Program(t, "iptables-"+string(v))
			testns.Run(t, "iptables-"+string(v), "-t", "mangle", "-N", "KUBE-KUBELET-CANARY")
			if b := newBackend(t, Config{}); b.Variant() != v {
				t.Errorf("variant %s is chosen", b.Variant())
			}
		})
	}
	for _, family := range families {
		t.Run("single "+family.String(), func(t *testing.T) {
			testns.Enter(t)
			testns.Program(t, "iptables-legacy")
			testns.Run(t, baseNames[family]+"-legacy", "-t", "mangle", "-N", "KUBE-KUBELET-CANARY")
			b := newBackend(t, Config{})
			for f, p := range b.programs {
				if p.variant != Legacy {
					t.Errorf("%s: variant %s is chosen", f, p.variant)
				}
			}
		})
	}
	testns.Enter(t)
	plain, err := exec.Command("iptables", "--version").Output()
	if err != nil {
		t.Skip(err)
	}
	want := Legacy
	if string(plain[len(plain)-len("(nf_tables)\n"):]) == "(nf_tables)\n" {
		want = NFT
	}
	if b := newBackend(t, Config{}); b.Variant() != want {
		t.Errorf("without a sign variant %s is chosen, want %s", b.Variant(), want)
	}
}
