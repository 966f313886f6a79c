//go:build privileged

package measure

import (
	"context"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/conntrack/reread"
	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/node/advice"
)

var listen = netip.MustParseAddr("169.254.20.10")

// oneServer is a node on which a DNS server listens at one address, without a
// Trackless.
var oneServer = Rules{
	Instances: func() ([]iptables.Instance, error) { return nil, nil },
	Listeners: func() ([]netip.Addr, error) { return []netip.Addr{listen}, nil },
}

type silent struct{}

func (silent) Begin(string, uint64) reread.Counter { return silent{} }

func (silent) Again(error, int) {}

func (silent) Step() {}

func (silent) Stop() {}

// Two readings show what was made between them, and which packets of the DNS server
// rules exempt from tracking.
func TestTake(t *testing.T) {
	t.Parallel()
	testns.New(t).Do(func() {
		const rules = "add table ip raw { chain out { type filter hook output priority raw; ip saddr 169.254.20.10 udp sport 53 notrack; }; }"
		if out, err := exec.Command("nft", rules).CombinedOutput(); err != nil {
			t.Fatalf("nft: %v\n%s", err, out)
		}
		c, err := conntrack.Dial(nil)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		made := make(chan error, 1)
		o := Options{Root: "/", Interval: 100 * time.Millisecond, Metrics: "off", Rules: oneServer, Progress: silent{}}
		o.Rules.Listeners = func() ([]netip.Addr, error) { // read after the first reading
			e := &conntrack.Entry{Timeout: time.Minute}
			e.Original = conntrack.Tuple{Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("10.0.0.2"), SrcPort: 1, DstPort: 2, Proto: conntrack.UDP}
			e.Reply = e.Original.Mirror()
			made <- c.Create(e)
			return []netip.Addr{listen}, nil
		}
		m, err := Take(context.Background(), o)
		if err != nil {
			t.Fatal(err)
		}
		if err := <-made; err != nil {
			t.Fatal(err)
		}
		if m.Entries != 1 || m.Growth != 1 || m.Interval < o.Interval || m.Table == nil || m.Limit == 0 {
			t.Errorf("%d entries, %d more within %s, table %v, limit %d", m.Entries, m.Growth, m.Interval, m.Table, m.Limit)
		}
		if want := []advice.Notrack{{Address: listen, Responses: true}}; !slices.Equal(m.Notrack, want) {
			t.Errorf("untracked: %+v, want %+v", m.Notrack, want)
		}
	})
}

// An interrupt ends the wait for the second reading.
func TestTakeInterrupted(t *testing.T) {
	t.Parallel()
	testns.New(t).Do(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_, err := Take(ctx, Options{Root: "/", Interval: time.Hour, Metrics: "off", Rules: oneServer, Progress: silent{}})
		if err == nil || !strings.Contains(err.Error(), "ended before the second reading") {
			t.Errorf("error %v", err)
		}
	})
}
