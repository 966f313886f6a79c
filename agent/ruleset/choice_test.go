//go:build privileged

package ruleset

import (
	"errors"
	"slices"
	"testing"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/backends"
	"github.com/trackless-dns/trackless/iptables/binaries"
	"github.com/trackless-dns/trackless/iptables/nftables"
)

// withoutNFTables makes nf_tables look unsupported.
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

// lacking returns the features that are missing according to an error and those in it.
func lacking(err error) (features []string) {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, err := range joined.Unwrap() {
			features = append(features, lacking(err)...)
		}
		return features
	}
	var unsupported *iptables.UnsupportedError
	if errors.As(err, &unsupported) {
		features = append(features, unsupported.Feature)
	}
	return features
}

func TestChoiceOfTheBackend(t *testing.T) {
	testns.Program(t, "iptables-legacy")
	for _, tc := range []struct {
		name      string
		backend   string
		variant   binaries.Variant
		noNFT     bool
		noProgram bool
		want, why string   // want is empty for an error
		lacks     []string // the features that the error names
	}{
		{name: "auto takes nftables", backend: Auto, want: "nftables", why: "this kernel has nf_tables"},
		{name: "auto falls back", backend: Auto, noNFT: true, want: "iptables", why: "this kernel has no nf_tables"},
		{name: "auto has neither", backend: Auto, noNFT: true, noProgram: true, lacks: []string{"nf_tables", "program iptables"}},
		{name: "nftables", backend: NFTables, want: "nftables", why: "the Corefile says so"},
		{name: "nftables falls back to nothing", backend: NFTables, noNFT: true, lacks: []string{"nf_tables"}},
		{name: "iptables", backend: IPTables, want: "iptables", why: "the Corefile says so"},
		{name: "iptables legacy", backend: IPTables, variant: binaries.Legacy, want: "iptables", why: "the Corefile says so"},
		{name: "iptables without programs", backend: IPTables, noProgram: true, lacks: []string{"program iptables"}},
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
				if got := lacking(err); !slices.Equal(got, tc.lacks) {
					t.Errorf("error %v: lacks %q, want %q", err, got, tc.lacks)
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
				t.Error("the next load would choose another backend")
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
		t.Error("legacy, auto, on a kernel without nf_tables: another backend is chosen")
	}
}
