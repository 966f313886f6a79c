package xtables

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/iptables"
)

// withoutNFT puts programs of the nft variant first that a kernel without
// nf_tables refuses, as it does with iptables 1.8.9.
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

// On a kernel without nf_tables the plain name may run the nft variant all the
// same, as Debian's alternatives have it: the other one is taken.
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
	if _, err := Adopt(nil); err != nil {
		t.Error(err)
	}
}

// The variant whose tables hold kubelet's or kube-proxy's chains is the node's.
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
