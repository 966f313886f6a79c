package entries

import (
	"errors"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/conntrack/sysctl"
)

// ZoneSearch finds out whether our own queries were tracked, in any zone. Another
// program's rule that sets a zone undoes NOTRACK, and a lookup in the default zone does
// not find the entry.
//
// The zones in which entries were found before are asked each time. The others
// take a walk through the whole table, which is put off so that walks take at most
// one part in zoneShare of a processor, but comes after zoneInterval at the latest: of a
// small table there is one in some minutes. After a change of rules there is one soon, by
// the share changedShare.
type ZoneSearch struct {
	changed atomic.Bool // rules, since the last walk

	mu     sync.Mutex
	zones  []uint16
	walked time.Time     // when the whole table was walked last
	took   time.Duration // what that took
}

const (
	zoneShare    = 50_000
	zoneInterval = 30 * time.Minute
	changedShare = 50
	maxZones     = 16 // that are remembered, the last ones
)

// Tracked returns the zone of the entry of a UDP query of ours, and deletes the entry.
func (s *ZoneSearch) Tracked(client, server netip.AddrPort) (zone uint16, found bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	err = withTable(func(conn *conntrack.Conn) error {
		e, err := s.find(conn, &conntrack.Tuple{
			Src: client.Addr(), SrcPort: client.Port(), Dst: server.Addr(), DstPort: server.Port(), Proto: unix.IPPROTO_UDP,
		})
		if errors.Is(err, conntrack.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		zone, found = e.OriginalZone(), true
		s.remember(zone)
		if err := conn.Delete(&e); err != nil && !errors.Is(err, conntrack.ErrNotFound) {
			return err
		}
		return nil
	})
	return zone, found, err
}

// RulesChanged has the next search walk the table.
func (s *ZoneSearch) RulesChanged() { s.changed.Store(true) }

// find is [conntrack.Conn.Find], and leaves the walk out when it is not due.
func (s *ZoneSearch) find(conn *conntrack.Conn, t *conntrack.Tuple) (conntrack.Entry, error) {
	began := time.Now()
	rest := min(zoneShare*s.took, zoneInterval)
	if s.changed.Load() {
		rest = changedShare * s.took
	}
	if began.Sub(s.walked) < rest {
		return conn.FindIn(t, append([]uint16{0}, s.zones...)...)
	}
	if limits, err := sysctl.ReadLimits(""); err == nil && limits.Count == 0 {
		// A walk through empty buckets costs nearly as much as one through full ones.
		return conntrack.Entry{}, conntrack.ErrNotFound
	}
	s.changed.Store(false)
	e, err := conn.Find(t, s.zones...)
	s.walked, s.took = began, time.Since(began)
	return e, err
}

func (s *ZoneSearch) remember(zone uint16) {
	if zone == 0 || slices.Contains(s.zones, zone) {
		return
	}
	if len(s.zones) == maxZones {
		s.zones = slices.Delete(s.zones, 0, 1)
	}
	s.zones = append(s.zones, zone)
}
