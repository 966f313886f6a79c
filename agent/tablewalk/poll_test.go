//go:build privileged

package tablewalk

import (
	"net/netip"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/iptables"
)

// Queries that are tracked are found at the next poll. The table is not walked again
// while so many others come that they cannot be most of them, until somebody scrapes.
func TestPoll(t *testing.T) {
	t.Parallel()
	testns.New(t).Do(func() {
		testns.Feed(t, "table inet x { chain o { type filter hook output priority 0; ct state new accept; }; }", "nft", "-f", "-")
		listen := netip.MustParseAddr("10.96.0.10")
		arrived := uint64(0)
		w := &Watcher{Arrived: func() uint64 { return arrived }}
		w.Follow(NewView(iptables.Plan{Listen: []iptables.Endpoint{{Addr: listen, Port: 53, Proto: iptables.UDP}}}, nil, nil))
		began := time.Now().Add(-time.Hour)
		poll := func() (mostly uint64, walked time.Time) {
			// As if the last poll had been a minute ago.
			w.pace.last = w.pace.last.Add(-time.Minute)
			w.window.began = time.Now().Add(-time.Minute)
			w.poll(t.Context())
			if last := w.last.Load(); last != nil {
				walked = last.At
			}
			return w.MostlyTracked(listen, began), walked
		}
		if mostly, walked := poll(); mostly != 0 || walked.IsZero() || w.Idle() {
			t.Errorf("an empty table, read at %s: %d queries are tracked; nothing is tracked: %t", walked, mostly, w.Idle())
			return
		}

		table, err := conntrack.Dial(nil)
		if err != nil {
			t.Error(err)
			return
		}
		defer table.Close()
		for port := range uint16(5) {
			e := &conntrack.Entry{Timeout: 30 * time.Second, Original: conntrack.Tuple{
				Src: netip.MustParseAddr("127.0.0.1"), SrcPort: 40000 + port, Dst: listen, DstPort: 53, Proto: conntrack.UDP,
			}}
			e.Reply = e.Original.Mirror()
			if err := table.Create(e); err != nil {
				t.Error(err)
				return
			}
		}
		mostly, first := poll()
		if mostly != 5 {
			t.Errorf("%d queries are tracked, want 5", mostly)
		}
		arrived += 100
		if mostly, at := poll(); mostly != 0 || !at.Equal(first) {
			t.Errorf("5 entries beside 100 queries: %d are said to be most of them; walked again: %t", mostly, !at.Equal(first))
		}
		if n := w.Latest().Entries[Class{Client, iptables.UDP, iptables.IPv4}]; n != 5 {
			t.Errorf("a scrape shows %d entries, want 5", n)
		}
		arrived += 100
		if _, at := poll(); at.Equal(first) {
			t.Error("the table was not walked after a scrape")
		}
	})
}
