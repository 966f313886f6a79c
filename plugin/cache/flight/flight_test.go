package flight

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

const patience = 200 * time.Millisecond

func newTable() *Table { return &Table{Patience: func() time.Duration { return patience }} }

// noAttempt lets each attempt fail at once.
func noAttempt(a *Attempt) { a.Settle(Outcome{Failed: true, Partial: true}) }

// TestOutcomes has a row for each outcome of the only attempt: whether a query that
// began to wait later gets it.
func TestOutcomes(t *testing.T) {
	for _, tc := range []struct {
		name    string
		outcome Outcome
		shared  bool
	}{
		{"a response for everybody", Outcome{Shared: true, Answered: true}, true},
		{"a response for one client", Outcome{Answered: true}, false},
		{"a failure", Outcome{Failed: true, Err: errors.New("no response")}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				table, key := newTable(), wire.Key("key")
				attempt := table.Lead(key, Class{})
				if attempt == nil || table.Lead(key, Class{}) != nil {
					t.Fatal("the first query does not ask, or another one asks beside it")
				}
				a, w := table.Join(key, Class{})
				if a != nil || w == nil {
					t.Fatal("a query does not wait for the one under way")
				}
				time.AfterFunc(patience/2, func() { attempt.Settle(tc.outcome) })
				start := time.Now()
				out, err := w.Wait(t.Context(), noAttempt)
				if err != nil || (out != nil) != tc.shared || time.Since(start) != patience/2 {
					t.Errorf("got %+v, error %v after %v", out, err, time.Since(start))
				}
				if answers, waiting := table.Abandon(); answers != 0 || waiting != 0 {
					t.Errorf("%d answers are being asked for, %d queries wait", answers, waiting)
				}
			})
		})
	}
}

// TestAbandon: the next query asks, and the queries that waited get their outcome.
func TestAbandon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table, key := newTable(), wire.Key("key")
		first := table.Lead(key, Class{})
		_, w := table.Join(key, Class{})
		if answers, waiting := table.Abandon(); answers != 1 || waiting != 1 {
			t.Errorf("%d answers abandoned, %d queries wait; want one of each", answers, waiting)
		}
		second, _ := table.Join(key, Class{})
		if second == nil {
			t.Fatal("the next query does not ask")
		}
		first.Settle(Outcome{Shared: true, TTL: 1})
		second.Settle(Outcome{Shared: true, TTL: 2})
		if out, err := w.Wait(t.Context(), noAttempt); err != nil || out == nil || out.TTL != 1 {
			t.Errorf("got %+v, error %v", out, err)
		}
	})
}

// TestAskAnew: if an attempt takes too long, a query that waits starts another one,
// once.
func TestAskAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table, key := newTable(), wire.Key("key")
		first := table.Lead(key, Class{})
		start, calls := time.Now(), 0
		_, w := table.Join(key, Class{})
		out, err := w.Wait(t.Context(), func(a *Attempt) {
			calls++
			if took := time.Since(start); took != patience {
				t.Errorf("asked anew after %v, want %v", took, patience)
			}
			time.AfterFunc(time.Second, func() { a.Settle(Outcome{Shared: true}) })
		})
		if err != nil || out == nil || calls != 1 {
			t.Errorf("got %+v, error %v, asked anew %d times", out, err, calls)
		}
		first.Settle(Outcome{Failed: true, Partial: true})
	})
}

// TestPrivateAnswersAreBounded: a shard remembers a bounded number of answers that were
// for one client only.
func TestPrivateAnswersAreBounded(t *testing.T) {
	s := &newTable().shards[0]
	for i := range 2 * maxPrivate {
		s.notePrivate(privateKey{fmt.Sprint(i), Class{}})
	}
	if n := len(s.private); n > maxPrivate {
		t.Errorf("%d private answers are remembered, at most %d", n, maxPrivate)
	}
}
