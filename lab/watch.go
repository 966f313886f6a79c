package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/conntrack/summary"
)

// watchInterval is the least time between two samples of the table. After a
// sample that took long the pause is nine times as long as it, so that
// watching costs at most a tenth of a CPU.
const watchInterval = 250 * time.Millisecond

// TableFigures are what a Watch saw of a node's connection tracking table.
// Peaks are those of the samples; entries whose time was over are not counted.
type TableFigures struct {
	Samples int

	// EntriesPeak and EntriesEnd count all entries.
	EntriesPeak, EntriesEnd int

	// DNSEntriesPeak and DNSEntriesEnd count the entries with a listen address
	// in either tuple.
	DNSEntriesPeak, DNSEntriesEnd int

	// UpstreamEntriesPeak and UpstreamEntriesEnd count those with an upstream
	// address in either tuple.
	UpstreamEntriesPeak, UpstreamEntriesEnd int

	// Rise are the counters of the namespace, as they grew during the watch.
	Rise conntrack.CPUStats

	// Course are the samples in their order, Table what was in the table at
	// the last one.
	Course []TableSample
	Table  *summary.Summary
}

// A TableSample is one reading of a table; its numbers are those of TableFigures.
type TableSample struct {
	// Seconds since the watch began.
	Seconds         float64 `json:"seconds"`
	Entries         int     `json:"entries"`
	DNSEntries      int     `json:"dns_entries"`
	UpstreamEntries int     `json:"upstream_entries"`
	// Port53Entries are those of DNS on either side of the cache.
	Port53Entries int `json:"port_53_entries"`
	// EntriesAvoided is what trackless said then, nil without it.
	EntriesAvoided *int `json:"entries_avoided,omitempty"`
}

// A Watch samples the table of a node until it is stopped.
type Watch struct {
	conn     *conntrack.Conn
	listen   []netip.Addr
	upstream []netip.Addr
	onSample func(context.Context, *TableSample)

	begin   time.Time
	before  []conntrack.CPUStats
	figures TableFigures

	stop context.CancelFunc
	done chan struct{}
	err  error
}

// WatchOptions say what a Watch counts.
type WatchOptions struct {
	// Listen are the addresses at which pods ask for DNS, Upstream those which
	// the cache asks. Empty means the addresses of the node's two Services,
	// and the link-local listen address.
	Listen, Upstream []netip.Addr

	// OnSample, if not nil, is called with every sample and may complete it.
	OnSample func(context.Context, *TableSample)
}

// Watch samples the node's table from now until Stop.
func (n *Node) Watch(options WatchOptions) (*Watch, error) {
	conn, err := conntrack.Dial(&conntrack.Config{NetNS: n.Namespace.FD()})
	if err != nil {
		return nil, fmt.Errorf("watch the table of %s: %w", n.Namespace.Name(), err)
	}
	stats, err := conn.Stats()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("watch the table of %s: %w", n.Namespace.Name(), err), conn.Close())
	}
	ctx, cancel := context.WithCancel(context.Background())
	w := &Watch{
		conn: conn, listen: options.Listen, upstream: options.Upstream, onSample: options.OnSample,
		begin: time.Now(), before: stats, stop: cancel, done: make(chan struct{}),
	}
	if len(w.listen) == 0 {
		w.listen = append(slices.Clone(n.ClusterDNS()), LinkLocalDNS4)
	}
	if len(w.upstream) == 0 {
		w.upstream = n.UpstreamDNS()
	}
	go w.run(ctx)
	return w, nil
}

// Stop takes a last sample, which gives the figures at the end, and ends the
// watch.
func (w *Watch) Stop() (TableFigures, error) {
	w.stop()
	<-w.done
	collector := summary.New(0)
	w.sample(context.Background(), collector.Add)
	w.figures.Table = collector.Summary(topAddresses)
	stats, err := w.conn.Stats()
	w.figures.Rise = conntrack.Rise(w.before, stats)
	if err := errors.Join(w.err, err, w.conn.Close()); err != nil {
		return w.figures, fmt.Errorf("watch the table: %w", err)
	}
	return w.figures, nil
}

// topAddresses is the length of the lists of Table.
const topAddresses = 10

func (w *Watch) run(ctx context.Context) {
	defer close(w.done)
	for {
		begin := time.Now()
		w.sample(ctx, func(*conntrack.Entry) error { return nil })
		pause := time.NewTimer(max(watchInterval, 9*time.Since(begin)))
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return
		}
	}
}

// sample reads the whole table once and hands each entry on. The first error
// stays.
func (w *Watch) sample(ctx context.Context, each func(*conntrack.Entry) error) {
	if w.err != nil {
		return
	}
	s := TableSample{Seconds: time.Since(w.begin).Seconds()}
	err := w.conn.Dump(conntrack.Filter{}, func(entry *conntrack.Entry) error {
		s.Entries++
		if mentions(entry, w.listen) {
			s.DNSEntries++
		}
		if mentions(entry, w.upstream) {
			s.UpstreamEntries++
		}
		if entry.IsDNS() {
			s.Port53Entries++
		}
		return each(entry)
	})
	switch {
	case errors.Is(err, conntrack.ErrInterrupted):
		return // the table was resized meanwhile; the next sample is as good
	case err != nil:
		w.err = err
		return
	}
	f := &w.figures
	f.Samples++
	f.EntriesEnd, f.EntriesPeak = s.Entries, max(f.EntriesPeak, s.Entries)
	f.DNSEntriesEnd, f.DNSEntriesPeak = s.DNSEntries, max(f.DNSEntriesPeak, s.DNSEntries)
	f.UpstreamEntriesEnd, f.UpstreamEntriesPeak = s.UpstreamEntries, max(f.UpstreamEntriesPeak, s.UpstreamEntries)
	if w.onSample != nil {
		w.onSample(ctx, &s)
	}
	f.Course = append(f.Course, s)
}

// Flush deletes every entry of the node's table.
func (n *Node) Flush() error {
	conn, err := conntrack.Dial(&conntrack.Config{NetNS: n.Namespace.FD()})
	if err != nil {
		return fmt.Errorf("flush the table of %s: %w", n.Namespace.Name(), err)
	}
	err = conn.Dump(conntrack.Filter{}, func(entry *conntrack.Entry) error {
		if err := conn.Delete(entry); !errors.Is(err, conntrack.ErrNotFound) {
			return err
		}
		return nil // it ended by itself meanwhile
	})
	if err := errors.Join(err, conn.Close()); err != nil {
		return fmt.Errorf("flush the table of %s: %w", n.Namespace.Name(), err)
	}
	return nil
}

// mentions reports whether one of addrs is in either tuple of the entry.
func mentions(entry *conntrack.Entry, addrs []netip.Addr) bool {
	for _, tuple := range []*conntrack.Tuple{&entry.Original, &entry.Reply} {
		if slices.Contains(addrs, tuple.Src) || slices.Contains(addrs, tuple.Dst) {
			return true
		}
	}
	return false
}
