package nft

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/internal/tracetest"
)

// What the sets hold is compared only if both were read in time.
func TestLostOf(t *testing.T) {
	of := func(names ...string) (out []element) {
		for _, name := range names {
			out = append(out, element{key: deviceKey(name)})
		}
		return out
	}
	for _, tc := range []struct {
		name           string
		asked, arrived []element
		took           time.Duration
		want           []string
	}{
		{name: "nobody asks"},
		{name: "all arrive", asked: of("pod0", "pod1"), arrived: of("pod1", "pod0")},
		{name: "arrived, and does not ask now", arrived: of("pod0")},
		{name: "two do not arrive", asked: of("pod2", "pod0", "pod1"), arrived: of("pod1"), want: []string{"pod0", "pod2"}},
		{name: "the node itself", asked: of("lo")},
		{name: "read with a pause that is no matter", asked: of("pod0"), took: 50 * time.Millisecond, want: []string{"pod0"}},
		{name: "read before and after we were stopped", asked: of("pod0"), took: arrivedFor - askedFor},
	} {
		if got := lostOf(tc.asked, tc.arrived, tc.took); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v are lost, want %v", tc.name, got, tc.want)
		}
	}
}

// A device whose queries are dropped behind our rules is found, another one and a
// device that is set aside are not.
func TestLost(t *testing.T) {
	for _, f := range families {
		t.Run(f.String(), func(t *testing.T) {
			n := tracetest.NewNode(t)
			testns.Run(t, "nft", "delete", "table", "inet", "observer") // it drops what it has seen
			b := newKernelTrace(t, n)
			rules := tracetest.Rules(f)
			rules.Plan.Lease, rules.Leases = 0, nil
			if err := errors.Join(b.Install(rules), b.Attach()); err != nil {
				t.Fatal(err)
			}
			from := func(device, client string) iptables.Packet {
				return iptables.Packet{Proto: iptables.UDP, Device: device, Src: tracetest.AddrPort(f, client), Dst: tracetest.AddrPort(f, "vip:53")}
			}
			ask := func() []string {
				n.Inject(t, iptables.Prerouting, from("pod0", "pod:4000"))
				n.Inject(t, iptables.Prerouting, from("uplink2", "pod2:4000"))
				lost, err := b.Lost()
				if err != nil {
					t.Fatal(err)
				}
				return lost
			}
			tracetest.Await(t, "the queries of both arrive", func() bool {
				ask()
				elements, err := n.Conn.GetSetElements(b.rs.sets[arrivedSet.name])
				return err == nil && len(elements) == 2
			})
			if lost := ask(); len(lost) > 0 {
				t.Errorf("%v are lost, and nothing drops", lost)
			}
			testns.Run(t, "nft", "add table inet x; add chain inet x c { type filter hook input priority 0; }; add rule inet x c iifname pod0 ct state untracked drop")
			tracetest.Await(t, "the loss is found", func() bool { return slices.Equal(ask(), []string{"pod0"}) })
			if err := b.SetAside("pod0", time.Minute); err != nil {
				t.Fatal(err)
			}
			tracetest.Await(t, "the device is set aside", func() bool { return len(ask()) == 0 })
		})
	}
}
