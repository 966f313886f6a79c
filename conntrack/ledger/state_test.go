package ledger

import (
	"errors"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// give writes the flows of one ledger into another one. The successor has noted the time
// before it asked, so long before the predecessor did.
func give(t *testing.T, from, to *Ledger, before time.Duration) error {
	t.Helper()
	asked := time.Now()
	var err error
	if sendErr := from.WriteState(asked, func(piece []byte) error {
		if err == nil {
			_, err = to.ReadState(asked.Add(-before), slices.Clone(piece))
		}
		return nil
	}); sendErr != nil {
		t.Error(sendErr)
	}
	return err
}

// TestStateOfAllKinds: a ledger that was given the flows goes on as the one that gave them.
func TestStateOfAllKinds(t *testing.T) {
	tcp := func(i uint32) Flow { f := benchFlow(i); f.Proto = unix.IPPROTO_TCP; return f }
	synctest.Test(t, func(t *testing.T) {
		all, first := New(Config{}), New(Config{})
		time.Sleep(time.Hour)
		next := New(Config{}) // a later start
		note := func(ledgers []*Ledger, do func(l *Ledger)) {
			for _, l := range ledgers {
				do(l)
			}
		}
		begin, after := []*Ledger{all, first}, []*Ledger{all, next}
		note(begin, func(l *Ledger) {
			l.Answered(benchFlow(1), benchFlow(2))
			l.Query(benchFlow(3))
			l.Query(tcp(4)).Response()
			l.Query(tcp(5)).Response()
			l.Reset(tcp(5))
		})
		time.Sleep(3 * time.Second)
		note(begin, func(l *Ledger) { l.Answered(benchFlow(2), tcp(4)) })
		if err := give(t, first, next, 0); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		note(after, func(l *Ledger) {
			l.Answered(benchFlow(2)) // a stream by now
			l.Answered(benchFlow(6))
			l.Close(tcp(4))
		})
		for second := range 200 {
			if got, want := next.Entries().Counts, all.Entries().Counts; got != want {
				t.Fatalf("after %d seconds: %+v, want %+v", second, got, want)
			}
			time.Sleep(time.Second)
		}
		if got := next.Flows().Total(); got != 1 {
			t.Errorf("%d flows began since, want 1", got)
		}
	})
}

// TestStateOfTwo: both note packets for a while, of the same flows too, and the first gives
// its flows twice.
func TestStateOfTwo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(1, 1))
		all, first, next := New(Config{}), New(Config{}), New(Config{})
		ask := func(rounds int, by func(round int) *Ledger) {
			for i := range rounds {
				f := benchFlow(r.Uint32N(20_000))
				all.Answered(f)
				by(i).Answered(f)
				time.Sleep(time.Millisecond)
			}
		}
		ask(20_000, func(int) *Ledger { return first })
		if err := give(t, first, next, 0); err != nil {
			t.Fatal(err)
		}
		ask(3_000, func(i int) *Ledger { return []*Ledger{first, next}[i%2] })
		if err := give(t, first, next, 0); err != nil {
			t.Fatal(err)
		}
		for range 15 {
			got, want := float64(next.Entries().Total()), float64(all.Entries().Total())
			if got < want*0.99 || got > want*1.01 {
				t.Errorf("%v entries, want %v", got, want)
			}
			ask(3_000, func(int) *Ledger { return next })
		}
	})
}

// TestStateWhileSampling: a full ledger gives its sample, which counts for as many flows.
func TestStateWhileSampling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		small := Config{MaxBytes: 256 << 10}
		first, next := New(small), New(small)
		for i := range uint32(100_000) {
			first.Answered(benchFlow(i))
		}
		if err := give(t, first, next, 0); err != nil {
			t.Fatal(err)
		}
		got, want := next.Entries(), first.Entries()
		if want.SamplingRate == 1 || got != want {
			t.Errorf("%+v, want %+v", got, want)
		}
	})
}

// TestStateAges: the time that the question takes makes flows older, not younger.
func TestStateAges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, next := New(Config{}), New(Config{})
		time.Sleep(time.Hour)
		first.Answered(benchFlow(1))
		if err := give(t, first, next, 2*time.Second); err != nil {
			t.Fatal(err)
		}
		time.Sleep(28*time.Second - ms)
		if got := next.Entries().Total(); got != 1 {
			t.Errorf("%d entries before the timeout", got)
		}
		time.Sleep(ms)
		if got := next.Entries().Total(); got != 0 {
			t.Errorf("%d entries after the timeout", got)
		}
	})
}

func TestStateOfAnotherLedger(t *testing.T) {
	first, next := New(Config{}), New(Config{})
	first.Answered(benchFlow(1))
	next.Answered(benchFlow(2))
	if err := give(t, first, next, 0); !errors.Is(err, errKeys) {
		t.Errorf("a ledger with flows of its own: %v", err)
	}
	if got := next.Entries().Total(); got != 1 {
		t.Errorf("%d entries, want its own", got)
	}
}

// FuzzReadState: bytes that are no flows are refused, or do nothing bad.
func FuzzReadState(f *testing.F) {
	first := New(Config{MaxBytes: 128 << 10})
	first.Answered(benchFlow(1), benchFlow(2))
	_ = first.WriteState(time.Now(), func(piece []byte) error { f.Add(slices.Clone(piece)); return nil })
	f.Add([]byte{pieceShard, 63, 18})
	f.Fuzz(func(t *testing.T, piece []byte) {
		l := New(Config{MaxBytes: 128 << 10})
		_, _ = l.ReadState(time.Now(), piece)
		l.Answered(benchFlow(1))
		l.Entries()
		for i := range l.shards {
			if s := &l.shards[i]; s.used > s.limit() {
				t.Fatalf("shard %d has %d flows", i, s.used)
			}
		}
	})
}
