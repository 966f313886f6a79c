package hostaddr

import (
	"errors"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/internal/testns"
)

var (
	linkLocal = netip.MustParseAddr("169.254.20.10")
	clusterIP = netip.MustParseAddr("10.96.0.10")
	clusterV6 = netip.MustParseAddr("fd00:10:96::a")
	all       = []netip.Addr{linkLocal, clusterIP, clusterV6}
)

// newHost returns a Host whose link kind the running kernel has: a bridge
// without ports behaves as a dummy does.
func newHost(t *testing.T, kind string) *Host {
	t.Helper()
	ns := testns.Enter(t)
	return New(Config{NetNS: int(ns), kind: kind}, DefaultLink)
}

func hasDummy(t *testing.T) bool {
	t.Helper()
	err := exec.Command("ip", "link", "add", "probe0", "type", "dummy").Run()
	if err == nil {
		testns.Run(t, "ip", "link", "del", "probe0")
	}
	return err == nil
}

func snapshot(t *testing.T) string {
	t.Helper()
	return testns.Run(t, "ip", "-o", "address") + testns.Run(t, "ip", "-o", "link")
}

func TestAddressesComeAndGo(t *testing.T) {
	for _, tc := range []struct {
		name, kind, device string
	}{
		{"a link of its own", "bridge", DefaultLink},
		{"a kernel without that kind of link", "nosuchkind", "lo"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := newHost(t, tc.kind)
			before := snapshot(t)
			if err := h.Ensure(all); err != nil {
				t.Fatal(err)
			}
			if h.Device() != tc.device {
				t.Errorf("the addresses went on %s, want %s", h.Device(), tc.device)
			}
			got := testns.Run(t, "ip", "-o", "address", "show", "dev", tc.device)
			for _, want := range []string{
				"inet 169.254.20.10/32 scope host",
				"inet 10.96.0.10/32 scope host",
				"inet6 fd00:10:96::a/128 scope global nodad deprecated",
				"preferred_lft 0sec",
			} {
				if !strings.Contains(got, want) {
					t.Errorf("%q is missing in\n%s", want, got)
				}
			}
			if err := h.Ensure(all); err != nil {
				t.Errorf("asking for the same again: %v", err)
			}
			if err := h.Release([]netip.Addr{clusterIP}); err != nil {
				t.Error(err)
			}
			if got := testns.Run(t, "ip", "-o", "address"); strings.Contains(got, "169.254.20.10") || !strings.Contains(got, "10.96.0.10") {
				t.Errorf("after Release of all but %s:\n%s", clusterIP, got)
			}
			if err := h.Remove(); err != nil {
				t.Error(err)
			}
			if diff := cmp.Diff(before, snapshot(t)); diff != "" {
				t.Errorf("left behind:\n%s", diff)
			}
		})
	}
}

func TestDefaultKindIsDummy(t *testing.T) {
	h := newHost(t, "")
	dummy := hasDummy(t)
	if err := h.Ensure(all); err != nil {
		t.Fatal(err)
	}
	want := "lo"
	if dummy {
		want = DefaultLink
	}
	if h.Device() != want {
		t.Errorf("device %s, want %s (kernel has dummy: %v)", h.Device(), want, dummy)
	}
}

// A listen address must not become the source of other traffic: what leaves
// towards a pod over an address-less veth takes its source from elsewhere.
func TestSourceAddressesStay(t *testing.T) {
	for _, kind := range []string{"bridge", "nosuchkind"} {
		t.Run(kind, func(t *testing.T) {
			h := newHost(t, kind)
			testns.Run(t, "ip", "link", "add", "uplink", "type", "bridge")
			testns.Run(t, "ip", "link", "set", "uplink", "up")
			testns.Run(t, "ip", "address", "add", "192.0.2.7/24", "dev", "uplink")
			testns.Run(t, "ip", "address", "add", "2001:db8::7/64", "dev", "uplink", "nodad")
			testns.Run(t, "ip", "link", "add", "veth0", "type", "veth", "peer", "name", "pod0")
			testns.Run(t, "ip", "link", "set", "veth0", "up")
			testns.Run(t, "ip", "link", "set", "pod0", "up")
			testns.Run(t, "ip", "route", "add", "10.244.0.11", "dev", "veth0")
			testns.Run(t, "ip", "route", "add", "fd00:244::11", "dev", "veth0")
			testns.Run(t, "ip", "route", "add", "default", "via", "192.0.2.1")
			routes := func() string {
				return testns.Run(t, "ip", "route", "get", "10.244.0.11") +
					testns.Run(t, "ip", "route", "get", "fd00:244::11") +
					testns.Run(t, "ip", "route", "get", "198.51.100.1")
			}
			before := routes()
			if err := h.Ensure(all); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(before, routes()); diff != "" {
				t.Errorf("the source addresses changed:\n%s", diff)
			}
		})
	}
}

func TestAddressHeldByAnother(t *testing.T) {
	for _, tc := range []struct {
		name, device, addr string
	}{
		{"by another link", "other", "10.96.0.10/24"},
		{"by lo, put there by someone else", "lo", "10.96.0.10/32"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := newHost(t, "bridge")
			testns.Run(t, "ip", "link", "add", "other", "type", "bridge")
			testns.Run(t, "ip", "address", "add", tc.addr, "dev", tc.device)
			before := snapshot(t)
			err := h.Ensure(all)
			if err == nil {
				t.Fatal("taken over an address of someone else")
			}
			for _, want := range []string{"10.96.0.10", "interface " + tc.device, "ip address del " + tc.addr, "interface none"} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the error does not say %q: %v", want, err)
				}
			}
			if diff := cmp.Diff(before, snapshot(t)); diff != "" {
				t.Errorf("a refused start changed the host:\n%s", diff)
			}
		})
	}
}

func TestLeftoversAreTakenOver(t *testing.T) {
	for _, kind := range []string{"bridge", "nosuchkind"} {
		t.Run(kind, func(t *testing.T) {
			dead := newHost(t, kind)
			before := snapshot(t)
			if err := dead.Ensure(all); err != nil {
				t.Fatal(err)
			}
			next := New(dead.cfg, DefaultLink)
			if err := next.Ensure(all); err != nil {
				t.Fatalf("an earlier instance's addresses were not taken over: %v", err)
			}
			if err := next.Remove(); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(before, snapshot(t)); diff != "" {
				t.Errorf("left behind:\n%s", diff)
			}
		})
	}
}

func TestAForeignLinkOfTheNameIsKept(t *testing.T) {
	h := newHost(t, "nosuchkind")
	testns.Run(t, "ip", "link", "add", DefaultLink, "type", "bridge")
	testns.Run(t, "ip", "link", "set", DefaultLink, "up")
	before := testns.Run(t, "ip", "-o", "address", "show", "dev", "lo") + testns.Run(t, "ip", "-br", "link")
	if err := h.Ensure(all); err != nil {
		t.Fatal(err)
	}
	if h.Device() != DefaultLink {
		t.Errorf("device %s, want the link that has the name", h.Device())
	}
	if err := h.Remove(); err != nil {
		t.Fatal(err)
	}
	after := testns.Run(t, "ip", "-o", "address", "show", "dev", "lo") + testns.Run(t, "ip", "-br", "link")
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("a link that is not ours was changed:\n%s", diff)
	}
}

func TestInterfaceNone(t *testing.T) {
	ns := testns.Enter(t)
	h := New(Config{NetNS: int(ns)}, "")
	err := h.Ensure([]netip.Addr{clusterIP})
	if err == nil || !strings.Contains(err.Error(), "10.96.0.10 is on no interface") {
		t.Errorf("an address that nobody holds: %v", err)
	}
	testns.Run(t, "ip", "address", "add", "10.96.0.10/32", "dev", "lo")
	before := snapshot(t)
	if err := errors.Join(h.Ensure([]netip.Addr{clusterIP, netip.MustParseAddr("127.0.0.1")}), h.Remove()); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(before, snapshot(t)); diff != "" {
		t.Errorf("an address of someone else was changed:\n%s", diff)
	}
}

func TestAFailureInTheMiddleUndoesAll(t *testing.T) {
	h := newHost(t, "bridge")
	before := snapshot(t)
	// The kernel refuses a multicast address on a link; the two before it are
	// added by then.
	err := h.Ensure(append(all[:2:2], netip.MustParseAddr("ff02::1")))
	if err == nil {
		t.Fatal("a multicast address was added")
	}
	if errors.Is(err, unix.EPERM) {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, snapshot(t)); diff != "" {
		t.Errorf("left behind by a failed start:\n%s", diff)
	}
}

// withoutNetAdmin runs f on this thread without CAP_NET_ADMIN.
func withoutNetAdmin(t *testing.T, f func()) {
	t.Helper()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var before [2]unix.CapUserData
	if err := unix.Capget(&header, &before[0]); err != nil {
		t.Fatal(err)
	}
	without := before
	without[0].Effective &^= 1 << unix.CAP_NET_ADMIN
	if err := unix.Capset(&header, &without[0]); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Capset(&header, &before[0]); err != nil {
			t.Fatal(err)
		}
	}()
	f()
}

// What is there as it shall be needs no capability; what is not says which one, and
// for what.
func TestWithoutNetAdmin(t *testing.T) {
	for _, tc := range []struct {
		name   string
		before func(*testing.T, *Host)
		want   []string // parts of the error
	}{
		{"nothing is there", func(*testing.T, *Host) {}, []string{"create link nodelocaldns", "CAP_NET_ADMIN"}},
		{"all is there", func(t *testing.T, h *Host) {
			if err := h.Ensure(all); err != nil {
				t.Fatal(err)
			}
		}, nil},
		{"an address is missing", func(t *testing.T, h *Host) {
			if err := h.Ensure(all[:1]); err != nil {
				t.Fatal(err)
			}
		}, []string{"add address 10.96.0.10 to nodelocaldns", "CAP_NET_ADMIN"}},
		{"the link is down", func(t *testing.T, h *Host) {
			if err := h.Ensure(all); err != nil {
				t.Fatal(err)
			}
			testns.Run(t, "ip", "link", "set", DefaultLink, "down")
		}, []string{"set link nodelocaldns up", "CAP_NET_ADMIN"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := newHost(t, "bridge")
			tc.before(t, New(h.cfg, DefaultLink))
			before := snapshot(t)
			withoutNetAdmin(t, func() {
				err := h.Ensure(all)
				if (err == nil) != (tc.want == nil) {
					t.Fatalf("%v, want %q", err, tc.want)
				}
				for _, part := range tc.want {
					if !strings.Contains(err.Error(), part) {
						t.Errorf("%v, want %q in it", err, part)
					}
				}
				if tc.want != nil && strings.Count(err.Error(), "CAP_NET_ADMIN") != strings.Count(err.Error(), "operation not permitted") {
					t.Errorf("%v: a refusal without its capability", err)
				}
			})
			if after := snapshot(t); after != before {
				t.Errorf("it has changed:\n%s\n%s", before, after)
			}
		})
	}
}
