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

// What others need is not taken, nor is its removal advised.
func TestAddressesThatOthersNeed(t *testing.T) {
	const veth = "ip link add veth0 type veth peer name pod0\nip link set veth0 addrgenmode none\nip link set pod0 addrgenmode none\nip link set veth0 up\nip link set pod0 up\n"
	for _, tc := range []struct {
		name, script string
		link         string
		addr         string
		want         []string
	}{
		{"the node's own", veth + "ip address add 192.0.2.7/24 dev veth0\nip route add default via 192.0.2.1", DefaultLink, "192.0.2.7", []string{"veth0", "of this node itself"}},
		{"the node's own, without a network", veth + "ip address add 192.0.2.7/32 dev veth0\nip route add default dev veth0", DefaultLink, "192.0.2.7", []string{"of this node itself"}},
		{"the node's own on lo", veth + "ip address add 192.0.2.7/32 dev lo\nip address add 203.0.113.7/24 dev veth0\nip route add default via 203.0.113.1 src 192.0.2.7", DefaultLink, "192.0.2.7", []string{"interface lo", "of this node itself"}},
		{"the node's own of IPv6", veth + "ip address add 2001:db8::7/64 dev veth0 nodad", DefaultLink, "2001:db8::7", []string{"of this node itself"}},
		{"a gateway", "ip link add cni0 type ifb\nip link set cni0 addrgenmode none\nip link set cni0 up\nip address add 10.244.0.1/24 dev cni0", DefaultLink, "10.244.0.1", []string{"gateway of what is behind cni0"}},
		{"a gateway of one pod", veth + "ip address add 10.244.0.1/32 dev veth0", DefaultLink, "10.244.0.1", []string{"gateway of what is behind veth0"}},
		{"a gateway, on the link that is named", veth + "ip address add 10.244.0.1/32 dev veth0", "veth0", "10.244.0.1", []string{"gateway of what is behind veth0"}},
		{"a gateway, interface none", veth + "ip address add 10.244.0.1/24 dev veth0", "", "10.244.0.1", []string{"gateway of what is behind veth0"}},
		{"kube-proxy's", "ip link add kube-ipvs0 type ifb\nip address add 10.96.0.10/32 dev kube-ipvs0", DefaultLink, "10.96.0.10", []string{"IPVS mode", "kube-proxy --cleanup"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := newHost(t, "bridge")
			h = New(h.cfg, tc.link)
			h.cfg.Claims = asked()
			play(t, tc.script)
			before := snapshot(t)
			err := h.Ensure([]netip.Addr{netip.MustParseAddr(tc.addr)})
			var held *iptables.HeldError
			if !errors.As(err, &held) {
				t.Fatalf("%v, want that it is held", err)
			}
			for _, want := range append(tc.want, "169.254.20.10") {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the error does not say %q: %v", want, err)
				}
			}
			if strings.Contains(err.Error(), "ip address del") {
				t.Errorf("bad advice: %v", err)
			}
			if diff := cmp.Diff(before, snapshot(t)); diff != "" {
				t.Errorf("a refused start changed the host:\n%s", diff)
			}
		})
	}
}

// An instance that was killed left its link, and the next one has another name for
// its own.
func TestALinkLeftUnderAnotherName(t *testing.T) {
	for _, tc := range []struct {
		name  string
		left  string       // commands besides what an instance did
		asked []netip.Addr // by another instance
		want  string       // of the error; empty: taken over
		stays string       // what stays on the old link, if that does
	}{
		{name: "as it was left"},
		{name: "with somebody else's address", left: "ip address add 192.0.2.9/32 dev oldname", stays: "192.0.2.9"},
		{name: "another instance asks for one of them", asked: []netip.Addr{clusterIP}, want: "another instance of Trackless runs"},
		{name: "another instance asks for another one", left: "ip address add 192.0.2.9/32 dev oldname", asked: []netip.Addr{netip.MustParseAddr("192.0.2.9")}, stays: "192.0.2.9"},
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
			next.cfg.Claims = asked(tc.asked...)
			said := 0
			next.cfg.Log = func(string, ...any) { said++ }
			err := next.Ensure(all)
			if tc.want != "" {
				if err == nil || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("%v, want %q", err, tc.want)
				}
				if diff := cmp.Diff(found, snapshot(t)); diff != "" {
					t.Errorf("a refused start changed the host:\n%s", diff)
				}
				return
			}
			if err != nil || said != 1 {
				t.Fatalf("not taken over: %v, said %d times", err, said)
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

// node-cache marks nothing: its link is known by its name.
func TestNodeCachesLinkIsTakenOver(t *testing.T) {
	h := newHost(t, "bridge")
	h = New(h.cfg, "dns0")
	h.cfg.Claims = asked()
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
			if err == nil || !strings.Contains(err.Error(), "IPv6 is disabled") || !strings.Contains(err.Error(), "net.ipv6.conf.all.disable_ipv6") {
				t.Errorf("%v, want that IPv6 is disabled", err)
			}
			if diff := cmp.Diff(before, snapshot(t)); diff != "" {
				t.Errorf("left behind by a failed start:\n%s", diff)
			}
		})
	}
}
