//go:build privileged

package binaries

import (
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/legacy"
	"github.com/trackless-dns/trackless/iptables/owner"
)

func TestInstances(t *testing.T) {
	testns.Enter(t)
	testns.Program(t, "iptables-legacy")
	ownLock(t)
	plan := dnsPlan("10.96.0.10", "fd00::a")
	var tables []string
	var attached *Backend // that of the nft binaries
	for _, v := range variants {
		b := newBackend(t, Config{Variant: v})
		if err := b.Install(iptables.Rules{Plan: plan}); err != nil {
			t.Fatal(err)
		}
		tables = append(tables, b.Table())
		attached = b
	}
	// On a slow machine the lease can end before it is read.
	var all []iptables.Instance
	for deadline := time.Now().Add(time.Minute); ; {
		if err := attached.Attach(); err != nil {
			t.Fatal(err)
		}
		var err error
		if all, err = Instances(); err != nil || len(all) != 2 {
			t.Fatalf("%+v, %v", all, err)
		}
		whole := func(i iptables.Instance) bool { return len(i.Live) == len(plan.Listen) }
		if slices.ContainsFunc(all, whole) || time.Now().After(deadline) {
			break
		}
	}
	for _, i := range all {
		wantLive := 0
		if i.Variant == string(NFT) {
			wantLive = len(plan.Listen)
		}
		if i.Backend != iptables.BackendBinaries || !slices.Contains(tables, i.Table) || i.Owner.Life != owner.Alive || !slices.Equal(i.Listen, plan.Listen) || len(i.Live) != wantLive {
			t.Errorf("%+v, want %v", i, plan.Listen)
		}
	}
	if slices.ContainsFunc(all, func(i iptables.Instance) bool { return !i.Owner.IsSelf() }) {
		t.Errorf("not both are of this process: %+v", all)
	}
	if err := RemoveInstance(tables[0]); err != nil {
		t.Fatal(err)
	}
	if all, err := Instances(); len(all) != 1 || all[0].Table != tables[1] || err != nil {
		t.Errorf("after a removal: %+v, %v", all, err)
	}
	if err := RemoveInstance("KUBE-SERVICES"); err == nil {
		t.Error("chains of others can be removed")
	}
}

func TestDeadInstancesAreRemoved(t *testing.T) {
	eachVariant(t, func(t *testing.T, v Variant) {
		b := newBackend(t, Config{Variant: v})
		b.rs.mark.PID = 1 << 30
		living := newBackend(t, Config{Variant: v})
		for _, b := range []*Backend{living, b} {
			if err := b.Install(iptables.Rules{Plan: dnsPlan("10.96.0.10", "fd00::a")}); err != nil {
				t.Fatal(err)
			}
		}
		removed, err := RemoveStale()
		if err != nil || !slices.Equal(removed, []string{b.Table()}) {
			t.Errorf("removed %v, %v", removed, err)
		}
		if names := setNames(t); slices.ContainsFunc(names, func(s string) bool { return s[:len(setPrefix)+8] == setPrefix+b.rs.id }) {
			t.Errorf("left behind: %v", names)
		}
		if present, err := living.Present(); !present || err != nil {
			t.Errorf("the living one: %t, %v", present, err)
		}
	})
}

// Instances makes no legacy table.
func TestLookingMakesNoTable(t *testing.T) {
	testns.Enter(t)
	testns.Program(t, "iptables-legacy")
	if all, err := Instances(); len(all) != 0 || err != nil {
		t.Errorf("%v, %v", all, err)
	}
	for _, f := range families {
		if names, err := legacy.Names(legacy.Config{}, f); len(names) != 0 || err != nil {
			t.Errorf("%s tables %v, %v", f, names, err)
		}
	}
}

// Without chains of ours no program is run: iptables-nft-save reads all rules of all
// programs.
func TestLookingRunsNoProgramForNothing(t *testing.T) {
	testns.Enter(t)
	testns.Program(t, "iptables-nft")
	testns.Run(t, "iptables-nft", "-t", "raw", "-A", "PREROUTING", "-s", "198.18.0.1", "-j", "ACCEPT")
	for _, p := range everyProgram() {
		// Its -save and -restore do not exist, so that running one fails.
		broken := *p
		broken.path = filepath.Join(t.TempDir(), "iptables")
		before, _ := opened.Swap(p.path, &broken)
		t.Cleanup(func() { opened.Store(p.path, before) })
	}
	if all, err := Instances(); len(all) != 0 || err != nil {
		t.Errorf("%v, %v", all, err)
	}
	testns.Run(t, "iptables-nft", "-t", "raw", "-N", chainPrefix+"00000000-TAKE")
	if _, err := Instances(); err == nil {
		t.Error("with a chain of ours, no program was run")
	}
}

func TestVariantInUse(t *testing.T) {
	for _, tc := range []struct {
		name, program string
		args          []string
		want          Variant
	}{
		{"nothing", "", nil, Auto},
		{"chains of others", "iptables-nft", []string{"-t", "nat", "-N", "DOCKER"}, Auto},
		{"kubelet with nft", "iptables-nft", []string{"-t", "mangle", "-N", "KUBE-IPTABLES-HINT"}, NFT},
		{"kube-proxy with legacy", "iptables-legacy", []string{"-t", "nat", "-N", "KUBE-SERVICES"}, Legacy},
		{"kube-proxy with legacy, IPv6 alone", "ip6tables-legacy", []string{"-t", "nat", "-N", "KUBE-SERVICES"}, Legacy},
	} {
		t.Run(tc.name, func(t *testing.T) {
			testns.Enter(t)
			testns.Program(t, "iptables-nft")
			testns.Program(t, "ip6tables-legacy")
			if tc.program != "" {
				testns.Run(t, tc.program, tc.args...)
			}
			if got := variantInUse(); got != tc.want {
				t.Errorf("%q, want %q", got, tc.want)
			}
		})
	}
}
