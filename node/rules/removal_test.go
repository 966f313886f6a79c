package rules

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/failover"
	"github.com/trackless-dns/trackless/iptables/hostaddr"
	"github.com/trackless-dns/trackless/iptables/owner"
)

var (
	served   = netip.MustParseAddr("10.96.0.10")
	unserved = netip.MustParseAddr("169.254.20.10")
	service  = netip.MustParseAddr("10.96.0.99")
)

// inUse are the claims of an instance that serves one address.
func inUse() iptables.Claims {
	return iptables.NewClaims([]iptables.Instance{{Backend: iptables.BackendNFTables, Table: "trackless-a", Listen: DNSEndpoints(served, nil)}}, nil)
}

// inWords is a plan in words: what would go, and what stays.
func inWords(plan []step) string {
	var out []string
	for _, s := range plan {
		verb := "stays"
		if s.do != nil {
			verb = "goes"
		}
		out = append(out, strings.TrimSpace(s.Kind+" "+s.Name)+" "+verb)
	}
	return strings.Join(out, ", ")
}

func TestPlanTable(t *testing.T) {
	for _, tc := range []struct {
		name    string
		owner   owner.Owner
		force   bool
		goes    bool
		refused bool
		says    string
	}{
		{"alive, seen from here", owner.Owner{PID: 7, LocalPID: 7, Life: owner.Alive}, true, false, true, "rules detach --pid 7"},
		{"alive in a container", owner.Owner{PID: 1, Life: owner.Alive}, true, false, true, "end it there"},
		{"perhaps alive", owner.Owner{PID: 1, Life: owner.Unknown}, false, false, true, "use --force"},
		{"perhaps alive, by force", owner.Owner{PID: 1, Life: owner.Unknown}, true, true, false, "by force"},
		{"dead", owner.Owner{PID: 7, Life: owner.Dead}, false, true, false, "its owner, pid 7, is dead"},
	} {
		s := planTable(iptables.Instance{Backend: iptables.BackendNFTables, Table: "trackless-a", Owner: tc.owner}, tc.force)
		if (s.do != nil) != tc.goes || s.Refused != tc.refused || !strings.Contains(s.Reason, tc.says) {
			t.Errorf("%s: %+v", tc.name, s.Removal)
		}
	}
}

func TestPlanFailover(t *testing.T) {
	pairs := func(listen ...netip.Addr) failover.State {
		f := failover.State{Present: true}
		for _, a := range listen {
			f.Pairs = append(f.Pairs, failover.Pair{Listen: a, Service: service})
		}
		return f
	}
	for _, tc := range []struct {
		name   string
		state  failover.State
		claims iptables.Claims
		want   string
	}{
		{"none", failover.State{}, inUse(), ""},
		{"nobody serves its addresses", pairs(unserved), inUse(), "failover table inet trackless-failover goes"},
		{"some are served", pairs(served, unserved), inUse(), "failover table inet trackless-failover stays, failover pair 169.254.20.10 to 10.96.0.99 goes"},
		{"changed by somebody", pairs(), inUse(), "failover table inet trackless-failover stays"},
		{"without pairs and instances", pairs(), iptables.NewClaims(nil, nil), "failover table inet trackless-failover goes"},
	} {
		if got := inWords(planFailover(tc.state, tc.claims)); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
}

func TestPlanDevice(t *testing.T) {
	mine := func(a netip.Addr) hostaddr.Address { return hostaddr.Address{Addr: a, Marked: true} }
	for _, tc := range []struct {
		name   string
		device hostaddr.Device
		force  bool
		want   string
	}{
		{"a link that nobody uses", hostaddr.Device{Name: "dns0", Link: true, Addresses: []hostaddr.Address{mine(unserved)}}, false, "link dns0 goes"},
		{"a link with an address in use", hostaddr.Device{Name: "dns0", Link: true, Addresses: []hostaddr.Address{mine(served), mine(unserved)}}, true,
			"link dns0 stays, address 169.254.20.10 goes"},
		{"a link in use, by force", hostaddr.Device{Name: "dns0", Link: true, Addresses: []hostaddr.Address{mine(served)}}, true, "link dns0 stays"},
		{"a link with an address without our mark", hostaddr.Device{Name: "dns0", Link: true, Addresses: []hostaddr.Address{mine(unserved), {Addr: service}}}, false,
			"address 169.254.20.10 goes, address 10.96.0.99 stays"},
		{"the same by force", hostaddr.Device{Name: "dns0", Link: true, Addresses: []hostaddr.Address{mine(unserved), {Addr: service}}}, true, "link dns0 goes"},
		{"lo", hostaddr.Device{Name: "lo", Addresses: []hostaddr.Address{mine(served), mine(unserved), {Addr: service}}}, false,
			"address 10.96.0.10 stays, address 169.254.20.10 goes, address 10.96.0.99 stays"},
		{"a device of the host", hostaddr.Device{Name: "eth0", Addresses: []hostaddr.Address{{Addr: service}}}, true, ""},
	} {
		if got := inWords(planDevice(tc.device, inUse(), tc.force)); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
}
