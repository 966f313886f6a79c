package notrack

import (
	"net/netip"
	"testing"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin/pkg/dnstest"
	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/agent/checks"
)

// ownQuery asks the address from itself, and returns the answer, or nil.
func ownQuery(t *testing.T, config *configuration, address string, query *dns.Msg) *dns.Msg {
	t.Helper()
	n := &NoTrack{config: config, block: &dnsserver.Config{}}
	w := dnstest.NewRecorder(&writer{remote: udp(address + ":4000"), local: udp(address + ":53")})
	if _, err := n.ServeDNS(t.Context(), w, query); err != nil {
		t.Fatal(err)
	}
	return w.Msg
}

// A lease is not renewed where queries wait that nobody reads.
func TestNoLeaseWhereQueriesWait(t *testing.T) {
	before := denyLeases.Load()
	t.Cleanup(func() { denyLeases.Store(before) })
	DenyLeases(func(server netip.AddrPort) bool { return server.Addr() == netip.MustParseAddr("10.96.0.11") })
	config := loaded(t)
	for _, row := range []struct {
		name, address, label string
		answered             bool
	}{
		{"lease", "10.96.0.10", checks.LeaseLabel, true},
		{"lease where queries wait", "10.96.0.11", checks.LeaseLabel, false},
		{"check where queries wait", "10.96.0.11", checks.CheckLabel, true},
	} {
		if answer := ownQuery(t, config, row.address, config.identity.Query(row.label, ".")); (answer != nil) != row.answered {
			t.Errorf("%s: %v", row.name, answer)
		}
	}
}
