package main

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
	"github.com/trackless-dns/trackless/conntrack"
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
	ledger      *snapshot.Ledger
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

func startWatch(o snapshotOptions, settings []sysctl.Setting) (*tableWatch, error) {
	w := &tableWatch{window: o.window, missed: map[string]bool{}}
	var err error
	if w.conn, err = conntrack.Dial(nil); err != nil {
		return nil, cli.CannotLook(err)
	}
	if o.window > 0 && o.events {
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
func (w *tableWatch) run(ctx context.Context, errs io.Writer) error {
	interval := max(sampleInterval, w.window/sampleCount)
	w.start = time.Now()
	w.events.restart()
	w.before = w.stats()
	w.after = w.before
	p := cli.Progress(errs).Begin("samples taken", uint64(w.window/interval)+1)
	defer p.Stop()
	w.sample(ctx)
	if w.ledger != nil {
		w.beforeFlows = w.ledger.FlowsAvoidedTotal
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
		return nil // why is said of the walk at the end
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
			sum = &snapshot.Ledger{}
		}
		addFigures(sum, figures)
	}
	w.sockets, w.ledger = kept, sum
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
	s.Ledger = w.ledger
	if w.window > 0 {
		s.WindowSeconds = w.elapsed.Seconds()
		s.NewFlows = w.events.rates(w.elapsed)
		// An instance that was replaced meanwhile began to count anew.
		if s.Ledger != nil && s.Ledger.FlowsAvoidedTotal >= w.beforeFlows {
			s.Ledger.FlowsPerSecond = new(float64(s.Ledger.FlowsAvoidedTotal-w.beforeFlows) / w.elapsed.Seconds())
		}
	}
	s.Missing = append(s.Missing, w.missing...)
}

// eventCount counts the events of new entries in the background. A nil one
// counts nothing.
type eventCount struct {
	listener *conntrack.Listener
	all, dns atomic.Uint64
	lost     atomic.Bool
	once     sync.Once
	done     chan struct{}
}

func countEvents(settings []sysctl.Setting) (*eventCount, error) {
	if v, ok := sysctl.SettingValue(settings, "nf_conntrack_events"); ok && v == 0 {
		return nil, errors.New("net.netfilter.nf_conntrack_events is 0: the kernel tells nobody of them")
	}
	l, err := conntrack.Listen(nil, conntrack.EventNew)
	if err != nil {
		return nil, err
	}
	e := &eventCount{listener: l, done: make(chan struct{})}
	go func() {
		defer close(e.done)
		for {
			err := l.Receive(func(_ conntrack.EventType, entry *conntrack.Entry) error {
				e.all.Add(1)
				if entry.IsDNS() {
					e.dns.Add(1)
				}
				return nil
			})
			switch {
			case errors.Is(err, conntrack.ErrOverrun):
				e.lost.Store(true)
			case err != nil:
				return // stopped
			}
		}
	}()
	return e, nil
}

func (e *eventCount) restart() {
	if e != nil {
		e.all.Store(0)
		e.dns.Store(0)
		e.lost.Store(false)
	}
}

func (e *eventCount) stop() {
	if e == nil {
		return
	}
	e.once.Do(func() {
		_ = e.listener.Close()
		<-e.done
	})
}

func (e *eventCount) rates(d time.Duration) *snapshot.NewFlows {
	if e == nil || d <= 0 {
		return nil
	}
	return &snapshot.NewFlows{
		PerSecond: float64(e.all.Load()) / d.Seconds(), DNSPerSecond: float64(e.dns.Load()) / d.Seconds(), Lost: e.lost.Load(),
	}
}
