//go:build privileged

package nftables

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/owner"
)

var sameAddr = cmpopts.EquateComparable(netip.Addr{})

func TestInstances(t *testing.T) {
	plan := dnsPlan("10.96.0.10", "fd00:10:96::a")
	for _, tc := range []struct {
		name     string
		do       func(*Backend) error
		live     []iptables.Endpoint
		attached bool
	}{
		{"installed", func(*Backend) error { return nil }, nil, false},
		{"attached", (*Backend).Attach, plan.Listen, true},
		{"one more endpoint that is not attached yet", func(b *Backend) error {
			return errors.Join(b.Attach(), b.Install(iptables.Rules{Plan: dnsPlan("10.96.0.10", "fd00:10:96::a", "10.96.0.11")}))
		}, plan.Listen, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBackend(t)
			if err := errors.Join(b.Install(iptables.Rules{Plan: plan}), tc.do(b)); err != nil {
				t.Fatal(err)
			}
			got, err := Instances(b.cfg)
			if err != nil {
				t.Fatal(err)
			}
			if len(got) != 1 {
				t.Fatalf("%d instances, want 1: %+v", len(got), got)
			}
			i := got[0]
			if i.Table != b.Table() || !i.Owned || i.Attached() != tc.attached {
				t.Errorf("table %s owned %v attached %v", i.Table, i.Owned, i.Attached())
			}
			if diff := cmp.Diff(tc.live, i.Live, sameAddr); diff != "" {
				t.Errorf("live (-want +got):\n%s", diff)
			}
			if i.Owner.LocalPID != os.Getpid() || i.Owner.Life != owner.Alive || i.Owner.Command == "" || i.Owner.Age() <= 0 || i.Owner.Age() > time.Hour {
				t.Errorf("owner %+v, age %s", i.Owner, i.Owner.Age())
			}
		})
	}
}

func TestInstancesWhereThereAreNone(t *testing.T) {
	ns := testns.Enter(t)
	if got, err := Instances(Config{NetNS: int(ns)}); err != nil || len(got) != 0 {
		t.Errorf("%v, error %v", got, err)
	}
	if err := RemoveTable(Config{NetNS: int(ns)}, owner.TablePrefix+"nothing"); err != nil {
		t.Errorf("removing what is not there: %v", err)
	}
	if err := RemoveTable(Config{NetNS: int(ns)}, "filter"); err == nil || !strings.Contains(err.Error(), "table inet filter") {
		t.Errorf("removing somebody's table: error %v", err)
	}
}

// ordinary makes a table as a kernel without owned tables has it.
func ordinary(t *testing.T, name string, m owner.Mark) {
	t.Helper()
	testns.Run(t, "nft", "add", "table", "inet", name, fmt.Sprintf("{ comment %q; }", m))
}

func TestWhoOwnsATable(t *testing.T) {
	testns.Program(t, "nft")
	child := exec.Command("sleep", "600")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = child.Process.Kill(); _ = child.Wait() })
	alive, err := owner.Of(child.Process.Pid, 1)
	if err != nil {
		t.Fatal(err)
	}
	another, none := alive, alive
	another.Start++
	none.PID = 1 << 30
	for _, tc := range []struct {
		name  string
		owner owner.Mark
		life  owner.Life
		pid   int
	}{
		{"alive", alive, owner.Alive, alive.PID},
		{"the pid is another's now", another, owner.Dead, 0},
		{"no such pid", none, owner.Dead, 0},
		{"unreadable", owner.Mark{}, owner.Unknown, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := Config{NetNS: int(testns.Enter(t))}
			name := owner.TablePrefix + "test"
			ordinary(t, name, tc.owner)
			got, err := Instances(cfg)
			if err != nil || len(got) != 1 {
				t.Fatalf("%v, error %v", got, err)
			}
			if got[0].Owned || got[0].Owner.Life != tc.life || got[0].Owner.LocalPID != tc.pid {
				t.Errorf("owned %v, owner %+v", got[0].Owned, got[0].Owner)
			}
			stale, err := RemoveStale(cfg)
			if err != nil || (len(stale) == 1) != (tc.life == owner.Dead) {
				t.Errorf("removed as stale: %v, %v", stale, err)
			}
			if err := RemoveTable(cfg, name); err != nil {
				t.Error(err)
			}
		})
	}
}
