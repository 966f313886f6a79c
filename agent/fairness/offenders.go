package fairness

import (
	"cmp"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/trackless-dns/trackless/internal/logger"
	"github.com/trackless-dns/trackless/internal/loglimit"
)

// Offenders counts the queries that each source has lost since it asked for more than its
// share, and names the source in the log when that begins and when it ends. It remembers
// a bounded number of sources. It is safe for concurrent use.
type Offenders struct {
	Log logger.Logger

	// Name, if set, returns whose address it is, "" if nobody knows.
	Name func(netip.Addr) string

	mu       sync.Mutex
	records  map[netip.Addr]*record
	watching bool
	budget   loglimit.Budget
}

// record is what is known of a source.
type record struct {
	total   uint64    // since the source is remembered
	recent  int       // queries since Recent was called, also those that were too many and not lost
	episode uint64    // queries lost in the present episode
	since   time.Time // when the episode began
	last    time.Time // when the last query was lost
	named   bool      // in the log
}

const (
	// maxRecords bounds the sources that are remembered. Where there are more, the one that
	// lost fewest queries is forgotten.
	maxRecords = 64

	// A source is named when it has lost noteworthy queries in an episode, which ends when
	// it has lost none for quiet. At most maxNamed are named in that time.
	noteworthy = 20
	quiet      = 10 * time.Second
	maxNamed   = 4
)

// Lost counts a query that was dropped or answered SERVFAIL since its source has more than its share.
func (o *Offenders) Lost(source netip.Addr) { o.lose(source, 1) }

// LostConnection counts a connection that was closed since its source has more than its share.
// It makes no flood of queries.
func (o *Offenders) LostConnection(source netip.Addr) { o.lose(source, 0) }

// Presses counts a query that was not lost, though its source has more than its share.
func (o *Offenders) Presses(source netip.Addr) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.record(source, time.Now()).recent++
}

func (o *Offenders) lose(source netip.Addr, queries int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now()
	r := o.record(source, now)
	r.total++
	r.recent += queries
	r.episode++
	r.last = now
	if !r.named && r.episode%noteworthy == 0 { // again if the log had enough names before
		o.name(source, r, now)
	}
}

func (o *Offenders) record(source netip.Addr, now time.Time) *record {
	r := o.records[source]
	if r == nil {
		if o.records == nil {
			o.records = map[netip.Addr]*record{}
		}
		if len(o.records) >= maxRecords {
			o.forgetOne(now)
		}
		r = &record{since: now}
		o.records[source] = r
	}
	if r.isOld(now) && !r.named {
		r.since, r.episode = now, 0
	}
	return r
}

// forgetOne forgets the source that lost fewest queries, rather one that is not named, and of
// these one that has lost none for some time: it must not take the place of one that floods.
func (o *Offenders) forgetOne(now time.Time) {
	var fewest netip.Addr
	var known *record
	for a, r := range o.records {
		if known == nil || r.before(known, now) {
			fewest, known = a, r
		}
	}
	delete(o.records, fewest)
}

func (r *record) before(other *record, now time.Time) bool {
	if r.named != other.named {
		return other.named
	}
	if old := r.isOld(now); old != other.isOld(now) {
		return old
	}
	return r.total < other.total
}

func (r *record) isOld(now time.Time) bool { return now.Sub(r.last) > quiet }

// name begins an episode in the log.
func (o *Offenders) name(source netip.Addr, r *record, now time.Time) {
	if _, ok := o.budget.Take(now, maxNamed, quiet); !ok {
		return
	}
	r.named = true
	if !o.watching {
		o.watching = true
		time.AfterFunc(quiet, o.watch)
	}
	// The log and the names must not hold up queries.
	go func() {
		o.Log.Warningf("%s asks for more names that are not cached than its share of the queries under way: its own queries wait and are answered SERVFAIL or dropped, those of others are not affected; see what it asks with `trackless dns top`", o.label(source))
	}()
}

// watch ends episodes.
func (o *Offenders) watch() {
	o.mu.Lock()
	defer o.mu.Unlock()
	now, open := time.Now(), false
	for a, r := range o.records {
		switch {
		case !r.named:
		case now.Sub(r.last) < quiet:
			open = true
		default:
			r.named = false
			lost, lasted := r.episode, r.last.Sub(r.since).Round(time.Second)
			r.episode = 0
			go func() {
				o.Log.Infof("%s asks for no more than its share again: in %s %d of its queries were answered SERVFAIL or dropped", o.label(a), lasted, lost)
			}()
		}
	}
	if o.watching = open; open {
		time.AfterFunc(time.Second, o.watch)
	}
}

// Floods reports whether there are sources that Recent would return.
func (o *Offenders) Floods(least int, much func(netip.Addr) bool) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	for a, r := range o.records {
		if r.recent >= least && isOne(a) && much(a) {
			return true
		}
	}
	return false
}

// isOne reports whether a source is one client whose address is known.
func isOne(source netip.Addr) bool { return source.IsValid() && source != others }

// Recent returns the sources of which at least so many queries were lost or pressed since it was
// called last, and which sent much, as the function says.
func (o *Offenders) Recent(least int, much func(netip.Addr) bool) (out []netip.Addr) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for a, r := range o.records {
		if r.recent >= least && isOne(a) && much(a) {
			out = append(out, a)
		}
		r.recent = 0
	}
	return out
}

func (o *Offenders) label(source netip.Addr) string {
	text := "a client whose address is not known"
	switch {
	case !source.IsValid():
	case source == others:
		text = "clients at very many addresses"
	default:
		text = "client " + source.String()
		if name := o.nameOf(source); name != "" {
			text += " (" + name + ")"
		}
	}
	return text
}

func (o *Offenders) nameOf(source netip.Addr) string {
	if o.Name == nil {
		return ""
	}
	return o.Name(source)
}

// Offender is a source and how many queries it has lost.
type Offender struct {
	Source netip.Addr
	Name   string
	Lost   uint64
}

// Top returns the sources that lost most, at most n.
func (o *Offenders) Top(n int) []Offender {
	o.mu.Lock()
	all := make([]Offender, 0, len(o.records))
	for a, r := range o.records {
		if r.total > 0 {
			all = append(all, Offender{Source: a, Lost: r.total})
		}
	}
	o.mu.Unlock()
	slices.SortFunc(all, func(a, b Offender) int {
		return cmp.Or(cmp.Compare(b.Lost, a.Lost), a.Source.Compare(b.Source))
	})
	all = all[:min(n, len(all))]
	for i := range all {
		all[i].Name = o.nameOf(all[i].Source)
	}
	return all
}
