//go:build privileged

package hostaddr

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/iptables"
)

func TestInspectTellsOursFromOthers(t *testing.T) {
	byAddr := cmpopts.EquateComparable(netip.Addr{})
	foreign := netip.MustParseAddr("192.0.2.1")
	for _, tc := range []struct {
		name, kind string
		more       [][]string // ip commands after the addresses are there
		want       []Device
		link       bool
		doubtful   []netip.Addr
	}{
		{
			name: "a link of our own", kind: "bridge",
			want: []Device{{Name: DefaultLink, Kind: "bridge", Link: true, Addresses: []Address{
				{clusterIP, true}, {linkLocal, true}, {clusterV6, true},
			}}},
			link: true,
		},
		{
			name: "an address of another program on our link", kind: "bridge",
			more: [][]string{{"address", "add", "192.0.2.1/32", "dev", DefaultLink}},
			want: []Device{{Name: DefaultLink, Kind: "bridge", Link: true, Addresses: []Address{
				{clusterIP, true}, {linkLocal, true}, {foreign, false}, {clusterV6, true},
			}}},
			doubtful: []netip.Addr{foreign},
		},
		{
			name: "addresses on lo", kind: "nosuchkind",
			want: []Device{{Name: "lo", Addresses: []Address{{clusterIP, true}, {linkLocal, true}, {clusterV6, true}}}},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := newHost(t, tc.kind)
			before := snapshot(t)
			if err := h.Ensure(all); err != nil {
				t.Fatal(err)
			}
			for _, args := range tc.more {
				testns.Run(t, "ip", args...)
			}
			got, err := Inspect(h.cfg, DefaultLink, nil)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got, byAddr); diff != "" {
				t.Fatalf("(-want +got):\n%s", diff)
			}
			link, ours, doubtful := got[0].Leftovers(iptables.Claims{})
			if link != tc.link || !cmp.Equal(doubtful, tc.doubtful, byAddr) || len(ours) != len(all) {
				t.Errorf("link %v, ours %v, doubtful %v", link, ours, doubtful)
			}
			for _, a := range ours {
				if err := RemoveAddress(h.cfg, got[0].Name, a); err != nil {
					t.Error(err)
				}
				if err := RemoveAddress(h.cfg, got[0].Name, a); err != nil {
					t.Errorf("removing it again: %v", err)
				}
			}
			for range 2 {
				if err := RemoveLink(h.cfg, DefaultLink); err != nil {
					t.Error(err)
				}
			}
			if diff := cmp.Diff(before, snapshot(t)); diff != "" {
				t.Errorf("left behind (-before +after):\n%s", diff)
			}
		})
	}
}

func TestRemoveLinkRefusesOtherKinds(t *testing.T) {
	h := newHost(t, "bridge")
	testns.Run(t, "ip", "link", "add", DefaultLink, "type", "veth", "peer", "name", "other")
	if err := RemoveLink(h.cfg, DefaultLink); !errors.Is(err, errNotOurs) {
		t.Errorf("a veth of that name: error %v", err)
	}
	testns.Run(t, "ip", "link", "show", DefaultLink)
}
