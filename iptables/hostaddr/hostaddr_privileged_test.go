//go:build privileged

package hostaddr

import (
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/internal/testgolden"
	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/iptables"
)

// newHost returns a Host in a network namespace of the test. A bridge without ports
// behaves as a dummy, which the running kernel may not have.
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

// carrier is the part of a link's text that the kernel changes some time after the
// link is set up.
var carrier = regexp.MustCompile(`NO-CARRIER,|,LOWER_UP|,M-DOWN| state \S+`)

// snapshot shows the addresses and links of the host.
func snapshot(t *testing.T) string {
	t.Helper()
	return testns.Run(t, "ip", "-o", "address") + carrier.ReplaceAllString(testns.Run(t, "ip", "-o", "link"), "")
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

// TestSourceAddressesStay: a listen address must not become the source of other
// traffic, such as packets to a pod over a veth without an address.
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
		{"by lo, without our mark", "lo", "10.96.0.10/32"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := newHost(t, "bridge")
			testns.Run(t, "ip", "link", "add", "other", "type", "bridge")
			testns.Run(t, "ip", "address", "add", tc.addr, "dev", tc.device)
			before := snapshot(t)
			err := h.Ensure(all)
			var held *iptables.HeldError
			if !errors.As(err, &held) || held.By != iptables.HeldByOther || held.Interface != tc.device || held.Prefix.String() != tc.addr {
				t.Errorf("%v (%+v), want %s held by another program on %s", err, held, tc.addr, tc.device)
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
	if err := h.Ensure([]netip.Addr{clusterIP}); !errors.Is(err, errAbsent) {
		t.Errorf("an address that is on no interface: %v", err)
	}
	testns.Run(t, "ip", "address", "add", "10.96.0.10/32", "dev", "lo")
	before := snapshot(t)
	if err := errors.Join(h.Ensure([]netip.Addr{clusterIP, netip.MustParseAddr("127.0.0.1")}), h.Remove()); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(before, snapshot(t)); diff != "" {
		t.Errorf("an address of another program was changed:\n%s", diff)
	}
}

func TestAFailureInTheMiddleUndoesAll(t *testing.T) {
	h := newHost(t, "bridge")
	before := snapshot(t)
	// The kernel refuses a multicast address on a link, after it has added the two
	// others.
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

// TestWithoutNetAdmin: a host that needs no change needs no capability. The errors of
// the others are in testdata/without-net-admin.txt.
func TestWithoutNetAdmin(t *testing.T) {
	var out strings.Builder
	for _, tc := range []struct {
		name    string
		before  func(*testing.T, *Host)
		refused bool
	}{
		{"nothing is there", func(*testing.T, *Host) {}, true},
		{"all is there", func(t *testing.T, h *Host) {
			if err := h.Ensure(all); err != nil {
				t.Fatal(err)
			}
		}, false},
		{"an address is missing", func(t *testing.T, h *Host) {
			if err := h.Ensure(all[:1]); err != nil {
				t.Fatal(err)
			}
		}, true},
		{"the link is down", func(t *testing.T, h *Host) {
			if err := h.Ensure(all); err != nil {
				t.Fatal(err)
			}
			testns.Run(t, "ip", "link", "set", DefaultLink, "down")
		}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := newHost(t, "bridge")
			tc.before(t, New(h.cfg, DefaultLink))
			before := snapshot(t)
			withoutNetAdmin(t, func() {
				err := h.Ensure(all)
				if (err != nil) != tc.refused || tc.refused && !errors.Is(err, iptables.ErrPermission) {
					t.Fatalf("%v, want refused %t", err, tc.refused)
				}
				fmt.Fprintf(&out, "%s: %v\n", tc.name, err)
			})
			if after := snapshot(t); after != before {
				t.Errorf("it has changed:\n%s\n%s", before, after)
			}
		})
	}
	testgolden.Compare(t, "without-net-admin.txt", out.String())
}
