package lease

import "time"

// Syncs decides whether there is a sync although no change was announced. A sync takes as
// much time as many lease probes. So most are left out on a node with few queries, if the
// kernel announces all changes of rules, and on an idle node, where nobody misses meanwhile
// what it does not announce.
type Syncs struct {
	Every     time.Duration
	Announced bool        // the kernel announces changes,
	Silent    func() bool // although not those of all rules that there are

	last    time.Time // when a sync may have been due
	queries uint64    // that had come then
	since   int       // how many such times there were since a change was announced
}

const (
	// changeSyncs is how many syncs follow a change in any case: what is left behind is
	// taken away at the second.
	changeSyncs = 2

	// calmSyncs is how many times pass until there is a sync in any case.
	calmSyncs = 6
)

// Begin begins to count the time.
func (s *Syncs) Begin(now time.Time) { s.last = now }

// Changed notes that a change was announced.
func (s *Syncs) Changed() { s.since = 0 }

// Due reports whether a sync is due, and is told how many queries have come so far.
func (s *Syncs) Due(now time.Time, queries uint64) bool {
	if now.Sub(s.last) < s.Every {
		return false
	}
	came := queries - s.queries
	s.last, s.queries, s.since = now, queries, s.since+1
	switch {
	case !s.Announced, s.since <= changeSyncs, s.since%calmSyncs == 0:
		return true
	case came == 0:
		return false
	default:
		return !FewQueries(came, s.Every) || s.Silent()
	}
}
