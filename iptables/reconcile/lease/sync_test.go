package lease

import (
	"slices"
	"testing"
	"time"
)

func TestSyncs(t *testing.T) {
	all := []int{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}
	for _, tc := range []struct {
		name    string
		queries uint64 // in each interval
		silent  bool
		deaf    bool // no change is ever announced
		changed int  // a change is announced before that time
		want    []int
	}{
		{name: "an idle node", want: []int{1, 2, 6, 12}},
		{name: "few queries", queries: 2000, want: []int{1, 2, 6, 12}},
		{name: "many queries", queries: 2001, want: all},
		{name: "few queries, and legacy tables", queries: 1, silent: true, want: all},
		{name: "an idle node with legacy tables", silent: true, want: []int{1, 2, 6, 12}},
		{name: "nothing is announced", deaf: true, want: all},
		{name: "after a change", changed: 5, want: []int{1, 2, 5, 6, 10}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			now, queries := time.Unix(1_000_000, 0), uint64(0)
			s := Syncs{Every: 10 * time.Second, Announced: !tc.deaf, Silent: func() bool { return tc.silent }}
			s.Begin(now)
			var got []int
			for _, i := range all {
				if i == tc.changed {
					s.Changed()
				}
				if now = now.Add(s.Every - 1); s.Due(now, queries) {
					t.Fatalf("due before the time was over")
				}
				now, queries = now.Add(1), queries+tc.queries
				if s.Due(now, queries) {
					got = append(got, i)
				}
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("syncs at %d, want %d", got, tc.want)
			}
		})
	}
}
