package take

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/conntrack/reread"
	"github.com/trackless-dns/trackless/conntrack/summary"
	"github.com/trackless-dns/trackless/conntrack/sysctl"
	"github.com/trackless-dns/trackless/iptables/control"
	"github.com/trackless-dns/trackless/node/measure"
	"github.com/trackless-dns/trackless/node/snapshot"
)

// tableWatch follows the table of the calling thread's namespace for a window.
// Its methods are called from that thread.
type tableWatch struct {
	window  time.Duration
	sockets []*control.Client
	conn    *conntrack.Conn
	events  *eventCount

	start       time.Time
	elapsed     time.Duration
	before      []conntrack.CPUStats
	after       []conntrack.CPUStats
	beforeFlows uint64
	beforeQuery snapshot.Search
	ledger      *snapshot.Ledger
	search      *snapshot.Search
	nextWalk    time.Time
	samples     []snapshot.Sample
	missing     []string
	missed      map[string]bool
}

// Samples are a 60th of the window apart, at least sampleInterval.
const (
	sampleInterval = 250 * time.Millisecond
	sampleCount    = 60
	// After a walk over the entries the next waits so many times as long as it
	// took: that costs at most a tenth of a CPU.
	walkPause = 9
)

func startWatch(o Options, settings []sysctl.Setting) (*tableWatch, error) {
	w := &tableWatch{window: o.Window, missed: map[string]bool{}}
	var err error
	if w.conn, err = conntrack.Dial(nil); err != nil {
		return nil, err
	}
	if o.Window > 0 && o.Events {
		w.events, err = countEvents(settings)
		w.miss("new entries", err)
	}
	return w, nil
}

// miss notes once what could not be read.
func (w *tableWatch) miss(what string, err error) {
	if err != nil && !w.missed[what] {
		w.missed[what] = true
		w.missing = append(w.missing, what+": "+err.Error())
	}
}

func (w *tableWatch) close() {
	_ = w.conn.Close()
	w.events.stop()
}

// run takes samples until the window is over, one if there is no window.
func (w *tableWatch) run(ctx context.Context, progress reread.Progress) error {
	interval := max(sampleInterval, w.window/sampleCount)
	w.start = time.Now()
	w.events.restart()
	w.before = w.stats()
	w.after = w.before
	p := progress.Begin("samples taken", uint64(w.window/interval)+1)
	defer p.Stop()
	w.sample(ctx)
	if w.ledger != nil {
		w.beforeFlows, w.beforeQuery = w.ledger.FlowsAvoidedTotal, *w.search
	}
	for next := w.start; time.Since(w.start) < w.window; {
		p.Step()
		next = next.Add(interval)
		if end := w.start.Add(w.window); next.After(end) {
			next = end
		}
		if err := measure.Wait(ctx, time.Until(next)); err != nil {
			return err
		}
		w.after = w.stats()
		w.sample(ctx)
	}
	w.elapsed = time.Since(w.start)
	w.events.stop()
	return nil
}

func (w *tableWatch) stats() []conntrack.CPUStats {
	stats, err := summary.ReadStats(w.conn)
	if err != nil {
		return nil // summary.ReadTable says so
	}
	return stats
}

func (w *tableWatch) sample(ctx context.Context) {
	now := time.Now()
	limits, err := sysctl.ReadLimits("")
	if err != nil {
		w.miss("a sample", err)
		return
	}
	s := snapshot.Sample{Seconds: now.Sub(w.start).Seconds(), Entries: limits.Count}
	rise := conntrack.Rise(w.before, w.after)
	s.Lost = rise.Lost()
	if !now.Before(w.nextWalk) {
		s.DNSEntries = w.walk()
		w.nextWalk = time.Now().Add(walkPause * time.Since(now))
	}
	if w.readLedger(ctx); w.ledger != nil {
		s.EntriesAvoided = new(w.ledger.EntriesAvoided)
	}
	w.samples = append(w.samples, s)
}

// walk counts the entries of DNS, nil if it cannot or if the table was rebuilt
// meanwhile.
func (w *tableWatch) walk() *uint64 {
	var n uint64
	err := w.conn.Dump(conntrack.Filter{}, func(e *conntrack.Entry) error {
		if e.IsDNS() {
			n++
		}
		return nil
	})
	if err != nil {
		return nil // the walk at the end reports why
	}
	return &n
}

// ledgerTimeout bounds the questions of one sample to the instances.
const ledgerTimeout = time.Second

// readLedger adds up what the instances save now. An instance that does not
// answer is not asked again: its silence would hold up every sample.
func (w *tableWatch) readLedger(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, ledgerTimeout)
	defer cancel()
	var sum *snapshot.Ledger
	var search *snapshot.Search
	kept := w.sockets[:0]
	for _, c := range w.sockets {
		figures, err := c.Figures(ctx)
		var refused *control.RefusedError
		switch {
		case errors.As(err, &refused): // it has no notrack block: nothing to add
			continue
		case err != nil:
			w.miss("savings", err)
			continue
		}
		kept = append(kept, c)
		if sum == nil {
			sum, search = &snapshot.Ledger{}, &snapshot.Search{}
		}
		addFigures(sum, figures)
		addSearch(search, figures.Search)
	}
	w.sockets, w.ledger, w.search = kept, sum, search
}

// finish takes over what was seen.
func (w *tableWatch) finish(s *snapshot.Snapshot) {
	s.Samples = w.samples
	if w.after != nil {
		var rise *conntrack.CPUStats
		if w.window > 0 && w.before != nil {
			rise = new(conntrack.Rise(w.before, w.after))
		}
		s.Counters = snapshot.Counters(conntrack.Sum(w.after), rise, w.elapsed)
	}
	s.Ledger, s.Search = w.ledger, w.search
	if w.window > 0 {
		s.WindowSeconds = w.elapsed.Seconds()
		s.NewFlows = w.events.rates(w.elapsed)
		if s.Search != nil {
			s.Search.Since(w.beforeQuery, w.elapsed.Seconds())
		}
		// An instance that was replaced meanwhile began to count at 0.
		if s.Ledger != nil && s.Ledger.FlowsAvoidedTotal >= w.beforeFlows {
			s.Ledger.FlowsPerSecond = new(float64(s.Ledger.FlowsAvoidedTotal-w.beforeFlows) / w.elapsed.Seconds())
		}
	}
	s.Missing = append(s.Missing, w.missing...)
}

// addSearch adds the queries of search paths of one instance.
func addSearch(sum *snapshot.Search, f control.SearchFigures) {
	sum.QueriesTotal += f.Queries
	sum.SearchTotal += f.Search
	sum.CutTotal += f.Cut
	sum.OnePassTotal += f.OnePass
}

// addFigures adds what one instance saves.
func addFigures(sum *snapshot.Ledger, f control.Figures) {
	sum.Instances++
	sum.Error += f.EntriesAvoidedError
	for _, c := range f.Classes {
		sum.EntriesAvoided += c.EntriesAvoided
		sum.FlowsAvoidedTotal += c.FlowsAvoided
		i := slices.IndexFunc(sum.Classes, func(have snapshot.Class) bool { return have.Protocol == c.Protocol && have.Family == c.Family })
		if i < 0 {
			sum.Classes = append(sum.Classes, snapshot.Class{Protocol: c.Protocol, Family: c.Family})
			i = len(sum.Classes) - 1
		}
		sum.Classes[i].EntriesAvoided += c.EntriesAvoided
		sum.Classes[i].FlowsAvoidedTotal += c.FlowsAvoided
	}
}
