package notrack

import (
	"net/netip"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/agent"
	"github.com/trackless-dns/trackless/agent/kernelcounters"
	"github.com/trackless-dns/trackless/agent/tablewalk"
	"github.com/trackless-dns/trackless/conntrack/ledger"
)

// Where the kernel tracks nothing, no entries are avoided.
func TestMetricsWhereNothingIsTracked(t *testing.T) {
	p := agent.New(agent.Config{Log: log})
	flow := ledger.Flow{
		Proto:  unix.IPPROTO_UDP,
		Client: netip.MustParseAddrPort("10.244.0.11:4000"), Server: netip.MustParseAddrPort("10.96.0.10:53"),
	}
	p.Accountant.Untracked = func(netip.Addr) bool { return true }
	p.Accountant.Note(flow.Client, flow.Server, flow.Proto)
	p.Table.Record(&tablewalk.Walk{Idle: "nothing is tracked"}, 0)
	flow.Client = netip.MustParseAddrPort("10.244.0.11:4001")
	p.Accountant.Note(flow.Client, flow.Server, flow.Proto).Response()
	if n := p.Ledger.Flows().Total(); n != 1 {
		t.Errorf("%d flows, want only the first", n)
	}
	if n := avoided(p).Total(); n != 0 {
		t.Errorf("%d entries avoided", n)
	}
}

func TestMetricsWithoutRulesOrConntrack(t *testing.T) {
	p := agent.New(agent.Config{Log: log})
	c := &collector{agent: p, rules: p.Rules, procRoot: t.TempDir(), stats: kernelcounters.Read}
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(c)
	if n, err := testutil.GatherAndCount(registry); n != 0 || err != nil {
		t.Errorf("%d metrics, %v; want none", n, err)
	}
}
