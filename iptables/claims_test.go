package iptables

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/trackless-dns/trackless/iptables/owner"
)

func TestClaims(t *testing.T) {
	const linkLocal, clusterIP = "169.254.20.10", "10.96.0.10"
	instance := func(life owner.Life, addrs ...string) Instance {
		i := Instance{Backend: BackendNFTables, Table: "trackless-1", Listen: planFor(addrs...).Listen}
		i.Owner.Life = life
		return i
	}
	chains := instance(owner.Alive, clusterIP)
	chains.Backend, chains.Table = BackendBinaries, "TRACKLESS-1"
	for _, tc := range []struct {
		name      string
		instances []Instance
		servers   []string
		addr      string
		want      string
	}{
		{"nobody", nil, nil, linkLocal, ""},
		{"an instance uses it", []Instance{instance(owner.Alive, linkLocal)}, nil, linkLocal, "table inet trackless-1"},
		{"an instance uses another", []Instance{instance(owner.Alive, clusterIP)}, nil, linkLocal, ""},
		{"one of two uses it", []Instance{instance(owner.Alive, linkLocal), chains}, nil, clusterIP, "chains TRACKLESS-1-*"},
		{"a dead one", []Instance{instance(owner.Dead, linkLocal)}, nil, linkLocal, ""},
		{"one that may live", []Instance{instance(owner.Unknown, linkLocal)}, nil, linkLocal, "table inet trackless-1"},
		{"one that does not say what it uses", []Instance{instance(owner.Alive)}, nil, linkLocal, "table inet trackless-1"},
		{"another server listens", nil, []string{linkLocal}, linkLocal, "a DNS server that listens there and is no instance of Trackless"},
		{"another server listens elsewhere", nil, []string{clusterIP}, linkLocal, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var servers []netip.Addr
			for _, s := range tc.servers {
				servers = append(servers, netip.MustParseAddr(s))
			}
			c := NewClaims(tc.instances, servers)
			if got := c.Of(netip.MustParseAddr(tc.addr)); got != tc.want {
				t.Errorf("%q, want %q", got, tc.want)
			}
			want := tc.want // other servers do not use our rules
			if len(tc.servers) > 0 {
				want = ""
			}
			if got := c.Instance(netip.MustParseAddr(tc.addr)); got != want {
				t.Errorf("instance %q, want %q", got, want)
			}
		})
	}
	both := planFor(linkLocal, clusterIP).Listen
	if got, want := NewClaims([]Instance{chains}, nil).Serving(both), planFor(clusterIP).Listen; !slices.Equal(got, want) {
		t.Errorf("served by others: %v, want %v", got, want)
	}
}
