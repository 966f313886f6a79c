//go:build privileged

package loopback

import (
	"os/exec"
	"testing"

	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/internal/testns"
)

func TestTracked(t *testing.T) {
	t.Parallel()
	ns := testns.New(t)
	ns.Do(func() {
		c, err := conntrack.Dial(nil)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		for _, step := range []struct {
			rules string
			want  bool
		}{
			{"", false}, // no rule needs connection tracking
			{"add table inet z { chain c { type filter hook output priority -310; ct zone set 9; }; }", true},
			{"delete table inet z", false},
			{"add table inet t { chain c { type filter hook input priority 0; ct state new accept; }; }", true},
			{"add table inet u { chain c { type filter hook output priority -300; oif lo notrack; }; }", false},
		} {
			if step.rules != "" {
				if out, err := exec.Command("nft", step.rules).CombinedOutput(); err != nil {
					t.Fatalf("nft: %v\n%s", err, out)
				}
			}
			got, err := Tracked(c)
			if err != nil || got != step.want {
				t.Errorf("Tracked() = %t, %v after %q, want %t", got, err, step.rules, step.want)
			}
		}
		if n, _, err := c.Count(); err != nil || n != 0 {
			t.Errorf("%d entries left behind, %v", n, err)
		}
	})
}
