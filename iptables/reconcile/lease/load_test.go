package lease

import (
	"strings"
	"testing"
	"time"
)

// second is what happens in one.
type second struct {
	throttled, starved time.Duration
	arrived, dropped   uint64
	waiting, queued    uint64 // at its end
}

func TestPressure(t *testing.T) {
	const all = time.Second
	repeat := func(n int, s second) (out []second) {
		for range n {
			out = append(out, s)
		}
		return out
	}
	for _, tc := range []struct {
		name       string
		seconds    []second
		cause      Cause
		overloaded bool
	}{
		{"idle", []second{{}}, Unanswered, false},
		{"throttled, and all is answered", repeat(60, second{throttled: all, arrived: 500, waiting: 50}), Throttled, false},
		{"a pause of each period makes queries wait, no more", []second{
			{throttled: all, arrived: 1000}, {throttled: all, arrived: 1000, waiting: 90}, {throttled: all, arrived: 1000, waiting: 30}, {throttled: all, arrived: 1000, waiting: 100},
		}, Throttled, false},
		{"a third is dropped", []second{{throttled: all, arrived: 1000, dropped: 500}}, Throttled, true},
		{"a twentieth is, for a moment", repeat(3, second{throttled: all, arrived: 1900, dropped: 100}), Throttled, false},
		{"and goes on being", repeat(8, second{throttled: all, arrived: 1900, dropped: 100}), Throttled, true},
		{"one in a hundred, for long", repeat(100, second{throttled: all, arrived: 990, dropped: 10}), Throttled, false},
		{"with pauses it begins anew", append(repeat(4, second{throttled: all, arrived: 1900, dropped: 100}),
			append([]second{{throttled: all, arrived: 1000}}, repeat(4, second{throttled: all, arrived: 1900, dropped: 100})...)...), Throttled, false},
		{"nothing is dropped, and they wait for long", []second{{throttled: all, arrived: 1000, waiting: 400}}, Throttled, true},
		{"nor read for long", []second{{throttled: all, arrived: 1000, queued: 600}}, Throttled, true},
		{"some are not read yet", []second{{throttled: all, arrived: 1000, queued: 300}}, Throttled, false},
		{"a flood without a limit", repeat(10, second{arrived: 1000, dropped: 9000}), Unanswered, false},
		{"a flood on a busy node", repeat(10, second{starved: all, arrived: 1000, dropped: 9000}), Starved, false},
		{"throttled now and then", repeat(10, second{throttled: all / 4, arrived: 1000, dropped: 500}), Unanswered, false},
		{"threads that wait together for longer than there was time", []second{{starved: 5 * all}}, Starved, false},
		{"stopped while throttled", []second{{throttled: all, arrived: 500}, {}}, Unanswered, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var p Pressure
			now, l := time.Now(), Load{Limit: 0.1, Arrived: 12345, Dropped: 678}
			if p.Note(now, l) || p.Overloaded() || p.Cause() != Unanswered || p.Explain() != "" {
				t.Fatal("one sample tells something")
			}
			for _, s := range tc.seconds {
				now = now.Add(time.Second)
				l = Load{l.Limit, l.Throttled + s.throttled, l.Starved + s.starved, l.Arrived + s.arrived, l.Dropped + s.dropped, s.waiting, s.queued}
				if p.Note(now, l) {
					t.Fatal("the limit is said to have changed")
				}
			}
			if p.Cause() != tc.cause || p.Overloaded() != tc.overloaded {
				t.Errorf("%s, overloaded %t (%.2f); want %s, %t", p.Cause(), p.Overloaded(), p.excess, tc.cause, tc.overloaded)
			}
			remedy := map[Cause]string{Throttled: "raise the limit", Starved: "relieve the node"}[tc.cause]
			if got := p.Explain(); (got == "") != (remedy == "") || !strings.Contains(got, remedy) {
				t.Errorf("explained with %q, want %q", got, remedy)
			}
			l.Limit = 0.5
			if !p.Note(now.Add(time.Second), l) {
				t.Error("another limit was not noticed")
			}
		})
	}
}
