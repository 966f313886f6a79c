//go:build privileged

package hostaddr

import (
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/iptables"
)

// play runs commands, one a line.
func play(t *testing.T, script string) {
	t.Helper()
	for line := range strings.Lines(script) {
		if words := strings.Fields(line); len(words) > 0 {
			testns.Run(t, words[0], words[1:]...)
		}
	}
}

// TestAddressesThatOthersNeed: such an address is refused.
func TestAddressesThatOthersNeed(t *testing.T) {
	const veth = "ip link add veth0 type veth peer name pod0\nip link set veth0 addrgenmode none\nip link set pod0 addrgenmode none\nip link set veth0 up\nip link set pod0 up\n"
	for _, tc := range []struct {
		name, script string
		link         string
		addr         string
		device       string
		by           iptables.HeldBy
	}{
		{"the node's own", veth + "ip address add 192.0.2.7/24 dev veth0\nip route add default via 192.0.2.1", DefaultLink, "192.0.2.7", "veth0", iptables.HeldByNode},
		{"the node's own, without a network", veth + "ip address add 192.0.2.7/32 dev veth0\nip route add default dev veth0", DefaultLink, "192.0.2.7", "veth0", iptables.HeldByNode},
		{"the node's own on lo", veth + "ip address add 192.0.2.7/32 dev lo\nip address add 203.0.113.7/24 dev veth0\nip route add default via 203.0.113.1 src 192.0.2.7", DefaultLink, "192.0.2.7", "lo", iptables.HeldByNode},
		{"the node's own of IPv6", veth + "ip address add 2001:db8::7/64 dev veth0 nodad", DefaultLink, "2001:db8::7", "veth0", iptables.HeldByNode},
		{"a gateway", "ip link add cni0 type ifb\nip link set cni0 addrgenmode none\nip link set cni0 up\nip address add 10.244.0.1/24 dev cni0", DefaultLink, "10.244.0.1", "cni0", iptables.HeldByNode},
		{"a gateway of one pod", veth + "ip address add 10.244.0.1/32 dev veth0", DefaultLink, "10.244.0.1", "veth0", iptables.HeldByNode},
		{"a gateway, on the link that is named", veth + "ip address add 10.244.0.1/32 dev veth0", "veth0", "10.244.0.1", "veth0", iptables.HeldByNode},
		{"a gateway, interface none", veth + "ip address add 10.244.0.1/24 dev veth0", "", "10.244.0.1", "veth0", iptables.HeldByNode},
		{"kube-proxy's", "ip link add kube-ipvs0 type ifb\nip address add 10.96.0.10/32 dev kube-ipvs0", DefaultLink, "10.96.0.10", ipvsLink, iptables.HeldByIPVS},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := newHost(t, "bridge")
			h = New(h.cfg, tc.link)
			h.cfg.Claims = usedBy()
			play(t, tc.script)
			before := snapshot(t)
			err := h.Ensure([]netip.Addr{netip.MustParseAddr(tc.addr)})
			var held *iptables.HeldError
			if !errors.As(err, &held) || held.By != tc.by || held.Interface != tc.device || held.Prefix.Addr().String() != tc.addr {
				t.Fatalf("%v (%+v), want held by %v on %s", err, held, tc.by, tc.device)
			}
			if diff := cmp.Diff(before, snapshot(t)); diff != "" {
				t.Errorf("a refused start changed the host:\n%s", diff)
			}
		})
	}
}

// TestALinkLeftUnderAnotherName: an instance that was killed left its link, and the
// link of the next one has another name.
func TestALinkLeftUnderAnotherName(t *testing.T) {
	for _, tc := range []struct {
		name  string
		left  string       // more commands after the instance was killed
		used  []netip.Addr // by another instance
		held  bool         // an error; else taken over
		stays string       // the address that stays on the old link, if it stays
	}{
		{name: "as it was left"},
		{name: "with an address of another program", left: "ip address add 192.0.2.9/32 dev oldname", stays: "192.0.2.9"},
		{name: "another instance uses one of them", used: []netip.Addr{clusterIP}, held: true},
		{name: "another instance uses another one", left: "ip address add 192.0.2.9/32 dev oldname", used: []netip.Addr{netip.MustParseAddr("192.0.2.9")}, stays: "192.0.2.9"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dead := newHost(t, "bridge")
			dead = New(dead.cfg, "oldname")
			before := snapshot(t)
			if err := dead.Ensure(all); err != nil {
				t.Fatal(err)
			}
			play(t, tc.left)
			found := snapshot(t)
			next := New(dead.cfg, "newname")
			next.cfg.Claims = usedBy(tc.used...)
			logged := 0
			next.cfg.Log = func(string, ...any) { logged++ }
			err := next.Ensure(all)
			if tc.held {
				var held *iptables.HeldError
				if !errors.As(err, &held) || held.By != iptables.HeldByInstance || held.Prefix.Addr() != tc.used[0] {
					t.Errorf("%v, want that another instance holds %s", err, tc.used[0])
				}
				if diff := cmp.Diff(found, snapshot(t)); diff != "" {
					t.Errorf("a refused start changed the host:\n%s", diff)
				}
				return
			}
			if err != nil || logged != 1 {
				t.Fatalf("not taken over: %v, logged %d times", err, logged)
			}
			if missing, err := next.Missing(all); len(missing) > 0 || err != nil {
				t.Errorf("%v are missing, %v", missing, err)
			}
			if err := next.Remove(); err != nil {
				t.Fatal(err)
			}
			if tc.stays != "" {
				got := testns.Run(t, "ip", "-o", "-4", "address", "show", "dev", "oldname")
				if !strings.Contains(got, tc.stays) || strings.Count(got, "inet ") != 1 {
					t.Errorf("on the old link:\n%s", got)
				}
				return
			}
			if diff := cmp.Diff(before, snapshot(t)); diff != "" {
				t.Errorf("left behind:\n%s", diff)
			}
		})
	}
}

// TestNodeCachesLinkIsTakenOver: node-cache sets no marks; the name tells its link.
func TestNodeCachesLinkIsTakenOver(t *testing.T) {
	h := newHost(t, "bridge")
	h = New(h.cfg, "dns0")
	h.cfg.Claims = usedBy()
	play(t, `ip link add nodelocaldns type bridge
		ip address add 169.254.20.10/32 dev nodelocaldns
		ip address add 10.96.0.10/32 dev nodelocaldns`)
	if err := h.Ensure(all); err != nil {
		t.Fatal(err)
	}
	if links := testns.Run(t, "ip", "-br", "link"); strings.Contains(links, "nodelocaldns") || !strings.Contains(links, "dns0") {
		t.Errorf("links:\n%s", links)
	}
}

func TestIPv6Disabled(t *testing.T) {
	for _, kind := range []string{"bridge", "nosuchkind"} {
		t.Run(kind, func(t *testing.T) {
			h := newHost(t, kind)
			for _, name := range []string{"default", "all"} {
				if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/disable_ipv6", []byte("1"), 0); err != nil {
					testns.Skip(t, "IPv6: %v", err)
				}
			}
			before := snapshot(t)
			err := h.Ensure(all)
			if !errors.Is(err, errIPv6Disabled) {
				t.Errorf("%v, want %v", err, errIPv6Disabled)
			}
			if diff := cmp.Diff(before, snapshot(t)); diff != "" {
				t.Errorf("left behind by a failed start:\n%s", diff)
			}
		})
	}
}
