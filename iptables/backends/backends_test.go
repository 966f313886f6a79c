//go:build privileged

package backends

import (
	"net/netip"
	"testing"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/binaries"
)

// TestEachKind: the entry of a kind finds and removes the rules that its backend makes.
func TestEachKind(t *testing.T) {
	testns.Program(t, "iptables-nft")
	for _, k := range All() {
		t.Run(k.Name, func(t *testing.T) {
			testns.Enter(t)
			if named, known := Named(k.Name); !known || named.Name != k.Name {
				t.Fatalf("called %q, known %t", named.Name, known)
			}
			b, err := k.Open(Options{Variant: binaries.NFT})
			if err != nil {
				t.Fatal(err)
			}
			if b.Name() != k.Name {
				t.Errorf("it calls itself %s", b.Name())
			}
			dns := iptables.Endpoint{Addr: netip.MustParseAddr("10.96.0.10"), Port: 53, Proto: iptables.UDP}
			plan := iptables.Plan{Listen: []iptables.Endpoint{dns}, Lease: binaries.Lease}
			if err := b.Install(iptables.Rules{Plan: plan}); err != nil {
				t.Fatal(err)
			}
			found, err := Instances()
			if err != nil || len(found) != 1 || found[0].Backend != k.Name || found[0].Table != b.Table() {
				t.Fatalf("found %+v, error %v", found, err)
			}
			if removed, err := RemoveStale(); err != nil || len(removed) > 0 {
				t.Errorf("%q is said to be stale, error %v", removed, err)
			}
			if b.Owned() {
				err = b.Remove() // no other process can
			} else {
				err = Remove(found[0])
			}
			if left, leftErr := Instances(); err != nil || leftErr != nil || len(left) > 0 {
				t.Errorf("left %+v, errors %v and %v", left, err, leftErr)
			}
		})
	}
	if err := Remove(iptables.Instance{Backend: "none", Table: "x"}); err == nil {
		t.Error("an unknown backend is removed")
	}
}
