// Package reconciletest has what tests of those who use a reconciler need.
package reconciletest

import (
	"net/netip"
	"sync/atomic"

	"github.com/trackless-dns/trackless/internal/wakeup"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/reconcile"
)

// Config is that of a reconciler on a node without anything of others.
func Config(b iptables.Backend, a reconcile.Addresses, log reconcile.Logger) reconcile.Config {
	var asked atomic.Uint64 // very often: the node is busy
	return reconcile.Config{
		Backend: b, Addresses: a, Log: log,
		Queries: func() uint64 { return asked.Add(1 << 20) }, NewTimer: wakeup.NewRuntime,
		Yield:  func([]iptables.Endpoint) error { return nil },
		Reset:  func([]iptables.Endpoint, []string) error { return nil },
		Served: func([]iptables.Endpoint) reconcile.Served { return reconcile.Served{} },
		Kernel: reconcile.Kernel{
			Connections: func([]iptables.Endpoint) ([]iptables.Connection, error) { return nil, nil },
			Held:        func([]iptables.Endpoint) []iptables.Connection { return nil },
			Purge:       func([]iptables.Endpoint) error { return nil },
			Uplinks:     func(iptables.Plan) ([]string, error) { return nil, nil },
			Unowned:     func([]netip.Addr) []netip.Addr { return nil },
			Refresh:     func(iptables.Rules) error { return nil },
			Unblock:     func(iptables.Rules) (map[netip.Addr]error, bool) { return nil, false },
			Adopt:       func([]netip.Addr) (bool, error) { return false, nil },
			Claims:      func() (iptables.Claims, error) { return iptables.Claims{}, nil },
			Unannounced: func() bool { return false },
			Changed:     func() {},
			Explain:     func(netip.Addr) string { return "" },
			Load:        func([]iptables.Endpoint) reconcile.Load { return reconcile.Load{} },
		},
	}
}
