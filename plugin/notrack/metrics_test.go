package notrack

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/conntrack/ledger"
	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/nft"
)

// procWith makes a proc whose table has the given count and limit.
func procWith(t *testing.T, count, limit string) string {
	t.Helper()
	root := t.TempDir()
	dir := filepath.Join(root, "sys/net/netfilter")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{"nf_conntrack_count": count, "nf_conntrack_max": limit, "nf_conntrack_buckets": "1"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(value+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

type noAddresses struct{}

func (noAddresses) Ensure([]netip.Addr) error                  { return nil }
func (noAddresses) Missing([]netip.Addr) ([]netip.Addr, error) { return nil, nil }
func (noAddresses) Release([]netip.Addr) error                 { return nil }
func (noAddresses) PreferSource() error                        { return nil }
func (noAddresses) Remove() error                              { return nil }

func TestMetrics(t *testing.T) {
	ns := testns.Enter(t)
	backend, err := nft.New(nft.Config{NetNS: int(ns)})
	if err != nil {
		t.Fatal(err)
	}
	p := &contract{ledger: ledger.New(ledger.Config{})}
	k := iptables.NewKeeper(iptables.Config{Backend: backend, Addresses: noAddresses{}, Log: log})
	p.keeper.Store(k)
	p.backend.Store(backend)
	t.Cleanup(func() {
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	})
	plan := iptables.Plan{Listen: []iptables.Endpoint{{Addr: netip.MustParseAddr("10.96.0.10"), Port: 53, Proto: iptables.UDP}}}
	if err := backend.Install(iptables.Rules{Plan: plan}); err != nil {
		t.Fatal(err)
	}
	for port := range uint16(3) {
		p.ledger.Query(ledger.Flow{
			Proto:  unix.IPPROTO_UDP,
			Client: netip.AddrPortFrom(netip.MustParseAddr("10.244.0.11"), 4000+port),
			Server: netip.MustParseAddrPort("10.96.0.10:53"),
		})
	}
	c := &collector{process: p, procRoot: procWith(t, "17", "262144")}
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(c)

	problems, err := testutil.GatherAndLint(registry)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	want := `
# HELP coredns_conntrack_entries Entries in the connection tracking table of this network namespace (nf_conntrack_count).
# TYPE coredns_conntrack_entries gauge
coredns_conntrack_entries 17
# HELP coredns_conntrack_entries_limit Entries at which the kernel drops new flows (nf_conntrack_max).
# TYPE coredns_conntrack_entries_limit gauge
coredns_conntrack_entries_limit 262144
# HELP coredns_notrack_backend_info The backend in force, its table, and whether the kernel removes the rules when the process dies.
# TYPE coredns_notrack_backend_info gauge
coredns_notrack_backend_info{backend="nftables",owned="true",table="` + backend.Table() + `"} 1
# HELP coredns_notrack_entries_avoided Conntrack entries that ` + "`conntrack -L`" + ` would show now had DNS to the listen addresses been tracked.
# TYPE coredns_notrack_entries_avoided gauge
coredns_notrack_entries_avoided{family="ipv4",proto="tcp"} 0
coredns_notrack_entries_avoided{family="ipv4",proto="udp"} 3
coredns_notrack_entries_avoided{family="ipv6",proto="tcp"} 0
coredns_notrack_entries_avoided{family="ipv6",proto="udp"} 0
# HELP coredns_notrack_entries_avoided_error Distance in entries within which the true sum of entries_avoided lies with a probability of 99.7 %; 0 where it is exact.
# TYPE coredns_notrack_entries_avoided_error gauge
coredns_notrack_entries_avoided_error 0
# HELP coredns_notrack_flows_avoided_total Conntrack entries that DNS to the listen addresses would have made.
# TYPE coredns_notrack_flows_avoided_total counter
coredns_notrack_flows_avoided_total{family="ipv4",proto="tcp"} 0
coredns_notrack_flows_avoided_total{family="ipv4",proto="udp"} 3
coredns_notrack_flows_avoided_total{family="ipv6",proto="tcp"} 0
coredns_notrack_flows_avoided_total{family="ipv6",proto="udp"} 0
# HELP coredns_notrack_lease_lapses_total Leases that ran out although this process meant to hold them.
# TYPE coredns_notrack_lease_lapses_total counter
coredns_notrack_lease_lapses_total 0
# HELP coredns_notrack_repairs_total Rules and addresses that others took away and that were put back.
# TYPE coredns_notrack_repairs_total counter
coredns_notrack_repairs_total{reason="address"} 0
coredns_notrack_repairs_total{reason="rules"} 0
# HELP coredns_notrack_packets_total Packets untracked by the rules; what this node sends to itself passes two hooks and counts once.
# TYPE coredns_notrack_packets_total counter
coredns_notrack_packets_total{direction="query",family="ipv4",proto="tcp"} 0
coredns_notrack_packets_total{direction="query",family="ipv4",proto="udp"} 0
coredns_notrack_packets_total{direction="query",family="ipv6",proto="tcp"} 0
coredns_notrack_packets_total{direction="query",family="ipv6",proto="udp"} 0
coredns_notrack_packets_total{direction="response",family="ipv4",proto="tcp"} 0
coredns_notrack_packets_total{direction="response",family="ipv4",proto="udp"} 0
coredns_notrack_packets_total{direction="response",family="ipv6",proto="tcp"} 0
coredns_notrack_packets_total{direction="response",family="ipv6",proto="udp"} 0
`
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
}

func TestMetricsWithoutRulesOrConntrack(t *testing.T) {
	c := &collector{process: &contract{ledger: ledger.New(ledger.Config{})}, procRoot: t.TempDir()}
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(c)
	if n, err := testutil.GatherAndCount(registry); n != 0 || err != nil {
		t.Errorf("%d metrics, %v; want none", n, err)
	}
}
