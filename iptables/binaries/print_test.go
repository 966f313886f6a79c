//go:build privileged

package binaries

import (
	"strings"
	"testing"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/iptables"
)

// iptables-restore makes of the output of Print the tables that Install makes.
func TestPrintIsWhatInstallMakes(t *testing.T) {
	eachVariant(t, func(t *testing.T, v Variant) {
		rules := iptables.Rules{Plan: dnsPlan("10.96.0.10", "169.254.20.10"), Uplinks: []string{"eth0"}}
		printed := Print(rules)
		b := newBackend(t, Config{Variant: v})
		b.rs.id = PlanID
		if err := b.Install(rules); err != nil {
			t.Fatal(err)
		}
		want := saved(t, v)
		for _, f := range []string{"PREROUTING", "OUTPUT"} {
			testns.Run(t, "iptables-"+string(v), "-t", "raw", "-F", f)
		}
		p := b.programs[iptables.IPv4]
		var lines []string
		for line := range strings.Lines(printed) {
			if line = strings.TrimSpace(line); !strings.HasPrefix(line, "#") {
				lines = append(lines, line)
			}
		}
		if err := p.restoreTables(lines, lastWait); err != nil {
			t.Fatalf("%v\n%s", err, printed)
		}
		mark := strings.NewReplacer(b.rs.mark.String(), "MARK", commentOf(printed), "MARK")
		if got := saved(t, v); mark.Replace(got) != mark.Replace(want) {
			t.Errorf("installed:\n%s\nrestored:\n%s", want, got)
		}
	})
}
