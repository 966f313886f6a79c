package agent

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/reconcile"
	"github.com/trackless-dns/trackless/iptables/reconcile/reconciletest"
)

// stubNode answers everything and records removals.
type stubNode struct {
	iptables.Backend // nil: its other methods are not called here
	reconcile.Checker

	mu     sync.Mutex
	log    []string
	refuse string // the change that fails
}

func (n *stubNode) do(change string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.log = append(n.log, change)
	if change == n.refuse {
		return refusedError(change)
	}
	return nil
}

// refusedError has the change that failed.
type refusedError string

func (e refusedError) Error() string { return "the kernel refuses to " + string(e) }

func (n *stubNode) Install(iptables.Rules) error       { return nil }
func (n *stubNode) Exempt([]iptables.Connection) error { return nil }
func (n *stubNode) Detach([]iptables.Connection) error { return n.do("detach") }
func (n *stubNode) Name() string                       { return "stub" }
func (n *stubNode) Table() string                      { return "stub" }
func (n *stubNode) Owned() bool                        { return true }
func (n *stubNode) Capabilities() (iptables.Capabilities, error) {
	return iptables.Capabilities{}, nil
}
func (n *stubNode) Present() (bool, error) { return true, nil }

func (n *stubNode) Reserve([]netip.Addr) ([]iptables.Check, []iptables.Lease, error) {
	return nil, nil, nil
}
func (n *stubNode) Check(context.Context, iptables.Endpoint) error { return nil }
func (n *stubNode) IsDue(iptables.Endpoint) bool                   { return false }
func (n *stubNode) Renew(_ context.Context, addrs []netip.Addr, result func(netip.Addr, time.Time, error)) {
	for _, a := range addrs {
		result(a, time.Now(), nil)
	}
}
func (n *stubNode) Effect(context.Context, netip.Addr) error { return nil }
func (n *stubNode) Close() error                             { return nil }

type stubBackend struct{ *stubNode }

func (b stubBackend) Remove() error { return b.do("remove rules") }

type stubAddresses struct{ *stubNode }

func (stubAddresses) Ensure([]netip.Addr) error                  { return nil }
func (stubAddresses) Missing([]netip.Addr) ([]netip.Addr, error) { return nil, nil }
func (stubAddresses) Down() (bool, error)                        { return false, nil }
func (stubAddresses) SetUp() error                               { return nil }
func (stubAddresses) PreferSource() error                        { return nil }
func (stubAddresses) Release([]netip.Addr) error                 { return nil }
func (stubAddresses) Left([]netip.Addr) ([]netip.Addr, error)    { return nil, nil }
func (stubAddresses) Clear([]netip.Addr) error                   { return nil }
func (a stubAddresses) Remove() error                            { return a.do("remove addresses") }

func TestReloadWithoutNotrackRemovesEverything(t *testing.T) {
	for _, refused := range []string{"", "detach", "remove rules", "remove addresses"} {
		t.Run("refused: "+refused, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := &stubNode{refuse: refused}
				config := &Load{Server: gone{}}
				p := New(Config{Log: quiet{}})
				p.current = config
				k := reconcile.New(reconciletest.Config(stubBackend{n}, stubAddresses{n}, quiet{}))
				p.reconciler.Store(k)
				plan := iptables.Plan{Listen: []iptables.Endpoint{{Addr: netip.MustParseAddr("10.96.0.10"), Port: 53, Proto: iptables.UDP}}, Lease: time.Second}
				if err := k.Prepare(plan, n); err != nil {
					t.Fatal(err)
				}
				k.Commit()
				for k.State() != reconcile.Attached {
					time.Sleep(time.Millisecond)
				}

				err := p.Shutdown(config)
				var got refusedError
				if errors.As(err, &got); string(got) != refused || (err != nil) != (refused != "") {
					t.Errorf("error %v", err)
				}
				if want := []string{"detach", "remove rules", "remove addresses"}; !slices.Equal(n.log, want) {
					t.Errorf("removed: %q, want %q", n.log, want)
				}
				if p.reconciler.Load() != nil {
					t.Error("the next Corefile with notrack would use the old reconciler")
				}
			})
		})
	}
}

// gone is the server of a load that is no longer in force.
type gone struct{ Server }

func (gone) Running() bool         { return false }
func (gone) Error(err error) error { return err }

// quiet is a log that discards everything.
type quiet struct{}

func (quiet) Debugf(string, ...any)   {}
func (quiet) Infof(string, ...any)    {}
func (quiet) Warningf(string, ...any) {}
func (quiet) Errorf(string, ...any)   {}
