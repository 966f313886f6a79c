//go:build privileged

package take

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/conntrack/reread"
	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/iptables/control"
	"github.com/trackless-dns/trackless/node/snapshot"
)

type silent struct{}

func (silent) Begin(string, uint64) reread.Counter { return silent{} }

func (silent) Again(error, int) {}

func (silent) Step() {}

func (silent) Stop() {}

// An entry of DNS that is made while the table is watched is a new flow, and in the
// table at the end.
func TestSnapshot(t *testing.T) {
	t.Parallel()
	testns.New(t).Do(func() {
		c, err := conntrack.Dial(nil)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		made := make(chan error, 1)
		s, err := Snapshot(context.Background(), Options{
			Node: "worker-1", Window: 600 * time.Millisecond, Events: true, Top: 10, Progress: silent{},
			Versions: snapshot.Versions{Trackless: "v1"},
			Rules: func(_ context.Context, s *snapshot.Snapshot) []*control.Client {
				s.Missing = append(s.Missing, "rules: not asked for")
				go func() {
					time.Sleep(300 * time.Millisecond)
					e := &conntrack.Entry{Timeout: time.Minute}
					e.Original = conntrack.Tuple{Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("10.96.0.10"), SrcPort: 4000, DstPort: 53, Proto: conntrack.UDP}
					e.Reply = e.Original.Mirror()
					made <- c.Create(e)
				}()
				return nil
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := <-made; err != nil {
			t.Fatal(err)
		}
		if s.Node.Name != "worker-1" || s.Versions.Trackless != "v1" || s.Table.Entries != 1 || s.Table.Summary == nil || s.Table.Summary.DNS.Entries != 1 {
			t.Errorf("node %+v, versions %+v, table %+v", s.Node, s.Versions, s.Table)
		}
		if len(s.Samples) < 3 || s.Samples[0].Entries != 0 || s.NewFlows == nil || s.NewFlows.DNSPerSecond == 0 || s.Ledger != nil {
			t.Errorf("samples %+v, new flows %+v, ledger %+v", s.Samples, s.NewFlows, s.Ledger)
		}
		if got := strings.Join(s.Missing, "\n"); !strings.Contains(got, "rules: not asked for") {
			t.Errorf("missing %q", got)
		}
	})
}
