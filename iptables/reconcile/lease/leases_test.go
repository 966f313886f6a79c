package lease

import (
	"fmt"
	"testing"
	"time"
)

// TestLeases plays events, and compares until when fast paths may answer, in
// milliseconds from the event on.
func TestLeases(t *testing.T) {
	const tick = 200 * time.Millisecond
	for _, row := range []struct {
		name  string
		lease time.Duration
		event func(p *play)
		want  string
	}{
		{"put in force", time.Second, func(*play) {}, "10.96.0.10 1000 169.254.20.10 1000 "},
		{"answered", time.Second, func(p *play) { p.round(tick, Unanswered) }, "10.96.0.10 800 169.254.20.10 800 "},
		{"one failed its checks", time.Second, func(p *play) { p.round(tick, Unanswered, clusterIP) }, "169.254.20.10 800 "},
		{"one answers again", time.Second, func(p *play) {
			p.round(tick, Unanswered, clusterIP)
			p.round(tick, Unanswered)
			p.round(tick, Unanswered)
		}, "10.96.0.10 800 169.254.20.10 800 "},
		{"a hang", time.Second, func(p *play) { p.now = p.now.Add(5 * time.Second) }, "10.96.0.10 -4000 169.254.20.10 -4000 "},
		{"one blocked", time.Second, func(p *play) { p.block(clusterIP) }, "169.254.20.10 1000 "},
		{"by hand", time.Second, func(p *play) { p.withhold(ByHand) }, ""},
		{"drain", time.Second, func(p *play) { p.m.Drain(p.now) }, ""},
		{"stop", time.Second, func(p *play) { p.m.Stop(p.now) }, ""},
		{"no effect", time.Second, func(p *play) { p.m.effects[clusterIP] = errEntry }, "169.254.20.10 1000 "},
		{"overload", time.Second, func(p *play) {
			p.m.Overloaded(p.now, errSilent)
			p.m.Yield(both)
		}, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := attached(t, planOf(row.lease))
			row.event(p)
			leases, got := p.m.Leases(), ""
			for _, a := range both {
				if until, ok := leases[a]; ok {
					got += fmt.Sprintf("%s %d ", a, until.Sub(p.now).Milliseconds())
				}
			}
			if got != row.want {
				t.Errorf("leases %q, want %q", got, row.want)
			}
		})
	}
}
