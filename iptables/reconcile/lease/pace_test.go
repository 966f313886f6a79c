package lease

import (
	"testing"
	"time"
)

func TestPace(t *testing.T) {
	const ms = time.Millisecond
	for _, tc := range []struct {
		name    string
		took    time.Duration
		failed  bool
		queries uint64 // in a second
		lease   time.Duration
		next    time.Duration
	}{
		{"an idle node", ms, false, 0, time.Second, 2 * time.Second / 3},
		{"a few queries", ms, false, 200, time.Second, 2 * time.Second / 3},
		{"a long lease", ms, false, 0, time.Minute, time.Second},
		{"a short lease", ms, false, 0, 500 * ms, 100 * ms},
		{"no lease", ms, true, 1000, 0, time.Second},
		{"many queries", ms, false, 201, time.Second, 200 * ms},
		{"a probe that failed", ms, true, 0, time.Second, 200 * ms},
		{"a round that was late", 51 * ms, false, 0, time.Second, 200 * ms},
		{"a long lease on a busy node", ms, false, 1000, 10 * time.Second, 2 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			now := time.Unix(1_000_000, 0)
			var p Pace
			p.Ended(Past{Due: now, Ended: now.Add(tc.took), Failed: tc.failed, Queries: tc.queries, Since: time.Second})
			now = now.Add(tc.took)
			if got := p.Next(now, tc.lease); got != tc.next {
				t.Errorf("the next round comes after %s, want %s", got, tc.next)
			}
			if now = now.Add(hurryFor); !p.Calm(now) {
				t.Error("not calm some time later")
			}
		})
	}
}
