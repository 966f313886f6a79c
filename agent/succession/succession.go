// Package succession passes the state of an instance on to the instance that replaces it on
// the same node: the new one begins with the answers and flows of the old one.
//
// In a rolling update both run side by side for a moment. The new one asks the old one when
// its caches are open, and before its own listeners are: it attaches afterwards. The old one
// goes on serving. When it is about to end, it gives the answers that came since, and at its
// end the flows.
//
// Whatever fails, the new one starts all the same, with what it has.
package succession

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/trackless-dns/trackless/handover"
	"github.com/trackless-dns/trackless/internal/figure"
	"github.com/trackless-dns/trackless/internal/logger"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/nftables"
)

// Succession passes the state of this process on. Offers, Wants and Log must be set before
// the first call. Its methods may be called from several goroutines at once.
type Succession struct {
	Log logger.Logger
	// Offers and Wants return the sections of the state. nil: none.
	Offers func() []handover.Offer
	Wants  func() []handover.Want

	// holders replaces nftables.Holders in tests.
	holders func() ([]nftables.Holder, error)

	mu          sync.Mutex
	begun       bool // a load was followed
	table       string
	server      *handover.Server
	predecessor *handover.Successor
	stats       Stats
	strangers   int            // since reported
	reported    time.Time      // when a stranger was reported last
	waits       sync.WaitGroup // for the last sections of the predecessor
}

// Stats are figures for metrics.
type Stats struct {
	Waited   time.Duration // how long the start waited for the state
	Sections []handover.Outcome
	Given    uint64 // states that were given whole
	Broken   uint64 // states that were not given whole
	Bytes    uint64 // given
}

// Stats returns the figures.
func (s *Succession) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stats
}

// Keyed is a backend with a key: that for nftables.
type Keyed interface {
	Table() string
	Key() []byte
}

// Follow puts a load in force. The first load of the process takes the state of another
// instance, for at most the limit. Then this process gives its own. With a limit of 0 it does
// neither.
func (s *Succession) Follow(b iptables.Backend, limit time.Duration) {
	own, keyed := b.(Keyed)
	s.mu.Lock()
	first := !s.begun
	s.begun = true
	s.mu.Unlock()
	if first && limit > 0 {
		table := ""
		if keyed {
			table = own.Table()
		}
		s.take(table, limit)
	}
	if limit == 0 || !keyed {
		s.stopGiving(0)
		return
	}
	s.give(own)
}

// give listens for successors.
func (s *Succession) give(own Keyed) {
	s.mu.Lock()
	same := s.server != nil && s.table == own.Table()
	s.mu.Unlock()
	if same {
		return
	}
	s.stopGiving(0)
	server, err := handover.Listen(handover.NameOf(own.Table()), own.Key(), s.Offers, s.gave)
	if err != nil {
		s.Log.Warningf("the instance that replaces this one will start with an empty cache: %v", err)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.server, s.table = server, own.Table()
}

func (s *Succession) closed(err error) {
	if err != nil {
		s.Log.Debugf("end the handover to other instances: %v", err)
	}
}

// strangerEvery is the time between two lines about strangers: any process that shares the
// network of the node can connect, as often as it likes.
const strangerEvery = time.Minute

// strange reports connections of processes that do not know the key.
func (s *Succession) strange(err error) {
	s.mu.Lock()
	s.strangers++
	n, now := s.strangers, time.Now()
	if !s.reported.IsZero() && now.Sub(s.reported) < strangerEvery {
		s.mu.Unlock()
		return
	}
	s.strangers, s.reported = 0, now
	s.mu.Unlock()
	s.Log.Warningf("%d connections to the handover socket got nothing: their processes did not prove to be instances of this version, the last one because: %v; this instance goes on as before; an instance that replaces it and is of another version starts cold", n, err)
}

// gave reports a handover.
func (s *Succession) gave(g handover.Given) {
	if !g.Known {
		s.strange(g.Err)
		return
	}
	s.mu.Lock()
	s.stats.Bytes += uint64(g.Bytes)
	if g.Err == nil {
		s.stats.Given++
	} else {
		s.stats.Broken++
	}
	s.mu.Unlock()
	if g.Err != nil {
		s.Log.Warningf("another instance asked for the state of this one and did not get all of it, after %s in %s: %v; this one goes on as before", figure.Bytes(uint64(g.Bytes)), round(g.Took), g.Err)
		return
	}
	s.Log.Infof("gave the instance that replaces this one %d sections, %s, in %s; this one goes on until it is stopped", g.Sections, figure.Bytes(uint64(g.Bytes)), round(g.Took))
}

// lastTime limits how long the end of this process waits for the last sections.
const lastTime = 250 * time.Millisecond

// Again gives the successor what came since it asked, before it gets the queries.
func (s *Succession) Again() {
	s.mu.Lock()
	server := s.server
	s.mu.Unlock()
	if server != nil {
		server.Again(lastTime)
	}
}

// End gives the last sections to the successor. It runs when no more queries come.
func (s *Succession) End() {
	s.stopGiving(lastTime)
	s.mu.Lock()
	if s.predecessor != nil {
		s.predecessor.Close()
	}
	s.mu.Unlock()
	s.waits.Wait()
}

func (s *Succession) stopGiving(limit time.Duration) {
	s.mu.Lock()
	server := s.server
	s.server, s.table = nil, ""
	s.mu.Unlock()
	if server != nil {
		s.closed(server.Close(limit))
	}
}

// take asks the other instances, the oldest first, until one has given something.
func (s *Succession) take(own string, limit time.Duration) {
	begun := time.Now()
	read := s.holders
	if read == nil {
		read = func() ([]nftables.Holder, error) { return nftables.Holders(nftables.Config{}) }
	}
	holders, err := read()
	if err != nil {
		s.Log.Debugf("cold start: other instances cannot be found: %v", err)
		return
	}
	holders = slices.DeleteFunc(holders, func(h nftables.Holder) bool { return h.Table == own })
	slices.SortFunc(holders, func(a, b nftables.Holder) int { return cmp.Compare(a.Mark.Start, b.Mark.Start) })
	for _, h := range holders {
		left := limit - time.Since(begun)
		if left <= 0 {
			s.Log.Warningf("cold start: the time of %s for a warm start was over", limit)
			break
		}
		if s.takeFrom(h, left) {
			break
		}
	}
	s.mu.Lock()
	s.stats.Waited = time.Since(begun)
	s.mu.Unlock()
}

// takeFrom asks one instance. It reports whether that has given anything.
func (s *Succession) takeFrom(h nftables.Holder, limit time.Duration) bool {
	if len(h.Key) == 0 {
		s.Log.Infof("the instance with table %s hands nothing over: it is of another version, or the kernel is older than Linux 5.10", h.Table)
		return false
	}
	begun := time.Now()
	outcomes, waiting, err := handover.Take(handover.Peer{Table: h.Table, Key: h.Key}, s.Wants(), limit)
	if errors.Is(err, handover.ErrAbsent) {
		s.Log.Infof("the instance with table %s hands nothing over: it is about to end, has warm off, or is of another version", h.Table)
		return false
	}
	if err != nil {
		s.Log.Warningf("nothing was taken from the instance with table %s: %v", h.Table, err)
		return false
	}
	s.mu.Lock()
	s.stats.Sections = outcomes
	s.mu.Unlock()
	taken := slices.ContainsFunc(outcomes, func(o handover.Outcome) bool { return o.Bytes > 0 })
	if !taken {
		if waiting != nil {
			waiting.Close()
		}
		s.Log.Warningf("cold start: the instance with table %s gave nothing: %s", h.Table, leftOut(outcomes))
		return false
	}
	if waiting != nil {
		s.mu.Lock()
		s.predecessor = waiting
		s.mu.Unlock()
		s.waits.Go(func() { s.last(h.Table, waiting) })
	}
	line := fmt.Sprintf("warm start: took %s from the instance with table %s in %s", summary(outcomes), h.Table, round(time.Since(begun)))
	if left := leftOut(outcomes); left != "" {
		s.Log.Warningf("%s; left out: %s", line, left)
	} else {
		s.Log.Infof("%s", line)
	}
	return true
}

// last takes what the predecessor gives when it ends.
func (s *Succession) last(table string, waiting *handover.Successor) {
	outcomes := slices.DeleteFunc(waiting.Last(), func(o handover.Outcome) bool { return o.Bytes == 0 })
	if len(outcomes) > 0 {
		s.Log.Infof("the instance with table %s has ended, and gave %s", table, summary(outcomes))
	}
}

// summary is the sum of the sections by name.
func summary(outcomes []handover.Outcome) string {
	var names, parts []string
	for _, o := range outcomes {
		if !slices.Contains(names, o.Name) {
			names = append(names, o.Name)
		}
	}
	for _, name := range names {
		items, bytes := 0, 0
		for _, o := range outcomes {
			if o.Name == name {
				items, bytes = items+o.Items, bytes+o.Bytes
			}
		}
		if items > 0 {
			parts = append(parts, fmt.Sprintf("%d %s (%s)", items, name, figure.Bytes(uint64(bytes))))
		}
	}
	switch n := len(parts) - 1; n {
	case -1:
		return "nothing"
	case 0:
		return parts[0]
	default:
		return strings.Join(parts[:n], ", ") + " and " + parts[n]
	}
}

// leftOut says which sections were not taken whole, and why.
func leftOut(outcomes []handover.Outcome) string {
	var parts []string
	for _, o := range outcomes {
		if o.Result == handover.Taken {
			continue
		}
		if part := fmt.Sprintf("%s (%s): %v", o.Name, o.Result, o.Reason); !slices.Contains(parts, part) {
			parts = append(parts, part)
		}
	}
	return strings.Join(parts, "; ")
}

func round(d time.Duration) time.Duration { return d.Round(time.Millisecond) }
