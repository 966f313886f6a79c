package ruleset

import (
	"errors"
	"strings"
	"testing"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/backends"
	"github.com/trackless-dns/trackless/iptables/binaries"
	"github.com/trackless-dns/trackless/iptables/nftables"
)

// withoutNFTables makes this kernel one without nf_tables.
func withoutNFTables(t *testing.T) {
	real := openBackend
	t.Cleanup(func() { openBackend = real })
	openBackend = func(k backends.Kind, o backends.Options) (iptables.Backend, error) {
		if k.Name != NFTables {
			return real(k, o)
		}
		return nil, &iptables.UnsupportedError{Feature: "nf_tables", Err: errors.New("not supported")}
	}
}

func TestChoiceOfTheBackend(t *testing.T) {
	testns.Program(t, "iptables-legacy")
	for _, tc := range []struct {
		name      string
		backend   string
		variant   binaries.Variant
		noNFT     bool
		noProgram bool
		want, why string // an error if want is empty
	}{
		{name: "auto takes nftables", backend: Auto, want: "nftables", why: "this kernel has nf_tables"},
		{name: "auto falls back", backend: Auto, noNFT: true, want: "iptables", why: "this kernel has no nf_tables"},
		{name: "auto has neither", backend: Auto, noNFT: true, noProgram: true, why: "neither backend can be used"},
		{name: "nftables", backend: NFTables, want: "nftables", why: "the Corefile says so"},
		{name: "nftables falls back to nothing", backend: NFTables, noNFT: true, why: "no nf_tables"},
		{name: "iptables", backend: IPTables, want: "iptables", why: "the Corefile says so"},
		{name: "iptables legacy", backend: IPTables, variant: binaries.Legacy, want: "iptables", why: "the Corefile says so"},
		{name: "iptables without programs", backend: IPTables, noProgram: true, why: "install iptables"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			testns.Enter(t)
			if tc.noNFT {
				withoutNFTables(t)
			}
			if tc.noProgram {
				t.Setenv("PATH", t.TempDir())
			}
			choice := Choice{tc.backend, tc.variant}
			b, why, err := choice.Open(func(string) {})
			if tc.want == "" {
				if err == nil || !strings.Contains(err.Error(), tc.why) {
					t.Errorf("error %v, want %q", err, tc.why)
				}
				return
			}
			if err != nil || b.Name() != tc.want || why != tc.why {
				t.Fatalf("%v since %q, error %v", b, why, err)
			}
			if can, err := b.Capabilities(); err != nil || tc.variant != binaries.Auto && can.Variant != string(tc.variant) {
				t.Errorf("variant %q, error %v", can.Variant, err)
			}
			if !choice.Serves(b) {
				t.Error("the next load would choose another")
			}
		})
	}
}

func TestWhenAReloadChangesTheBackend(t *testing.T) {
	testns.Enter(t)
	testns.Program(t, "iptables-legacy")
	native, err := nftables.New(nftables.Config{})
	if err != nil {
		t.Fatal(err)
	}
	legacy, err := binaries.New(binaries.Config{Variant: binaries.Legacy})
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name    string
		inForce iptables.Backend
		backend string
		variant binaries.Variant
		stays   bool
	}{
		{"nftables, auto", native, Auto, binaries.Auto, true},
		{"nftables, nftables", native, NFTables, binaries.Auto, true},
		{"nftables, iptables", native, IPTables, binaries.Auto, false},
		{"legacy, auto", legacy, Auto, binaries.Auto, false},
		{"legacy, iptables", legacy, IPTables, binaries.Auto, true},
		{"legacy, iptables legacy", legacy, IPTables, binaries.Legacy, true},
		{"legacy, iptables nft", legacy, IPTables, binaries.NFT, false},
		{"legacy, nftables", legacy, NFTables, binaries.Auto, false},
	} {
		choice := Choice{tc.backend, tc.variant}
		if got := choice.Serves(tc.inForce); got != tc.stays {
			t.Errorf("%s: stays %t", tc.name, got)
		}
	}
	withoutNFTables(t)
	if !(Choice{Name: Auto}).Serves(legacy) {
		t.Error("legacy, auto, on a kernel without nf_tables: another is chosen")
	}
}
