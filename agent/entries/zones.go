package entries

import (
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/conntrack"
)

// ZoneSearch finds out whether our own queries were tracked, in any zone. Another
// program's rule that sets a zone undoes NOTRACK, and a lookup in the default zone does
// not find the entry.
//
// Each search looks in the zones in which it found entries before. For other zones it must
// walk the whole table. Walks may take 1/zoneShare of a processor: a small table is walked
// each time, one with a million entries every 15 seconds.
type ZoneSearch struct {
	mu    sync.Mutex
	zones []uint16
	next  time.Time // when the whole table may be walked again
}

const (
	zoneShare = 50
	maxZones  = 16 // remembered; the oldest is forgotten
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

// find is [conntrack.Conn.Find] without the walk while none is due.
func (s *ZoneSearch) find(conn *conntrack.Conn, t *conntrack.Tuple) (conntrack.Entry, error) {
	began := time.Now()
	if began.Before(s.next) {
		return conn.FindIn(t, append([]uint16{0}, s.zones...)...)
	}
	e, err := conn.Find(t, s.zones...)
	s.next = began.Add(zoneShare * time.Since(began))
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
