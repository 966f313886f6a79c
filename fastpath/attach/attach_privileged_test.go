//go:build privileged

package attach

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/fastpath"
	"github.com/trackless-dns/trackless/fastpath/kernel"
	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/internal/testwait"
	"github.com/trackless-dns/trackless/iptables/owner"
	"github.com/trackless-dns/trackless/iptables/route"
	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

func TestMain(m *testing.M) { testns.Main(m) }

// logged is a log whose warnings are kept.
type logged struct {
	mu    sync.Mutex
	lines []string
}

func (*logged) Debugf(string, ...any) {}
func (*logged) Infof(string, ...any)  {}
func (l *logged) Warningf(f string, a ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, fmt.Sprintf(f, a...))
}
func (l *logged) Errorf(f string, a ...any) { l.Warningf(f, a...) }

func load(t testing.TB) *kernel.Program {
	t.Helper()
	testns.Root(t)
	p, err := kernel.Load(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

// watch runs a watcher in the namespace. The function that it returns ends it.
func watch(t testing.TB, node *testns.Namespace, c Config) (w *Watcher, stop func()) {
	t.Helper()
	if c.Uplinks == nil {
		c.Uplinks = func() ([]string, error) { return nil, nil }
	}
	if c.Leave == nil {
		c.Leave = func(string, int) string { return "" }
	}
	if c.Bridge == nil {
		c.Bridge = func(int, net.HardwareAddr) error { return nil }
	}
	if c.Open == nil {
		c.Open = func() bool { return false }
	}
	if c.Log == nil {
		c.Log = &logged{}
	}
	if c.Lists == nil {
		c.Lists = &route.Lists{}
	}
	w = New(c)
	ctx, cancel := context.WithCancel(context.Background())
	var run sync.WaitGroup
	run.Go(func() {
		node.Do(func() {
			if err := w.Run(ctx); err != nil {
				t.Error(err)
			}
		})
	})
	stop = sync.OnceFunc(func() { cancel(); run.Wait() })
	t.Cleanup(stop)
	return w, stop
}

func ip(t testing.TB, node *testns.Namespace, script ...string) {
	t.Helper()
	node.Do(func() {
		for _, line := range script {
			testns.Run(t, "ip", strings.Fields(line)...)
		}
	})
}

// attached names the devices to which the program is attached.
func (w *Watcher) attached() string {
	var out []string
	for _, d := range w.Devices() {
		if d.Attached != "" {
			out = append(out, d.Name)
		}
	}
	return strings.Join(out, " ")
}

func waitFor(t testing.TB, what string, done func() bool) {
	t.Helper()
	testwait.True(t, 10*time.Second, what, done)
}

// Both ways to attach.
var ways = []struct {
	name    string
	classic bool
}{{"tcx", false}, {"clsact", true}}

func eachWay(t *testing.T, test func(t *testing.T, classic bool)) {
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			t.Parallel()
			test(t, way.classic)
		})
	}
}

func TestDevicesOfPods(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, classic bool) {
		p, node := load(t), testns.New(t)
		ip(t, node,
			"link add cni0 type bridge", "link add br0 type bridge",
			"link add port type veth peer name eth1", "link set port master cni0",
			"link add outside type veth peer name eth2", "link set outside master br0",
			"link add uplink type veth peer name eth3",
			"link add pod type veth peer name eth4",
			"link add left type veth peer name eth5")
		log := &logged{}
		var mu sync.Mutex
		uplinks := []string{"uplink", "br0", "eth1", "eth2", "eth3", "eth4", "eth5", "eth6"}
		w, stop := watch(t, node, Config{
			Program: p.BPF(), Classic: classic, Log: log,
			Uplinks: func() ([]string, error) {
				mu.Lock()
				defer mu.Unlock()
				return slices.Clone(uplinks), nil
			},
			Leave: func(name string, _ int) string {
				if name == "left" {
					return "a policy filters here"
				}
				return ""
			},
		})
		waitFor(t, "attached at the start", func() bool { return w.attached() == "pod port" })
		ip(t, node, "link add pod2 type veth peer name eth6")
		waitFor(t, "attached to a new device", func() bool { return w.attached() == "pod pod2 port" })
		ip(t, node, "link del pod2")
		waitFor(t, "a device is gone", func() bool { return w.attached() == "pod port" && len(w.Devices()) == 3 })
		// A device becomes an uplink.
		mu.Lock()
		uplinks = append(uplinks, "pod")
		mu.Unlock()
		waitFor(t, "an uplink is left", func() bool { return w.attached() == "port" })
		log.mu.Lock()
		if len(log.lines) != 1 || !strings.Contains(log.lines[0], "left") || !strings.Contains(log.lines[0], "a policy filters here") {
			t.Errorf("log: %q", log.lines)
		}
		log.mu.Unlock()
		stop()
		expectClean(t, p, node, "port")
	})
}

// expectClean fails if there is a filter, a qdisc or a tcx program on the device.
func expectClean(t testing.TB, p *kernel.Program, node *testns.Namespace, name string) {
	t.Helper()
	node.Do(func() {
		device, err := net.InterfaceByName(name)
		if err != nil {
			t.Fatal(err)
		}
		if out := testns.Run(t, "tc", "qdisc", "show", "dev", name); strings.Contains(out, "clsact") {
			t.Errorf("%s: %s", name, out)
		}
		if n, err := newTCX(p.BPF()).look(device.Index); err == nil && (n.attached || n.behind != "") {
			t.Errorf("%s: a program is attached: %+v", name, n)
		}
	})
}

// An instance that ends before it has answered removes what a killed one left, and leaves what
// belongs to one that lives.
func TestTheEndOfAnInstance(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name   string
		living bool
	}{{"beside one that was killed", false}, {"beside one that lives", true}} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			other, ours, node := load(t), load(t), testns.New(t)
			ip(t, node, "link add pod type veth peer name eth0")
			node.Do(func() {
				device, err := net.InterfaceByName("pod")
				if err != nil {
					t.Fatal(err)
				}
				if row.living {
					id, err := idOf(other.BPF())
					if err != nil {
						t.Fatal(err)
					}
					l, err := owner.MarkProgram(uint32(id))
					if err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() { _ = l.Close() })
				}
				if _, err := newClsact(other.BPF()).attach(device.Index); err != nil {
					t.Fatal(err)
				}
			})
			w, stop := watch(t, node, Config{Program: ours.BPF(), Classic: true, Open: func() bool { return false }})
			waitFor(t, "devices are known", func() bool { return len(w.Devices()) == 2 })
			stop()
			left := 0
			if row.living {
				left = 1
			}
			node.Do(func() {
				if n := strings.Count(testns.Run(t, "tc", "filter", "show", "dev", "pod", "ingress"), filterName); n != left {
					t.Errorf("%d filters are left, want %d", n, left)
				}
			})
			if !row.living {
				expectClean(t, ours, node, "pod")
			}
		})
	}
}

// Devices come and go, and no descriptor stays.
func TestGoneDevicesLeaveNoDescriptor(t *testing.T) {
	p, node := load(t), testns.New(t)
	w, stop := watch(t, node, Config{Program: p.BPF()})
	defer stop()
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	before := 0
	for i := range 6 {
		ip(t, node, fmt.Sprintf("link add pod%d type veth peer name peer%d", i, i))
		waitFor(t, "attached", func() bool {
			return len(w.Devices()) == 2 && !strings.Contains(w.attached(), "none") && w.attached() != ""
		})
		ip(t, node, fmt.Sprintf("link del pod%d", i))
		waitFor(t, "gone", func() bool { return len(w.Devices()) == 0 })
		if i == 0 {
			before = count()
		}
	}
	// A round of the watcher holds a netlink socket for a moment.
	waitFor(t, "as many descriptors as before five more devices", func() bool { return count() <= before })
}

// A pod's query is answered on its device, also where nobody listens.
func TestAnswersAPod(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, classic bool) {
		p, node, pod := load(t), testns.New(t), testns.New(t)
		ip(t, node, fmt.Sprintf("link add pod type veth peer name eth0 netns /proc/%d/fd/%d", os.Getpid(), pod.FD()),
			"addr add 10.244.0.1/24 dev pod", "link set pod up")
		ip(t, pod, "addr add 10.244.0.7/24 dev eth0", "link set eth0 up", "route add default via 10.244.0.1")
		server := netip.MustParseAddrPort("10.96.0.10:53")
		if err := p.Listen(server, 0, 1<<16-1); err != nil {
			t.Fatal(err)
		}
		p.Open(0, time.Now().Add(time.Hour))
		publish(t, p, "www.example.")
		w, _ := watch(t, node, Config{Program: p.BPF(), Classic: classic})
		waitFor(t, "attached", func() bool { return w.attached() == "pod" })
		pod.Do(func() {
			m := new(dns.Msg).SetQuestion("www.example.", dns.TypeA)
			var reply *dns.Msg
			testwait.Until(t, 10*time.Second, "an answer, when the link is up", func() (err error) {
				reply, _, err = (&dns.Client{Timeout: time.Second}).Exchange(m, server.String())
				return err
			})
			if len(reply.Answer) != 1 {
				t.Errorf("reply %v", reply)
			}
		})
	})
}

func publish(t testing.TB, p *kernel.Program, name string) {
	t.Helper()
	m := new(dns.Msg).SetQuestion(name, dns.TypeA)
	m.Response = true
	rr, err := dns.NewRR(name + " 30 IN A 192.0.2.1")
	if err != nil {
		t.Fatal(err)
	}
	m.Answer = []dns.RR{rr}
	a, err := wire.Pack(m)
	if err != nil {
		t.Fatal(err)
	}
	key, err := wire.AppendKey(nil, name, dns.TypeA, dns.ClassINET, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Table.Publish(&fastpath.Record{Key: key, Answer: a, Stored: time.Now(), TTL: 300, Serve: 300}); err != nil {
		t.Fatal(err)
	}
}

// filter adds a filter of somebody else.
func (c *clsact) foreign(t testing.TB, index int, prio uint32, name string) {
	t.Helper()
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := addQdisc(conn, index); err != nil {
		t.Fatal(err)
	}
	options, err := encode(func(ae *netlink.AttributeEncoder) {
		ae.Uint32(attrFD, uint32(c.program.FD()))
		ae.String(attrName, name)
		ae.Uint32(attrFlags, actDirect)
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := change(conn, unix.RTM_NEWTFILTER, netlink.Create|netlink.Excl, tcmsg(index, 1, ingress, prio<<16|0x0300), "bpf", options); err != nil {
		t.Fatal(err)
	}
}

// Filters of others stay as they are, also their qdisc, and one that runs before ours is
// named. Those of dead instances go when this one answers, and the qdisc with the last.
func TestFiltersOfOthers(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name     string
		priority uint32
		filter   string
		problem  bool
		stays    bool
		policy   string
		force    bool
		left     bool // to CoreDNS
	}{
		{"before ours", 1, "somebody", true, true, "", false, false},
		{"behind ours", 50, "somebody", true, true, "", false, true},
		{"behind ours, with force", 50, "somebody", false, true, "", true, false},
		{"at our priority", priority, "somebody", true, true, "", false, true},
		{"a dead instance's", priority, filterName, false, false, "", false, false},
		{"a dead instance's, and a policy", priority, filterName, true, false, "a policy filters here", false, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			p, node := load(t), testns.New(t)
			ip(t, node, "link add pod type veth peer name eth0")
			index := 0
			list := func() (all []filter) {
				node.Do(func() {
					conn, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
					if err != nil {
						t.Fatal(err)
					}
					defer conn.Close()
					if all, err = filters(conn, index, ingress); err != nil {
						t.Error(err)
					}
				})
				return all
			}
			node.Do(func() {
				device, err := net.InterfaceByName("pod")
				if err != nil {
					t.Fatal(err)
				}
				index = device.Index
				newClsact(p.BPF()).foreign(t, index, row.priority, row.filter)
			})
			var open atomic.Bool
			var answering atomic.Int32 // syncs
			w, stop := watch(t, node, Config{
				Program: p.BPF(), Classic: true, Uplinks: func() ([]string, error) { return []string{"eth0"}, nil },
				Leave: func(string, int) string { return row.policy }, Force: row.force,
				Open: func() bool {
					if open.Load() {
						answering.Add(1)
					}
					return open.Load()
				},
			})
			ours := 0
			if !row.left {
				ours = 1
				waitFor(t, "attached", func() bool { return len(list()) == 2 })
			}
			problem := func() bool { d := w.Devices(); return len(d) == 1 && d[0].Problem != "" }
			if row.problem {
				waitFor(t, "told of", problem)
			} else if problem() {
				t.Errorf("problem: %s", w.Devices()[0].Problem)
			}
			open.Store(true)
			waitFor(t, "a sync while this instance answers", func() bool { return answering.Load() > 1 })
			want := ours
			if row.stays {
				want++
			}
			if got := len(list()); got != want {
				t.Errorf("%d filters, want %d", got, want)
			}
			stop()
			if got := len(list()); got != want-ours {
				t.Errorf("%d filters after the end, want %d", got, want-ours)
			}
			if ours == 0 {
				return
			}
			node.Do(func() {
				out := testns.Run(t, "tc", "qdisc", "show", "dev", "pod")
				if got := strings.Contains(out, "clsact"); got != row.stays {
					t.Errorf("the qdisc of %s is there: %t", row.filter, got)
				}
			})
		})
	}
}

// A program that another one detaches is attached again.
func TestAttachesAgain(t *testing.T) {
	t.Parallel()
	p, node := load(t), testns.New(t)
	ip(t, node, "link add pod type veth peer name eth0")
	log := &logged{}
	w, _ := watch(t, node, Config{Program: p.BPF(), Classic: true, Log: log, Uplinks: func() ([]string, error) { return []string{"eth0"}, nil }})
	waitFor(t, "attached", func() bool { return w.attached() == "pod" })
	node.Do(func() { testns.Run(t, "tc", "qdisc", "del", "dev", "pod", "clsact") })
	waitFor(t, "attached again", func() bool {
		var out string
		node.Do(func() { out = testns.Run(t, "tc", "filter", "show", "dev", "pod", "ingress") })
		return strings.Contains(out, filterName)
	})
}

// Two instances with clsact that both answer do not fight: one filter stays, and when its
// instance ends, the other attaches again.
func TestTwoInstancesWithClsact(t *testing.T) {
	t.Parallel()
	older, newer, node := load(t), load(t), testns.New(t)
	ip(t, node, "link add pod type veth peer name eth0")
	config := func(p *kernel.Program) Config {
		return Config{
			Program: p.BPF(), Classic: true, Open: func() bool { return true },
			Uplinks: func() ([]string, error) { return []string{"eth0"}, nil },
		}
	}
	one, stopOne := watch(t, node, config(older))
	waitFor(t, "the older is attached", func() bool { return one.attached() == "pod" })
	two, stopTwo := watch(t, node, config(newer))
	waitFor(t, "one of them is displaced", func() bool { return (one.attached() == "") != (two.attached() == "") })
	other, stop := one, stopTwo
	if one.attached() != "" {
		other, stop = two, stopOne
	}
	stop()
	waitFor(t, "the other is attached again", func() bool { return other.attached() == "pod" })
}
