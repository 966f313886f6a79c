//go:build privileged

package notrack

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/agent"
	"github.com/trackless-dns/trackless/agent/tablewalk"
	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/conntrack/ledger"
	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/nftables"
	"github.com/trackless-dns/trackless/iptables/reconcile"
	"github.com/trackless-dns/trackless/iptables/reconcile/reconciletest"
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

func (noAddresses) Ensure([]netip.Addr) error { return nil }

func (noAddresses) Missing([]netip.Addr) ([]netip.Addr, error) { return nil, nil }

func (noAddresses) Release([]netip.Addr) error { return nil }

func (noAddresses) Left([]netip.Addr) ([]netip.Addr, error) { return nil, nil }

func (noAddresses) Clear([]netip.Addr) error { return nil }

func (noAddresses) Down() (bool, error) { return false, nil }

func (noAddresses) SetUp() error { return nil }

func (noAddresses) PreferSource() error { return nil }

func (noAddresses) Remove() error { return nil }

func TestMetrics(t *testing.T) {
	ns := testns.Enter(t)
	backend, err := nftables.New(nftables.Config{NetNS: int(ns)})
	if err != nil {
		t.Fatal(err)
	}
	p := agent.New(agent.Config{Log: log})
	k := reconcile.New(reconciletest.Config(backend, noAddresses{}, log))
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
		p.Ledger.Query(ledger.Flow{
			Proto:  unix.IPPROTO_UDP,
			Client: netip.AddrPortFrom(netip.MustParseAddr("10.244.0.11"), 4000+port),
			Server: netip.MustParseAddrPort("10.96.0.10:53"),
		})
	}
	class := tablewalk.Class{Role: tablewalk.Bypass, Proto: iptables.UDP, Family: iptables.IPv6}
	p.Table.Record(&tablewalk.Walk{At: time.UnixMilli(1_700_000_000_500), Interval: 10 * time.Second, Entries: tablewalk.Entries{class: 7}}, 1500*time.Millisecond)
	rules := func() (*reconcile.Reconciler, iptables.Backend, string) {
		return k, backend, "this kernel has nf_tables"
	}
	c := &collector{agent: p, rules: rules, procRoot: procWith(t, "17", "262144"), stats: func() ([]conntrack.CPUStats, error) {
		return []conntrack.CPUStats{{CPU: 0, Drop: 3}, {CPU: 1, Drop: 4, InsertFailed: 1}}, nil
	}}
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(c)

	problems, err := testutil.GatherAndLint(registry)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	want, err := os.ReadFile("testdata/metrics.txt")
	if err != nil {
		t.Fatal(err)
	}
	if err := testutil.GatherAndCompare(registry, strings.NewReader(strings.ReplaceAll(string(want), "TABLE", backend.Table()))); err != nil {
		t.Error(err)
	}
}
