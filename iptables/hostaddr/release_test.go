//go:build privileged

package hostaddr

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/iptables"
)

// usedBy returns the claims of one instance that uses these addresses. Without
// addresses there is no instance.
func usedBy(addrs ...netip.Addr) func() (iptables.Claims, error) {
	var i iptables.Instance
	for _, a := range addrs {
		i.Listen = append(i.Listen, iptables.Endpoint{Addr: a, Port: 53, Proto: iptables.UDP})
	}
	return func() (iptables.Claims, error) {
		if len(i.Listen) == 0 {
			return iptables.Claims{}, nil
		}
		return iptables.NewClaims([]iptables.Instance{i}, nil), nil
	}
}

// on lists which addresses of all are on the host, and which links were made for them.
func on(t *testing.T) (addrs []netip.Addr, links []string) {
	t.Helper()
	shown := testns.Run(t, "ip", "-o", "address")
	for _, a := range all {
		if strings.Contains(shown, " "+a.String()+"/") {
			addrs = append(addrs, a)
		}
	}
	for _, name := range []string{DefaultLink, "dns0"} {
		if strings.Contains(testns.Run(t, "ip", "-o", "link"), " "+name+":") {
			links = append(links, name)
		}
	}
	return addrs, links
}

// TestReleaseLeavesAddressesInUse: an instance removes an address unless another uses
// it, and the link with its last address.
func TestReleaseLeavesAddressesInUse(t *testing.T) {
	four := []netip.Addr{linkLocal, clusterIP}
	for _, kind := range []string{"bridge", "nosuchkind"} {
		made := func(names ...string) []string {
			if kind != "bridge" {
				return nil
			}
			return names
		}
		for _, tc := range []struct {
			name    string
			used    []netip.Addr // by others
			release func(h *Host) error
			want    []netip.Addr
			links   []string
		}{
			{"the end, alone", nil, (*Host).Remove, nil, nil},
			{"the end, another uses one", four[1:], (*Host).Remove, four[1:], made(DefaultLink)},
			{"the end, another uses all", all, (*Host).Remove, all, made(DefaultLink)},
			{"the end, another uses an address that we do not have", []netip.Addr{netip.MustParseAddr("10.96.0.11")}, (*Host).Remove, nil, nil},
			{"a reload with fewer", nil, func(h *Host) error { return h.Release(four[1:]) }, four[1:], made(DefaultLink)},
			{"a reload with fewer, another uses the others", four[:1], func(h *Host) error { return h.Release(four[1:]) }, four, made(DefaultLink)},
			{"the end after such a reload, alone by then", nil, func(h *Host) error {
				h.cfg.Claims = usedBy(four[:1]...)
				err := h.Release(four[1:])
				h.cfg.Claims = usedBy()
				return errors.Join(err, h.Remove())
			}, nil, nil},
		} {
			t.Run(kind+", "+tc.name, func(t *testing.T) {
				h := newHostOnANode(t, kind)
				before := snapshot(t) + routes(t)
				h.cfg.Claims = usedBy(tc.used...)
				if err := h.Ensure(all); err != nil {
					t.Fatal(err)
				}
				if err := tc.release(h); err != nil {
					t.Fatal(err)
				}
				addrs, links := on(t)
				if !slices.Equal(addrs, tc.want) || !slices.Equal(links, tc.links) {
					t.Errorf("%v on %v, want %v on %v", addrs, links, tc.want, tc.links)
				}
				for _, a := range all {
					if shown := strings.Contains(routes(t), "local "+a.String()); shown != slices.Contains(tc.want, a) {
						t.Errorf("a route to %s: %t", a, shown)
					}
				}
				if now := snapshot(t) + routes(t); len(tc.want) == 0 && now != before {
					t.Errorf("left behind:\n%s\nbefore:\n%s", now, before)
				}
			})
		}
	}
}

// TestAddressesThatOthersLeft: an instance finds the addresses that a killed one left,
// also on a link with another name, and removes them with the link.
func TestAddressesThatOthersLeft(t *testing.T) {
	for _, tc := range []struct {
		name, kind, link string
		used             []netip.Addr
		keep             bool
		want             []netip.Addr
	}{
		{"on the same link", "bridge", DefaultLink, nil, false, []netip.Addr{linkLocal, clusterV6}},
		{"on lo", "nosuchkind", DefaultLink, nil, false, []netip.Addr{linkLocal, clusterV6}},
		{"on another link", "bridge", "dns0", nil, false, []netip.Addr{linkLocal, clusterV6}},
		{"a third one uses some", "bridge", "dns0", []netip.Addr{linkLocal}, false, []netip.Addr{clusterV6}},
		{"a third one uses all", "nosuchkind", DefaultLink, all, false, nil},
		{"addresses are meant to stay", "bridge", DefaultLink, nil, true, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dead := newHostOnANode(t, tc.kind)
			dead = New(dead.cfg, tc.link)
			if err := dead.Ensure([]netip.Addr{linkLocal, clusterV6}); err != nil {
				t.Fatal(err)
			}
			h := New(dead.cfg, DefaultLink)
			h.cfg.Claims, h.cfg.Keep = usedBy(tc.used...), tc.keep
			own := []netip.Addr{clusterIP}
			if err := h.Ensure(own); err != nil {
				t.Fatal(err)
			}
			left, err := h.Left(own)
			slices.SortFunc(left, netip.Addr.Compare)
			if err != nil || !slices.Equal(left, tc.want) {
				t.Fatalf("left: %v, %v; want %v", left, err, tc.want)
			}
			if err := h.Clear(left); err != nil {
				t.Fatal(err)
			}
			addrs, links := on(t)
			for _, a := range all {
				gone := slices.Contains(tc.want, a)
				if slices.Contains(addrs, a) == gone || strings.Contains(routes(t), "local "+a.String()) == gone {
					t.Errorf("%s: want it gone: %t\n%s\n%s", a, gone, snapshot(t), routes(t))
				}
			}
			if empty := tc.link == "dns0" && len(tc.want) == 2; empty && slices.Contains(links, "dns0") {
				t.Error("the empty link stays")
			}
		})
	}
}

// TestNothingIsRemovedWhenClaimsAreUnknown: others may use the addresses.
func TestNothingIsRemovedWhenClaimsAreUnknown(t *testing.T) {
	h := newHost(t, "bridge")
	if err := h.Ensure(all); err != nil {
		t.Fatal(err)
	}
	before := snapshot(t)
	unreadable := errors.New("unreadable")
	h.cfg.Claims = func() (iptables.Claims, error) { return iptables.Claims{}, unreadable }
	for name, release := range map[string]func() error{"Release": func() error { return h.Release(nil) }, "Remove": h.Remove} {
		if err := release(); !errors.Is(err, unreadable) {
			t.Errorf("%s: %v", name, err)
		}
		if now := snapshot(t); now != before {
			t.Errorf("after %s:\n%s", name, now)
		}
	}
}
