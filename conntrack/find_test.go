//go:build privileged

package conntrack_test

import (
	"errors"
	"testing"

	"github.com/trackless-dns/trackless/conntrack"
)

func TestFindInAllZones(t *testing.T) {
	t.Parallel()
	c, _ := dial(t)
	plain := tuple(conntrack.UDP, "10.0.0.1:4000", "10.96.0.10:53")
	zoned := tuple(conntrack.UDP, "10.0.0.1:4001", "10.96.0.10:53")
	zoned6 := tuple(conntrack.UDP, "[fd00::1]:4001", "[fd00:96::10]:53")
	queriesOnly := tuple(conntrack.UDP, "10.0.0.1:4002", "10.96.0.10:53")
	inZone := func(e *conntrack.Entry) { e.Zone = 7 }
	create(t, c,
		entry(plain),
		entry(zoned, inZone),
		entry(zoned6, inZone),
		entry(queriesOnly, func(e *conntrack.Entry) { e.Original.Zone = 9 }))
	for _, tc := range []struct {
		name            string
		tuple           conntrack.Tuple
		original, reply uint16
	}{
		{"default zone", plain, 0, 0},
		{"zone of both directions", zoned, 7, 7},
		{"IPv6", zoned6, 7, 7},
		{"zone of the queries alone", queriesOnly, 9, 0},
	} {
		e, err := c.Find(&tc.tuple)
		if err != nil || e.Original.Source() != tc.tuple.Source() || e.OriginalZone() != tc.original || e.ReplyZone() != tc.reply {
			t.Errorf("%s: found %+v, %v; want zones %d and %d", tc.name, e, err, tc.original, tc.reply)
			continue
		}
		if _, err := c.FindIn(&tc.tuple, 1, tc.original); err != nil {
			t.Errorf("%s: not found where it is: %v", tc.name, err)
		}
		if _, err := c.FindIn(&tc.tuple, tc.original+1); !errors.Is(err, conntrack.ErrNotFound) {
			t.Errorf("%s: in another zone: %v, want ErrNotFound", tc.name, err)
		}
		if err := c.Delete(&e); err != nil {
			t.Errorf("%s: delete: %v", tc.name, err)
		}
		if _, err := c.Find(&tc.tuple); !errors.Is(err, conntrack.ErrNotFound) {
			t.Errorf("%s: once deleted: %v, want ErrNotFound", tc.name, err)
		}
	}
}
