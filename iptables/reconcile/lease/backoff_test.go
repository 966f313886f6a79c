package lease

import (
	"testing"
	"time"
)

func TestBackoff(t *testing.T) {
	// A lapse comes some time after the wait of the one before it.
	type lapse struct {
		after time.Duration
		cause Cause
		wait  time.Duration
	}
	const s, m = time.Second, time.Minute
	for _, tc := range []struct {
		name   string
		lapses []lapse
	}{
		{"the first costs no wait", []lapse{{0, Unanswered, 0}}},
		{"nor that of a starved process", []lapse{{0, Starved, 0}}},
		{"each soon after waits twice as long", []lapse{
			{0, Unanswered, 0}, {s, Unanswered, 5 * s}, {s, Unanswered, 10 * s}, {s, Starved, 20 * s}, {s, Unanswered, 40 * s},
		}},
		{"throttled, it waits from the first on", []lapse{{0, Throttled, m}, {s, Throttled, 2 * m}, {s, Throttled, 4 * m}}},
		{"up to a limit", []lapse{
			{0, Throttled, m}, {s, Throttled, 2 * m}, {s, Throttled, 4 * m}, {s, Throttled, 8 * m}, {s, Throttled, 16 * m}, {s, Throttled, 16 * m},
		}},
		{"throttled after another", []lapse{{0, Unanswered, 0}, {s, Unanswered, 5 * s}, {s, Throttled, m}, {s, Unanswered, 2 * m}}},
		{"forgotten after a minute", []lapse{{0, Unanswered, 0}, {61 * s, Unanswered, 0}}},
		{"not before", []lapse{{0, Unanswered, 0}, {59 * s, Unanswered, 5 * s}}},
		{"a long wait is forgotten later", []lapse{
			{0, Throttled, m}, {2*m - s, Throttled, 2 * m}, {4*m - s, Throttled, 4 * m}, {8*m + s, Throttled, m},
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var b backoff
			now := time.Now()
			for i, l := range tc.lapses {
				now = now.Add(b.wait + l.after)
				b.lapsed(now, l.cause)
				if b.wait != l.wait {
					t.Fatalf("lapse %d waits %s, want %s", i+1, b.wait, l.wait)
				}
				if end := now.Add(l.wait); l.wait > 0 && (!b.waits(end.Add(-1)) || b.waits(end)) || b.waits(end) {
					t.Fatalf("lapse %d: it does not wait until %s after it", i+1, l.wait)
				}
			}
		})
	}
}
