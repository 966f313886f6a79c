//go:build privileged

package hostaddr

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jsimonetti/rtnetlink/v2"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/iptables"
)

// newHostOnANode is newHost on a node with addresses and default routes.
func newHostOnANode(t *testing.T, kind string) *Host {
	t.Helper()
	h := newHost(t, kind)
	testns.Run(t, "ip", "link", "set", "lo", "up")
	testns.Run(t, "ip", "link", "add", "uplink", "type", "bridge")
	// Without a link-local address: the kernel adds its routes after duplicate
	// address detection, perhaps in the middle of a test.
	testns.Run(t, "ip", "link", "set", "uplink", "addrgenmode", "none")
	testns.Run(t, "ip", "link", "set", "uplink", "up")
	testns.Run(t, "ip", "address", "add", "192.0.2.7/24", "dev", "uplink")
	testns.Run(t, "ip", "address", "add", "2001:db8::7/64", "dev", "uplink", "nodad")
	testns.Run(t, "ip", "route", "add", "default", "via", "192.0.2.1")
	testns.Run(t, "ip", "-6", "route", "add", "default", "via", "2001:db8::1")
	// The kernel adds the local route some time after the address.
	for deadline := time.Now().Add(time.Minute); !strings.Contains(routes(t), "local 2001:db8::7"); {
		if time.Now().After(deadline) {
			t.Fatalf("no local route to the node's address:\n%s", routes(t))
		}
		time.Sleep(time.Millisecond)
	}
	return h
}

func routes(t *testing.T) string {
	t.Helper()
	return testns.Run(t, "ip", "route", "show", "table", "all") + testns.Run(t, "ip", "-6", "route", "show", "table", "all")
}

// expectSources fails unless all addresses are local, and flows to them have
// the node's own address as their source.
func expectSources(t *testing.T, v4, v6 string) {
	t.Helper()
	for _, a := range all {
		want := v4
		if a.Is6() {
			want = v6
		}
		got := testns.Run(t, "ip", "route", "get", a.String())
		if !strings.HasPrefix(got, "local ") || !slices.Contains(strings.Fields(got), want) {
			t.Errorf("route to %s, want a local one from %s:\n%s", a, want, got)
		}
	}
}

func TestListenAddressesAreNoSource(t *testing.T) {
	for _, kind := range []string{"bridge", "nosuchkind"} {
		t.Run(kind, func(t *testing.T) {
			h := newHostOnANode(t, kind)
			before := routes(t)
			if err := h.Ensure(all); err != nil {
				t.Fatal(err)
			}
			expectSources(t, "192.0.2.7", "2001:db8::7")
			ours := routes(t)
			if err := h.PreferSource(); err != nil {
				t.Error(err)
			}
			if diff := cmp.Diff(ours, routes(t)); diff != "" {
				t.Errorf("routes that were right changed:\n%s", diff)
			}
			if err := h.Remove(); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(before, routes(t)); diff != "" {
				t.Errorf("routes left behind:\n%s", diff)
			}
		})
	}
}

// TestRoutesOutliveAddresses: our route is there before the address and until after it,
// so that at no moment flows to the address have it as their source.
func TestRoutesOutliveAddresses(t *testing.T) {
	h := newHostOnANode(t, "nosuchkind")
	witness, err := netlink.Dial(unix.NETLINK_ROUTE, &netlink.Config{NetNS: h.cfg.NetNS})
	if err != nil {
		t.Fatal(err)
	}
	defer witness.Close()
	for _, group := range []uint32{unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE} {
		if err := witness.JoinGroup(group); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.Ensure(all); err != nil {
		t.Fatal(err)
	}
	if err := h.Remove(); err != nil {
		t.Fatal(err)
	}
	if err := witness.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	got := map[netip.Addr][]string{}
	for ended := 0; ended < len(all); {
		msgs, err := witness.Receive()
		if err != nil {
			t.Fatalf("after %v: %v", got, err)
		}
		for _, m := range msgs {
			a, event := eventOf(t, m)
			if !slices.Contains(all, a) {
				continue
			}
			got[a] = append(got[a], event)
			if event == "our route gone" {
				ended++
			}
		}
	}
	want := []string{"our route", "address", "address gone", "our route gone"}
	for _, a := range all {
		if diff := cmp.Diff(want, got[a]); diff != "" {
			t.Errorf("%s (-want +got):\n%s", a, diff)
		}
	}
}

// eventOf returns the address and the event of a message. The address is invalid for
// routes that are not ours.
func eventOf(t *testing.T, m netlink.Message) (a netip.Addr, event string) {
	t.Helper()
	switch m.Header.Type {
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		event = "address"
		ad, err := netlink.NewAttributeDecoder(m.Data[unix.SizeofIfAddrmsg:])
		if err != nil {
			t.Fatal(err)
		}
		for ad.Next() {
			if ad.Type() == unix.IFA_ADDRESS {
				a = addrFrom(ad.Bytes())
			}
		}
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		event = "our route"
		var r rtnetlink.RouteMessage
		if err := r.UnmarshalBinary(m.Data); err != nil {
			t.Fatal(err)
		}
		if r.Protocol == protoRoute {
			a, _ = netip.AddrFromSlice(r.Attributes.Dst)
		}
	}
	if m.Header.Type == unix.RTM_DELADDR || m.Header.Type == unix.RTM_DELROUTE {
		event += " gone"
	}
	return a, event
}

// TestConnectedSocketsFollow: packets of a socket that is connected already come here
// while the addresses are there.
func TestConnectedSocketsFollow(t *testing.T) {
	for _, a := range []netip.Addr{clusterIP, clusterV6} {
		t.Run(a.String(), func(t *testing.T) {
			h := newHostOnANode(t, "nosuchkind")
			to := net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 53))
			client, err := net.DialUDP("udp", nil, to)
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			for range 2 {
				// After the first use the socket keeps its route.
				if _, err := client.Write([]byte("away")); err != nil {
					t.Fatal(err)
				}
				if err := h.Ensure(all); err != nil {
					t.Fatal(err)
				}
				server, err := net.ListenUDP("udp", to)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := client.Write([]byte("here")); err != nil {
					t.Fatal(err)
				}
				if err := server.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
					t.Fatal(err)
				}
				if _, err := server.Read(make([]byte, 16)); err != nil {
					t.Errorf("the packet of a connected socket does not arrive: %v", err)
				}
				if err := errors.Join(server.Close(), h.Remove()); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

func TestTwoInstancesShareRoutes(t *testing.T) {
	first := newHostOnANode(t, "nosuchkind")
	before := routes(t)
	if err := first.Ensure(all); err != nil {
		t.Fatal(err)
	}
	ours := routes(t)
	second := New(first.cfg, DefaultLink)
	if err := second.Ensure(all); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(ours, routes(t)); diff != "" {
		t.Errorf("the second instance changed the routes of the first:\n%s", diff)
	}
	// The first instance ends.
	if err := second.PreferSource(); err != nil {
		t.Fatal(err)
	}
	expectSources(t, "192.0.2.7", "2001:db8::7")
	if err := second.Remove(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, routes(t)); diff != "" {
		t.Errorf("left behind:\n%s", diff)
	}
}

func TestSourceFollowsTheNode(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change []string // commands
		v4, v6 string
		gone   bool // addresses go with their link
	}{
		{"another address", []string{
			"ip address add 192.0.2.8/24 dev uplink", "ip address add 2001:db8::8/64 dev uplink nodad",
			"ip route replace default via 192.0.2.1 src 192.0.2.8", "ip -6 route replace default via 2001:db8::1 src 2001:db8::8",
		}, "192.0.2.8", "2001:db8::8", false},
		{"the address replaced", []string{
			"ip address add 198.18.0.8/24 dev uplink", "ip address add 2001:db8:8::8/64 dev uplink nodad",
			"ip address del 192.0.2.7/24 dev uplink", "ip address del 2001:db8::7/64 dev uplink",
			"ip route replace default via 198.18.0.1", "ip -6 route replace default via 2001:db8:8::1",
		}, "198.18.0.8", "2001:db8:8::8", false},
		{"our routes deleted", []string{
			"ip route del local 10.96.0.10 dev lo table local proto 84", "ip -6 route del local fd00:10:96::a dev lo table local proto 84",
			"ip -6 route add local fd00:10:96::a dev lo table local",
		}, "192.0.2.7", "2001:db8::7", false},
		{"the link down and up", []string{
			"ip link set lo down", "ip link set lo up",
		}, "192.0.2.7", "2001:db8::7", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := newHostOnANode(t, "nosuchkind")
			if err := h.Ensure(all); err != nil {
				t.Fatal(err)
			}
			for _, command := range tc.change {
				words := strings.Fields(command)
				testns.Run(t, words[0], words[1:]...)
			}
			for _, a := range all {
				if got := testns.Run(t, "ip", "route", "get", a.String()); !tc.gone && !strings.HasPrefix(got, "local ") {
					t.Errorf("before PreferSource, %s is not on this host:\n%s", a, got)
				}
			}
			if tc.gone {
				if err := h.Ensure(all); err != nil {
					t.Fatal(err)
				}
			}
			if err := h.PreferSource(); err != nil {
				t.Fatal(err)
			}
			expectSources(t, tc.v4, tc.v6)
			if err := h.Remove(); err != nil {
				t.Fatal(err)
			}
			if got := routes(t); strings.Contains(got, "10.96.0.10") || strings.Contains(got, "fd00:10:96::a") {
				t.Errorf("left behind:\n%s", got)
			}
		})
	}
}

func TestWithoutAnotherAddress(t *testing.T) {
	h := newHost(t, "nosuchkind")
	testns.Run(t, "ip", "link", "set", "lo", "up")
	before := routes(t)
	if err := h.Ensure(all); err != nil {
		t.Fatal(err)
	}
	if err := h.PreferSource(); err != nil {
		t.Error(err)
	}
	if got := testns.Run(t, "ip", "route", "get", clusterIP.String()); !strings.HasPrefix(got, "local ") {
		t.Errorf("%s is not on this host:\n%s", clusterIP, got)
	}
	if err := h.Remove(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, routes(t)); diff != "" {
		t.Errorf("left behind:\n%s", diff)
	}
}

func TestLeftoversAreFoundByTheirRoutes(t *testing.T) {
	h := newHostOnANode(t, "nosuchkind")
	before := routes(t)
	if err := h.Ensure(all); err != nil {
		t.Fatal(err)
	}
	// It is killed. Then an operator removes the addresses, and the kernel deletes
	// only its own routes.
	for _, a := range all {
		testns.Run(t, "ip", "address", "del", a.String(), "dev", "lo")
	}
	devices, err := Inspect(h.cfg, DefaultLink, nil)
	if err != nil || len(devices) != 1 || len(devices[0].Addresses) != len(all) {
		t.Fatalf("found %v, %v; want lo with %v", devices, err, all)
	}
	_, ours, doubtful := devices[0].Leftovers(iptables.Claims{})
	if len(doubtful) > 0 {
		t.Errorf("%v are in doubt", doubtful)
	}
	for _, a := range ours {
		if err := RemoveAddress(h.cfg, "lo", a); err != nil {
			t.Error(err)
		}
	}
	if diff := cmp.Diff(before, routes(t)); diff != "" {
		t.Errorf("left behind:\n%s", diff)
	}
}

// TestALinkThatIsSetDown: an operator sets down the device of the addresses. The kernel
// removes IPv6 addresses and all routes, and does not add them again.
func TestALinkThatIsSetDown(t *testing.T) {
	for _, kind := range []string{"bridge", "nosuchkind"} {
		t.Run(kind, func(t *testing.T) {
			h := newHostOnANode(t, kind)
			before := routes(t)
			if err := h.Ensure(all); err != nil {
				t.Fatal(err)
			}
			for range 2 { // the second time at once
				if down, err := h.Down(); down || err != nil {
					t.Fatalf("down %t, %v before it was set down", down, err)
				}
				testns.Run(t, "ip", "link", "set", h.Device(), "down")
				if down, err := h.Down(); !down || err != nil {
					t.Fatalf("down %t, %v after it was set down", down, err)
				}
				if err := h.SetUp(); err != nil {
					t.Fatal(err)
				}
				missing, err := h.Missing(all)
				if err != nil {
					t.Fatal(err)
				}
				if err := errors.Join(h.Ensure(missing), h.PreferSource()); err != nil {
					t.Fatal(err)
				}
				expectSources(t, "192.0.2.7", "2001:db8::7")
				for _, a := range all {
					server, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 53)))
					if err != nil {
						t.Fatal(err)
					}
					client, err := net.DialUDP("udp", nil, server.LocalAddr().(*net.UDPAddr))
					if err != nil {
						t.Fatal(err)
					}
					_, err = client.Write([]byte("query"))
					if err == nil {
						err = server.SetReadDeadline(time.Now().Add(time.Minute))
					}
					if err == nil {
						_, err = server.Read(make([]byte, 16))
					}
					if err := errors.Join(err, client.Close(), server.Close()); err != nil {
						t.Errorf("the node's own query to %s: %v", a, err)
					}
				}
			}
			// A start sets it up, too.
			testns.Run(t, "ip", "link", "set", h.Device(), "down")
			next := New(h.cfg, DefaultLink)
			if err := next.Ensure(all); err != nil {
				t.Fatal(err)
			}
			if down, err := next.Down(); down || err != nil {
				t.Errorf("down %t, %v after a start", down, err)
			}
			expectSources(t, "192.0.2.7", "2001:db8::7")
			if err := next.Remove(); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(before, routes(t)); diff != "" {
				t.Errorf("left behind:\n%s", diff)
			}
		})
	}
}
