//go:build privileged

package attach

import (
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/trackless-dns/trackless/fastpath/kernel"
	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/iptables/route"
)

// syncCount counts the syncs of a watcher, each of which asks once whether this instance
// answers.
type syncCount struct{ n atomic.Int32 }

func (c *syncCount) count() bool { c.n.Add(1); return false }

// more waits until a sync has begun and ended.
func (c *syncCount) more(t *testing.T) {
	t.Helper()
	before := c.n.Load()
	waitFor(t, "a sync", func() bool { return c.n.Load() > before+1 })
}

// Of two instances the newer runs first, and the older goes on when the newer ends.
func TestTwoInstances(t *testing.T) {
	t.Parallel()
	older, newer, node := load(t), load(t), testns.New(t)
	ip(t, node, "link add pod type veth peer name eth0")
	uplinks := func() ([]string, error) { return []string{"eth0"}, nil }
	var syncs [2]syncCount
	one, _ := watch(t, node, Config{Program: older.BPF(), Uplinks: uplinks, Open: syncs[0].count})
	waitFor(t, "the older is attached", func() bool { return one.attached() == "pod" })
	two, stop := watch(t, node, Config{Program: newer.BPF(), Uplinks: uplinks, Open: syncs[1].count})
	waitFor(t, "the newer is attached", func() bool { return two.attached() == "pod" })
	order := func() (ids []ebpf.ProgramID) {
		node.Do(func() {
			at, err := link.QueryPrograms(link.QueryOptions{Target: one.Devices()[0].Index, Attach: ebpf.AttachTCXIngress})
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range at.Programs {
				ids = append(ids, p.ID)
			}
		})
		return ids
	}
	idOld, _ := idOf(older.BPF())
	idNew, _ := idOf(newer.BPF())
	if got := order(); !slices.Equal(got, []ebpf.ProgramID{idNew, idOld}) {
		t.Errorf("programs %d, want the newer %d, then %d", got, idNew, idOld)
	}
	for i, w := range []*Watcher{one, two} {
		syncs[i].more(t)
		if d := w.Devices()[0]; d.Problem != "" {
			t.Errorf("beside another instance: %s", d.Problem)
		}
	}
	stop()
	if got := order(); !slices.Equal(got, []ebpf.ProgramID{idOld}) {
		t.Errorf("programs %d after the end of the newer, want %d", got, idOld)
	}
}

// A filter or a tcx program behind ours would not see the queries that the kernel answers.
// One that comes later has the device left within a second, and attached again without it.
func TestProgramsBehindTCX(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name  string
		force bool
		add   func(t *testing.T, foreign *kernel.Program, index int) (remove func())
	}{
		{"a filter of clsact", false, addFilter},
		{"a tcx program", false, addTCX},
		{"a tcx program, with force", true, addTCX},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			p, foreign, node := load(t), load(t), testns.New(t)
			ip(t, node, "link add pod type veth peer name eth0")
			var syncs syncCount
			w, _ := watch(t, node, Config{Program: p.BPF(), Force: row.force, Open: syncs.count, Uplinks: func() ([]string, error) { return []string{"eth0"}, nil }})
			waitFor(t, "attached", func() bool { return w.attached() == "pod" })
			var remove func()
			node.Do(func() { remove = row.add(t, foreign, w.Devices()[0].Index) })
			if row.force {
				syncs.more(t)
				if w.attached() == "" {
					t.Errorf("left: %s", w.Devices()[0].Problem)
				}
				return
			}
			waitFor(t, "left to CoreDNS", func() bool { return w.attached() == "" })
			if why := w.Devices()[0].Problem; !strings.Contains(why, "would not see the queries") {
				t.Errorf("problem: %q", why)
			}
			node.Do(remove)
			waitFor(t, "attached again", func() bool { return w.attached() == "pod" && w.Devices()[0].Problem == "" })
		})
	}
}

func addFilter(t *testing.T, foreign *kernel.Program, index int) (remove func()) {
	newClsact(foreign.BPF()).foreign(t, index, 1, "somebody")
	return func() { testns.Run(t, "tc", "qdisc", "del", "dev", "pod", "clsact") }
}

func addTCX(t *testing.T, foreign *kernel.Program, index int) (remove func()) {
	l, err := link.AttachTCX(link.TCXOptions{Interface: index, Program: foreign.BPF(), Attach: ebpf.AttachTCXIngress, Anchor: link.Tail()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return func() { _ = l.Close() }
}

// Links and routes are listed after the kernel has announced a change of one.
func TestListsAreRenewed(t *testing.T) {
	t.Parallel()
	p, node := load(t), testns.New(t)
	ip(t, node, "link add pod type veth peer name eth0", "link set pod up", "link set eth0 up")
	lists := &route.Lists{}
	w, _ := watch(t, node, Config{Program: p.BPF(), Lists: lists, Uplinks: func() ([]string, error) {
		links, routes, _, err := lists.Read()
		uplinks := []string{"eth0"}
		for _, l := range links {
			if slices.Contains(route.Uplinks(routes), l.Index) {
				uplinks = append(uplinks, l.Attributes.Name)
			}
		}
		return uplinks, err
	}})
	waitFor(t, "attached", func() bool { return w.attached() == "pod" })
	ip(t, node, "route add default dev pod")
	waitFor(t, "an uplink since there is a default route", func() bool { return w.attached() == "" })
	ip(t, node, "route del default dev pod", "rule add from 192.0.2.0/24 table 7")
	waitFor(t, "none without it", func() bool { return w.attached() == "pod" })
	ip(t, node, "nexthop add id 7 dev pod", "route add default nhid 7")
	waitFor(t, "an uplink by a nexthop object", func() bool { return w.attached() == "" })
	ip(t, node, "nexthop replace id 7 dev eth0")
	waitFor(t, "none after the object has another device", func() bool { return w.attached() == "pod" })
}
