package fastpath

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/trackless-dns/trackless/fastpath"
)

func TestRejoinMissesNoClose(t *testing.T) {
	joined, least := 0, 1
	p := &path{join: func(func(netip.Addr, time.Time)) func() {
		joined++
		return func() {
			joined--
			least = min(least, joined)
		}
	}}
	p.leave = p.join(p.door)
	p.rejoin()
	if least != 1 || joined != 1 {
		t.Errorf("the path has joined %d times, and %d at least", joined, least)
	}
}

// A block that may be answered by a fast path has none while there is no program.
func TestInfoTellsOfAMissingProgram(t *testing.T) {
	at := netip.MustParseAddrPort("10.96.0.10:53")
	for _, row := range []struct {
		name string
		options
		policy string
		want   string
		info   float64
	}{
		{"off", options{settings: settings{kernel: off}}, "", "the Corefile has kernel off", 0},
		{"not loaded", options{settings: settings{kernel: on}}, "", "no BPF here", 0},
		{"not eligible", options{settings: settings{kernel: on}}, "log must see every query", "log must see every query", 0},
		{"off, with sockets", options{settings{kernel: off}, 1}, "", "", 1},
		{"not loaded, with sockets", options{settings{kernel: on}, 1}, "", "", 1},
		{"not eligible, with sockets", options{settings{kernel: off}, 1}, "log must see every query", "log must see every query", 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := &running{
				current: &configuration{options: row.options},
				open:    func(settings) (*path, error) { return nil, errors.New("no BPF here") },
			}
			t.Cleanup(r.end)
			r.announce([]*decided{{policy: fastpath.Policy{Reason: row.policy}, listen: []netip.AddrPort{at}}})
			if n := testutil.CollectAndCount(blockInfo); n != 1 {
				t.Fatalf("%d series", n)
			}
			got, err := blockInfo.GetMetricWithLabelValues(serverAt(at), row.want)
			if err != nil {
				t.Fatal(err)
			}
			if n := testutil.CollectAndCount(blockInfo); n != 1 || testutil.ToFloat64(got) != row.info {
				t.Errorf("%d series, info %g of %g: the reason is another than %q, or the block counts as answered", n, testutil.ToFloat64(got), row.info, row.want)
			}
		})
	}
}

func TestIsOpen(t *testing.T) {
	p := &path{publisher: fastpath.NewPublisher(nil, nil, log)}
	one, other := netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("169.254.20.10")
	for _, row := range []struct {
		name  string
		at    netip.Addr
		until time.Time
		want  bool
	}{
		{"a lease that is over", one, time.Now().Add(-time.Second), false},
		{"a lease that is held", other, time.Now().Add(time.Hour), true},
		{"a lease that is given up", other, time.Time{}, false},
	} {
		if p.door(row.at, row.until); p.isOpen() != row.want {
			t.Errorf("%s: open %t", row.name, p.isOpen())
		}
	}
}
