package notrack

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coredns/coredns/core/dnsserver"

	"github.com/trackless-dns/trackless/agent/checks"
	"github.com/trackless-dns/trackless/agent/recorder"
	"github.com/trackless-dns/trackless/conntrack/ledger"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/reconcile"
)

// stubNode answers everything and notes what is taken away.
type stubNode struct {
	iptables.Backend // nil: what is not asked for here
	reconcile.Checker

	mu     sync.Mutex
	log    []string
	refuse string // the change that fails
}

func (n *stubNode) do(what string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.log = append(n.log, what)
	if what == n.refuse {
		return errors.New("the kernel refuses to " + what)
	}
	return nil
}

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
func (n *stubNode) Renew(context.Context, netip.Addr) (time.Time, error) {
	return time.Now(), nil
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

// stubConfig is that of a reconciler on a node without anything of others.
func stubConfig(b iptables.Backend, a reconcile.Addresses) reconcile.Config {
	return reconcile.Config{
		Backend: b, Addresses: a, Log: log,
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
			MakeWay:     func(iptables.Rules) (map[netip.Addr]error, bool) { return nil, false },
			Adopt:       func([]netip.Addr) (bool, error) { return false, nil },
			Claims:      func() (iptables.Claims, error) { return iptables.Claims{}, nil },
			Explain:     func(netip.Addr) string { return "" },
			Load:        func([]iptables.Endpoint) reconcile.Load { return reconcile.Load{} },
		},
	}
}

func TestReloadWithoutNotrackTakesEverythingAway(t *testing.T) {
	for _, refused := range []string{"", "detach", "remove rules", "remove addresses"} {
		t.Run("refused: "+refused, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := &stubNode{refuse: refused}
				config := &configuration{}
				p := &contract{current: config, ledger: ledger.New(ledger.Config{})}
				k := reconcile.New(stubConfig(stubBackend{n}, stubAddresses{n}))
				p.keeper.Store(k)
				plan := iptables.Plan{Listen: []iptables.Endpoint{{Addr: netip.MustParseAddr("10.96.0.10"), Port: 53, Proto: iptables.UDP}}, Lease: time.Second}
				if err := k.Prepare(plan, n); err != nil {
					t.Fatal(err)
				}
				k.Commit()
				for k.State() != reconcile.Attached {
					time.Sleep(time.Millisecond)
				}

				err := p.shutdown(config)
				if (err != nil) != (refused != "") || err != nil && !strings.Contains(err.Error(), refused) {
					t.Errorf("error %v", err)
				}
				if want := []string{"detach", "remove rules", "remove addresses"}; !slices.Equal(n.log, want) {
					t.Errorf("taken away: %q, want %q", n.log, want)
				}
				if p.keeper.Load() != nil {
					t.Error("the next Corefile with notrack would meet the old keeper")
				}
			})
		})
	}
}

// meeting is a server whose stop takes until all others have begun theirs.
type meeting struct{ begun *sync.WaitGroup }

func (m meeting) Stop() error {
	m.begun.Done()
	m.begun.Wait()
	return nil
}

func TestServersStopAtOnce(t *testing.T) {
	synctest.Test(t, func(*testing.T) { // one after the other would be a deadlock
		var begun sync.WaitGroup
		begun.Add(3)
		m := meeting{&begun}
		stopAll([]stopper{m, m, m})
	})
}

func TestServersAreKnownByTheirChecks(t *testing.T) {
	config, err := newConfiguration()
	if err != nil {
		t.Fatal(err)
	}
	n := &NoTrack{config: config, block: &dnsserver.Config{}}
	var want []stopper
	for range 2 {
		s := new(dnsserver.Server)
		want = append(want, s)
		for range 2 {
			ctx := context.WithValue(t.Context(), dnsserver.Key{}, s)
			if _, err := n.answerProbe(ctx, &recorder.Recorder{}, config.identity.Query(checks.CheckLabel, "."), checks.Probe{Check: true, Own: true}); err != nil {
				t.Fatal(err)
			}
		}
	}
	got := config.askedServers()
	if len(got) != len(want) || !slices.Contains(got, want[0]) || !slices.Contains(got, want[1]) {
		t.Errorf("%d servers, want %d", len(got), len(want))
	}
}
