package tablewalk

import (
	"testing"
	"time"

	"github.com/trackless-dns/trackless/conntrack/sysctl"
)

func TestAFailedWalkIsPaced(t *testing.T) {
	began, view := time.Unix(1_000_000, 0), new(View)
	var p pace
	p.walked(poll{at: began, view: view}, false)
	p.rest(0)
	p.failed(began.Add(10*time.Second), time.Second)
	for seconds, want := range map[int]decision{20: walkLater, 100: walkLater, 110: walkNow} {
		if got := p.decide(poll{at: began.Add(time.Duration(seconds) * time.Second), scraped: true, view: view}); got != want {
			t.Errorf("after %d s: a walk %s, want %s", seconds, got, want)
		}
	}
}

func TestPace(t *testing.T) {
	began := time.Unix(1_000_000, 0)
	view := new(View)
	after := func(seconds int) time.Time { return began.Add(time.Duration(seconds) * time.Second) }
	for _, tc := range []struct {
		name  string
		found bool          // by the last walk, which was of 100 entries
		cost  time.Duration // of the last walk
		polls []poll
		want  []decision
	}{
		{"nobody asks and nothing changes", false, 0,
			[]poll{{at: after(10), count: 100}, {at: after(20), count: 102}, {at: after(3600), count: 98}},
			[]decision{walkNot, walkNot, walkNot}},
		{"after a scrape", false, 0, []poll{{at: after(10), count: 100, scraped: true}}, []decision{walkNow}},
		{"after a scrape, where walks take long", false, time.Second,
			[]poll{{at: after(90), count: 100, scraped: true}, {at: after(100), count: 100, scraped: true}},
			[]decision{walkLater, walkNow}},
		{"after a scrape, by a poll that is early", false, 0,
			[]poll{{at: after(10).Add(-time.Millisecond), count: 100, scraped: true}}, []decision{walkNow}},
		{"another view", false, 0, []poll{{at: after(10), count: 100, view: new(View)}}, []decision{walkNow}},
		{"entries came", false, 0, []poll{{at: after(10), count: 103}}, []decision{walkNow}},
		{"entries went, and others came", false, 0,
			[]poll{{at: after(10), count: 50}, {at: after(20), count: 53}}, []decision{walkNot, walkNow}},
		{"as many entries came as could be queries", false, 0,
			[]poll{{at: after(10), count: 110, arrived: 19}}, []decision{walkNow}},
		{"fewer entries came than half of the queries", false, 0,
			[]poll{{at: after(10), count: 110, arrived: 20}}, []decision{walkNot}},
		{"queries were tracked at the last walk", true, 0, []poll{{at: after(10), count: 100}}, []decision{walkNow}},
		{"queries were tracked, and now so many come that these are few", true, 0,
			[]poll{{at: after(10), count: 100, arrived: 200}}, []decision{walkNot}},
		{"too few entries to prove anything", true, 0, []poll{{at: after(10), count: 2}}, []decision{walkNot}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var p pace
			first := poll{at: began, count: 100, view: view}
			if got := p.decide(first); got != walkNow {
				t.Fatalf("the first walk: %s", got)
			}
			p.walked(first, tc.found)
			p.rest(tc.cost)
			for i, now := range tc.polls {
				if now.view == nil {
					now.view = view
				}
				if got := p.decide(now); got != tc.want[i] {
					t.Errorf("poll %d: a walk %s, want %s", i, got, tc.want[i])
				}
			}
		})
	}
}

// Where entries come all the time, walks that find no query of ours become rare, and
// frequent again when one finds some.
func TestPacePatience(t *testing.T) {
	var p pace
	at, count := time.Unix(1_000_000, 0), uint64(100)
	walks := func(seconds int, found bool) (n int) {
		for range seconds / 10 {
			now := poll{at: at, count: count}
			if p.decide(now) == walkNow {
				p.walked(now, found)
				p.rest(0)
				n++
			}
			at, count = at.Add(pollInterval), count+10
		}
		return n
	}
	walks(120, false)
	if n := walks(1200, false); n != 30 {
		t.Errorf("%d walks in 20 minutes that find nothing, want 30", n)
	}
	walks(40, true)
	if n := walks(1200, true); n != 120 {
		t.Errorf("%d walks in 20 minutes that find queries, want 120", n)
	}
}

// A table with few entries is read in one dump: each passes all buckets.
func TestFilters(t *testing.T) {
	view := &View{ports: []uint16{53}}
	for _, tc := range []struct {
		name   string
		limits sysctl.Limits
		dumps  int
	}{
		{"few entries", sysctl.Limits{Count: 100, Buckets: 262144}, 1},
		{"many entries", sysctl.Limits{Count: 100_000, Buckets: 262144}, 2},
		{"few buckets", sysctl.Limits{Count: 100, Buckets: 1024}, 2},
	} {
		if got := view.filters(tc.limits); len(got) != tc.dumps {
			t.Errorf("%s: %d dumps, want %d", tc.name, len(got), tc.dumps)
		}
	}
}
