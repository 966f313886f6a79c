package reread

import (
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/conntrack"
)

// attempts are those that a Progress was told of.
type attempts []int

func (*attempts) Begin(string, uint64) Counter { return nil }

func (a *attempts) Again(_ error, attempt int) { *a = append(*a, attempt) }

// smallTable has each entry once.
func smallTable() []*conntrack.Entry {
	return []*conntrack.Entry{
		flow("10.244.0.11:4000", "10.96.0.10:53"), flow("[fd00::11]:4000", "[fd00::a]:53"),
		flow("10.244.0.12:5000", "192.0.2.80:443"), flow("10.244.0.12:5001", "192.0.2.80:443"),
	}
}

func flow(src, dst string) *conntrack.Entry {
	s, d := netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)
	e := &conntrack.Entry{Timeout: 10 * time.Minute}
	e.Original = conntrack.Tuple{Src: s.Addr(), Dst: d.Addr(), SrcPort: s.Port(), DstPort: d.Port(), Proto: conntrack.UDP}
	e.Reply = e.Original.Mirror()
	return e
}

// An interrupted dump is made again; nothing is listed twice, and it is said.
func TestEntries(t *testing.T) {
	entries := smallTable()
	for _, test := range []struct {
		name        string
		interrupted int
		gaveUp      bool
		again       attempts
	}{
		{"undisturbed", 0, false, nil},
		{"once", 1, false, attempts{2}},
		{"always", 99, true, attempts{2, 3}},
	} {
		t.Run(test.name, func(t *testing.T) {
			dumps := 0
			dump := func(_ conntrack.Filter, fn func(*conntrack.Entry) error) error {
				dumps++
				for i, e := range entries {
					if dumps == 1 && i == 1 && test.interrupted > 0 {
						continue // missed
					}
					for range 2 { // and repeated
						if err := fn(e); err != nil {
							return err
						}
					}
				}
				if dumps <= test.interrupted {
					return conntrack.ErrInterrupted
				}
				return nil
			}
			var got []conntrack.Tuple
			var again attempts
			err := Entries(dump, conntrack.Filter{}, func(e *conntrack.Entry) error {
				got = append(got, e.Original)
				return nil
			}, &again)
			if test.gaveUp != errors.Is(err, conntrack.ErrInterrupted) || !test.gaveUp && err != nil {
				t.Errorf("error %v, gave up: want %t", err, test.gaveUp)
			}
			if len(got) != len(entries) {
				t.Errorf("%d entries, want each of %d once", len(got), len(entries))
			}
			if !slices.Equal(again, test.again) {
				t.Errorf("told of the attempts %v, want %v", again, test.again)
			}
		})
	}
}

func TestSetTellsEntriesApart(t *testing.T) {
	s := NewSet()
	e := flow("10.0.0.1:1", "10.0.0.2:53")
	n := 0
	add := func() {
		t.Helper()
		n++
		if s.Has(e) || !s.Add(e) || !s.Has(e) {
			t.Errorf("entry %d taken for one before it", n)
		}
		if s.Add(e) {
			t.Errorf("entry %d taken for new twice", n)
		}
	}
	for range 5000 { // several growths
		e.Original.SrcPort++
		add()
	}
	e.Zone = 1
	add()
	e.Original.Zone = 1
	add()
	e.ID = 1
	add()
	e.Original.Proto = conntrack.TCP
	add()
	e.Original.Src = netip.MustParseAddr("::ffff:10.0.0.1")
	add()
}

func BenchmarkSet(b *testing.B) {
	e := flow("10.0.0.1:1", "10.0.0.2:53")
	s := NewSet()
	b.ReportAllocs()
	for b.Loop() {
		e.ID++
		s.Add(e)
	}
}
