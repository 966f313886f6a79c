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

// ZoneSearch finds out whether queries of our own were tracked, in whatever zone.
// A rule of somebody else that sets one undoes NOTRACK, and the entry is found by
// no look-up in the default zone.
//
// The zones in which entries were found before are asked each time. The others
// take a walk through the whole table, which is put off so that walks take at most
// one part in zoneShare of a processor: of a small table there is one each time, of
// a million entries one in a quarter of a minute.
type ZoneSearch struct {
	mu    sync.Mutex
	zones []uint16
	next  time.Time // when the whole table may be walked again
}

const (
	zoneShare = 50
	maxZones  = 16 // that are remembered, the last ones
)

// Tracked returns the zone of the entry that stands for a UDP query, and deletes it:
// it is our own question that made it.
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

// find is [conntrack.Conn.Find], and leaves the walk out when it is not due.
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
