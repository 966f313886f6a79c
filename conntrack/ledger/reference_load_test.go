//go:build load

package ledger

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// reference has the same rules in the simplest form: a map with an element for each tuple,
// without a bound.
type reference struct {
	timeouts Timeouts
	idle     time.Duration
	entries  map[Flow]*referenceEntry
	flows    uint64
}

func newReference() *reference {
	return &reference{DefaultTimeouts, DefaultTCPIdle, map[Flow]*referenceEntry{}, 0}
}

func (r *reference) packet(f Flow, fromServer bool, now time.Time) {
	e := r.entries[f]
	live := e != nil && e.expires.After(now)
	if f.Proto == unix.IPPROTO_TCP {
		r.tcp(f, e, live, fromServer, now)
		return
	}
	if !live {
		r.flows++
		r.entries[f] = &referenceEntry{began: now, expires: now.Add(r.timeouts.UDP), firstFromServer: fromServer}
		return
	}
	if e.bothSeen && now.After(e.began.Add(2*time.Second)) {
		e.expires = now.Add(r.timeouts.UDPStream)
	} else {
		e.expires = now.Add(r.timeouts.UDP)
	}
	if fromServer != e.firstFromServer {
		e.bothSeen = true
	}
}

// play sends random traffic to both models for a time, calling check after each
// second of it.
func play(tr *traffic, l *Ledger, r *reference, clock *clock, seconds, perSecond int, check func(second int)) {
	type late struct {
		at   time.Time
		flow Flow
	}
	var pending []late
	for second := range seconds {
		for range perSecond {
			clock.advance(time.Duration(tr.rng.Int64N(int64(2*time.Second)/int64(perSecond))) / ms * ms)
			f := tr.flow()
			switch x := tr.rng.IntN(100); {
			case x < 60: // a hit
				l.Answered(f)
				r.packet(f, false, clock.now)
				r.packet(f, true, clock.now)
			case x < 65: // never answered
				l.Query(f)
				r.packet(f, false, clock.now)
			default:
				l.Query(f)
				r.packet(f, false, clock.now)
				delay := time.Duration(tr.rng.Int64N(3000)) * ms
				if x == 99 {
					delay *= 15
				}
				pending = append(pending, late{clock.now.Add(delay), f})
			}
			for n := min(len(pending), 4); n > 0 && len(pending) > 0; n-- {
				i := tr.rng.IntN(len(pending))
				if p := pending[i]; !p.at.After(clock.now) {
					l.Response(p.flow)
					r.packet(p.flow, true, clock.now)
					pending[i] = pending[len(pending)-1]
					pending = pending[:len(pending)-1]
				}
			}
		}
		check(second)
	}
}

func TestExactModeEqualsReference(t *testing.T) {
	for _, tt := range []struct {
		name                       string
		pods, ports, seconds, perS int
		maxBytes                   int
		seed                       uint64
	}{
		{"few clients on few ports", 3, 5, 600, 20, 128 << 10, 1},
		{"ports reused every few seconds", 2, 200, 400, 50, 128 << 10, 2},
		{"ports reused about when entries expire", 4, 1000, 400, 60, 512 << 10, 3},
		{"fresh ports", 200, 60000, 200, 100, 0, 4},
		{"a table that must be swept", 20, 60000, 400, 20, 128 << 10, 5},
	} {
		t.Run(tt.name, func(t *testing.T) {
			clock := newClock()
			l := newLedger(Config{Now: clock.Now, MaxBytes: tt.maxBytes}, testKeys)
			r := newReference()
			tr := &traffic{rand.New(rand.NewPCG(tt.seed, 0)), tt.ports, tt.pods}
			check := func(second int) {
				got, want := l.Entries(), r.count(clock.now)
				if got.Counts != want || got.SamplingRate != 1 || got.Error != 0 {
					t.Fatalf("second %d: %+v, want exactly %+v", second, got, want)
				}
				if got := l.Flows().Total(); got != r.flows {
					t.Fatalf("second %d: %d flows, want %d", second, got, r.flows)
				}
			}
			play(tr, l, r, clock, tt.seconds, tt.perS, check)
			for second := range 140 { // and the tail
				clock.advance(time.Second)
				check(tt.seconds + second)
			}
		})
	}
}

// Above its bound the ledger estimates, without bias. The stated error must be neither too
// small nor too large.
func TestSampledModeWithinBound(t *testing.T) {
	var within, checks int
	var bias float64
	for seed := range uint64(8) {
		clock := newClock()
		l := newLedger(Config{Now: clock.Now, MaxBytes: 128 << 10}, testKeys)
		r := newReference()
		tr := &traffic{rand.New(rand.NewPCG(seed, 1)), 60000, 200}
		lowest := 1.0
		var deviation float64
		play(tr, l, r, clock, 150, 1000, func(second int) {
			if second%10 != 9 {
				return
			}
			got, want := l.Entries(), r.count(clock.now)
			lowest = min(lowest, got.SamplingRate)
			off := float64(got.Total()) - float64(want.Total())
			if got.SamplingRate == 1 {
				if off != 0 {
					t.Fatalf("seed %d, second %d: %+v, want exactly %+v", seed, second, got, want)
				}
				return
			}
			checks++
			if math.Abs(off) <= got.Error {
				within++
			}
			if math.Abs(off) > 2*got.Error {
				t.Errorf("seed %d, second %d: %d, want %d: six standard errors", seed, second, got.Total(), want.Total())
			}
			if relative := got.Error / float64(want.Total()); relative > 0.25 {
				t.Errorf("seed %d, second %d: an error of %.0f %% says nothing", seed, second, relative*100)
			}
			deviation = off / float64(want.Total())
		})
		bias += deviation / 8
		if lowest > 1.0/8 {
			t.Errorf("seed %d: the sampling rate was never below %v: the test tests nothing", seed, lowest)
		}
		if off := math.Abs(float64(l.Flows().Total())-float64(r.flows)) / float64(r.flows); off > 0.1 {
			t.Errorf("seed %d: flows %d, want %d", seed, l.Flows().Total(), r.flows)
		}
	}
	if share := float64(within) / float64(checks); share < 0.98 {
		t.Errorf("%.1f %% of %d estimates within the bound, want 99.7", share*100, checks)
	}
	if math.Abs(bias) > 0.04 {
		t.Errorf("mean deviation %+.3f at the end of eight runs", bias)
	}
}

// After a peak the ledger returns to full numbers, without counting the flows that
// it did not keep during the peak as new, and never twice.
func TestSampleGrowsAgain(t *testing.T) {
	clock := newClock()
	l := newLedger(Config{Now: clock.Now, MaxBytes: 128 << 10}, testKeys)
	r := newReference()
	peak := &traffic{rand.New(rand.NewPCG(1, 2)), 60000, 200}
	play(peak, l, r, clock, 100, 1000, func(int) {})
	if rate := l.Entries().SamplingRate; rate > 1.0/8 {
		t.Fatalf("sampling rate %v at the peak: the test tests nothing", rate)
	}
	// The same sockets are used about once a minute. That is the worst case for a ledger
	// that did not see their earlier packets.
	calm := &traffic{rand.New(rand.NewPCG(2, 2)), 10, 60}
	last := l.Flows()
	sampled := 0
	play(calm, l, r, clock, 1500, 20, func(second int) {
		got, want := l.Entries(), r.count(clock.now)
		allowed := 2 * got.Error
		if got.SamplingRate == 1 {
			allowed = 0.003 * float64(want.Total())
		} else {
			sampled = second
		}
		if off := math.Abs(float64(got.Total()) - float64(want.Total())); off > allowed {
			t.Errorf("second %d: %+v, want %+v", second, got, want)
		}
		flows := l.Flows()
		if flows.UDP4 < last.UDP4 || flows.UDP6 < last.UDP6 || flows.TCP4 < last.TCP4 || flows.TCP6 < last.TCP6 {
			t.Errorf("second %d: flows fell from %+v to %+v", second, last, flows)
		}
		last = flows
	})
	if sampled > 900 {
		t.Errorf("still sampling after %d seconds", sampled)
	}
	if off := math.Abs(float64(last.Total())-float64(r.flows)) / float64(r.flows); off > 0.05 {
		t.Errorf("flows %d, want %d", last.Total(), r.flows)
	}
}

func (r *reference) count(now time.Time) Counts {
	var n [2][2]uint64
	for f, e := range r.entries {
		if !e.expires.After(now) {
			delete(r.entries, f)
			continue
		}
		proto, family := 0, 0
		if f.Proto == unix.IPPROTO_TCP {
			proto = 1
		}
		if f.Client.Addr().Is6() {
			family = 1
		}
		n[proto][family]++
	}
	return Counts{UDP4: n[0][0], UDP6: n[0][1], TCP4: n[1][0], TCP6: n[1][1]}
}

type referenceEntry struct {
	began, last, expires time.Time
	firstFromServer      bool
	bothSeen             bool
	kept                 bool
}

func (r *reference) tcp(f Flow, e *referenceEntry, live, fromServer bool, now time.Time) {
	if fromServer && !live {
		return
	}
	if !live || !fromServer && now.Sub(e.last) > r.idle {
		r.flows++
		e = &referenceEntry{began: now}
		r.entries[f] = e
	}
	if !fromServer && now.After(e.began.Add(2*time.Second)) {
		e.kept = true
	}
	e.last, e.expires = now, now.Add(r.timeouts.TCPTimeWait)
	if e.kept {
		e.expires = e.expires.Add(r.idle)
	}
}
