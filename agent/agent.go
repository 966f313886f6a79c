// Package agent owns the state of this process on its node: rules, addresses, and the
// tasks that watch them. Each package below it has one subject.
package agent

import (
	"errors"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/trackless-dns/trackless/agent/admission"
	"github.com/trackless-dns/trackless/agent/checks"
	"github.com/trackless-dns/trackless/agent/devices"
	"github.com/trackless-dns/trackless/agent/entries"
	"github.com/trackless-dns/trackless/agent/fairness"
	"github.com/trackless-dns/trackless/agent/firewall"
	"github.com/trackless-dns/trackless/agent/health"
	"github.com/trackless-dns/trackless/agent/names"
	"github.com/trackless-dns/trackless/agent/probes"
	"github.com/trackless-dns/trackless/agent/ruleset"
	"github.com/trackless-dns/trackless/agent/services"
	"github.com/trackless-dns/trackless/agent/sockets"
	"github.com/trackless-dns/trackless/agent/succession"
	"github.com/trackless-dns/trackless/agent/tablewalk"
	"github.com/trackless-dns/trackless/agent/tally"
	"github.com/trackless-dns/trackless/conntrack/ledger"
	"github.com/trackless-dns/trackless/fastpath"
	"github.com/trackless-dns/trackless/internal/logger"
	"github.com/trackless-dns/trackless/internal/wakeup"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/control"
	"github.com/trackless-dns/trackless/iptables/hostaddr"
	"github.com/trackless-dns/trackless/iptables/legacy"
	"github.com/trackless-dns/trackless/iptables/nftables"
	"github.com/trackless-dns/trackless/iptables/reconcile"
	"github.com/trackless-dns/trackless/iptables/reconcile/lease"
	"github.com/trackless-dns/trackless/iptables/route"
)

// Agent owns the rules and addresses of this process. A process has one Agent for all
// Corefiles: a reload replaces the [Load], not the rules. Start, RestartFailed, Shutdown
// and Exit are its lifecycle; its other methods and fields are safe for concurrent use.
type Agent struct {
	Ledger  *ledger.Ledger
	Queries *admission.Queries
	Asked   probes.Questions // of readiness probes
	Health  health.Monitor
	Table   tablewalk.Watcher
	Tally   tally.Tally

	// FastPath returns what the kernel answers, for the control socket. It must be set
	// before the first load; nil: nothing.
	FastPath func() *control.FastPath
	// FastPathSockets reports whether a fast path has UDP sockets at an address, and chooses
	// those that get queries. It must be set before the first load; nil: there are none.
	FastPathSockets func(netip.AddrPort) bool

	// Accountant counts the queries to this process.
	Accountant fastpath.Accountant

	// States are given to the instance that replaces this one, and Caches have the names that
	// are asked most. Both must be set before the first load; Caches may be nil.
	States     []State
	Caches     Caches
	Succession succession.Succession

	config     Config
	log        logger.Logger
	reconciler atomic.Pointer[reconcile.Reconciler] // nil without a notrack block
	serving    atomic.Pointer[Load]                 // current, for readers that must not wait for mu

	upstreams upstreams
	live      probes.Liveness
	zones     entries.ZoneSearch
	lost      sockets.Dropped
	guard     sockets.Guard
	udp       sockets.UDPListeners
	steering  sockets.Steering

	names       names.Keeper
	recallBegun atomic.Bool // by the first load
	recalled    atomic.Pointer[names.Figures]

	guardLimits sync.Once // the memory limit is set after New

	services services.Services
	standing services.Failover
	reasons  sync.Map // why a backend was chosen, by backend
	gate     fastpath.Gate

	mu       sync.Mutex
	gated    bool // a fast path has joined the gate
	accounts accounts
	watch    *nftables.Watcher
	current  *Load // the last load that was started
	stopping bool  // the shutdown callbacks have run
}

// Config configures an Agent.
type Config struct {
	Log logger.Logger

	// CountSetupError counts failures to change the node: "iptables_lock" where
	// another program holds the xtables lock, "iptables" for other failures of
	// iptables' programs.
	CountSetupError func(errorType string)

	// Listeners returns the UDP addresses of the running servers, as a client of this
	// node reaches them.
	Listeners func() []netip.AddrPort

	// Queries bounds the queries of this process; nil: the agent makes one.
	Queries *admission.Queries

	// Search counts the queries of search paths. It may be nil.
	Search func() control.SearchFigures
}

// New returns an Agent. It changes nothing on the node.
func New(c Config) *Agent {
	p := &Agent{config: c, log: c.Log, Ledger: ledger.New(ledger.Config{}), lost: sockets.Dropped{Proc: "/proc"}}
	p.Table.Log, p.Table.Arrived = c.Log, p.Accountant.Arrived
	p.Accountant.Ledger, p.Accountant.OnHits = p.Ledger, p.tallyHits
	p.Accountant.Untracked, p.Accountant.Idle = p.Covers, p.Table.Idle
	p.Health.Log = c.Log
	p.Succession.Log, p.Succession.Offers, p.Succession.Wants = c.Log, p.offers, p.wants
	p.names.Log, p.names.Hottest = c.Log, p.hottest
	p.upstreams.log = c.Log
	p.services.Log, p.services.Tracked = c.Log, p.zones.Tracked
	p.standing.Services, p.standing.Log = &p.services, c.Log
	p.steering.Log, p.steering.Serves, p.steering.Elsewhere = c.Log, p.serves, p.hasFastSockets
	if p.Queries = c.Queries; p.Queries == nil {
		p.Queries = &admission.Queries{Offenders: fairness.Offenders{Log: c.Log}}
	}
	p.watchQueries()
	return p
}

// Released reports whether new queries go to another server from now on.
func (p *Agent) Released() bool {
	k := p.reconciler.Load()
	return k != nil && k.Released()
}

// Rules returns the reconciler, its backend, and why that backend was chosen. They are
// nil without a notrack block.
func (p *Agent) Rules() (reconciler *reconcile.Reconciler, backend iptables.Backend, reason string) {
	reconciler, backend = p.reconciler.Load(), p.inForce()
	why, _ := p.reasons.Load(backend)
	reason, _ = why.(string)
	return reconciler, backend, reason
}

// Covers reports whether DNS to the address is untracked, as far as we know. It runs for
// every query.
func (p *Agent) Covers(a netip.Addr) bool {
	k := p.reconciler.Load()
	return k != nil && k.Untracks(a)
}

// Listening returns the endpoints of the load in force for queries over UDP.
func (p *Agent) Listening() []iptables.Endpoint {
	load := p.serving.Load()
	if load == nil {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(load.Plan.Listen), func(e iptables.Endpoint) bool { return e.Proto != iptables.UDP })
}

// Uplinks returns the devices that lead to the rest of the world: those that routes tell,
// and those that the load in force names.
func (p *Agent) Uplinks(lists *route.Lists) ([]string, error) {
	links, routes, _, err := lists.Read()
	if err != nil {
		return nil, err
	}
	names := devices.UplinksAmong(links, routes)
	if load := p.serving.Load(); load != nil {
		names = append(names, load.Plan.Uplinks...)
	}
	return names, nil
}

// Start applies a load. It runs before the listeners of its Corefile open.
func (p *Agent) Start(load *Load) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.begin(load); err != nil {
		if p.current == nil {
			p.forget()
		}
		return load.Server.Error(err)
	}
	p.current = load
	p.serving.Store(load)
	p.upstreams.follow(load)
	p.keepAccounts(load)
	p.reconciler.Load().Commit()
	p.Health.Follow(p.healthOf(load), p.reconciler.Load())
	return nil
}

func (p *Agent) begin(load *Load) error {
	if err := devices.Check(load.Plan, p.log); err != nil {
		return err
	}
	b, why := p.inForce(), ""
	if b == nil || !load.Backend.Serves(b) {
		var err error
		if b, why, err = load.Backend.Open(p.config.CountSetupError); err != nil {
			return err
		}
	}
	if err := ruleset.Fit(&load.Plan, b, p.log); err != nil {
		return err
	}
	if p.reconciler.Load() == nil {
		if err := p.open(load, b); err != nil {
			return err
		}
	}
	checker := checks.New(checks.Config{
		Identity: load.Identity, Listen: load.Plan.Listen, Zones: load.Zones, Sockets: load.Sockets,
		Tracked: p.zones.Tracked, Mostly: p.Table.MostlyTracked, Waiting: new(sockets.Listeners).Waiting, Shared: sockets.Shared,
		Progress: p.progress, Lost: p.lost.Count, Throttled: p.Queries.Throttled,
	})
	if err := p.reconciler.Load().PrepareOn(b, load.Plan, checker); err != nil {
		return err
	}
	if why != "" {
		p.reasons.Store(b, why)
		ruleset.Announce(b, why, p.log)
	}
	return p.failover(load)
}

// open makes the watch and the reconciler. They last until the last load with notrack ends.
func (p *Agent) open(load *Load, b iptables.Backend) error {
	var err error
	if p.watch, err = nftables.Watch(nftables.Config{}); err != nil {
		return err
	}
	follower := &devices.Follower{Log: p.log}
	p.reconciler.Store(reconcile.New(reconcile.Config{
		Backend:   b,
		Addresses: hostaddr.New(hostaddr.Config{Keep: load.Keep, Claims: ruleset.Claims, Log: p.log.Infof}, load.Plan.Link),
		Log:       p.log,
		Served:    p.served,
		Yield:     p.yield,
		Reset:     sockets.Reset,
		Queries:   p.Accountant.Arrived,
		Sync:      load.Sync,
		Changes:   p.watch.Changes,
		NewTimer:  wakeup.New,
		Kernel: reconcile.Kernel{
			Connections: func(endpoints []iptables.Endpoint) ([]iptables.Connection, error) {
				return entries.Connections(endpoints, p.standing.Pairs())
			},
			Held:        sockets.Connections,
			Purge:       entries.PurgeReversed,
			Uplinks:     follower.Uplinks,
			Unowned:     p.services.Unowned,
			Refresh:     p.refresh,
			Unblock:     (&firewall.Opener{Log: p.log}).Open,
			Adopt:       p.adopter(),
			Claims:      ruleset.Claims,
			Explain:     firewall.Explain,
			Unannounced: legacy.InUse,
			Changed:     p.zones.RulesChanged,
			Load: func(endpoints []iptables.Endpoint) lease.Load {
				return p.Queries.Load(endpoints, p.Accountant.Arrived, p.log)
			},
		},
	}))
	if p.gated {
		p.reconciler.Load().OnLeases(p.gate.Held)
	}
	return nil
}

// JoinGate tells a fast path, until it leaves, until when the lease of each listen address
// is held: only until then it may answer there. tell runs under locks: it must not wait,
// nor do I/O.
func (p *Agent) JoinGate(tell func(a netip.Addr, until time.Time)) (leave func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	leave = p.gate.Join(tell)
	p.gated = true
	if k := p.reconciler.Load(); k != nil {
		k.OnLeases(p.gate.Held)
	}
	return leave
}

// served counts the queries that a stop must wait for.
func (p *Agent) served(listen []iptables.Endpoint) reconcile.Served {
	answered := p.Accountant.Answered() // read first: it must not exceed Arrived
	return reconcile.Served{
		Answered:    answered,
		Arrived:     p.Accountant.Arrived(),
		OverTCP:     p.Accountant.OverTCP(),
		Connections: len(sockets.Connections(listen)),
	}
}

// refresh updates at every sync what the kernel does not announce.
func (p *Agent) refresh(r iptables.Rules) error {
	timeouts, err := ledger.ReadTimeouts("/proc")
	if err == nil {
		p.Ledger.SetTimeouts(timeouts)
	}
	p.Health.Recheck()
	return p.standing.Install(r)
}

// failover installs the standing failover table. The table has no effect on untracked
// queries.
func (p *Agent) failover(load *Load) error {
	p.standing.Choose(load.Failover, load.Plan, load.forwardTargets())
	r := iptables.Rules{Plan: load.Plan}
	names, err := devices.UplinksOf(load.Plan)
	if err == nil {
		r.Uplinks = names
		err = p.refresh(r)
	}
	if err != nil {
		var unsupported *iptables.UnsupportedError
		if errors.As(err, &unsupported) {
			p.log.Warningf("no failover for link-local addresses while this process is down: %v", err)
			p.standing.Forget()
			return nil
		}
		return errors.Join(err, p.reconciler.Load().Rollback())
	}
	return nil
}

// forget ends everything that open and Start have begun.
func (p *Agent) forget() {
	p.closeAccounts()
	p.guard.Close()
	p.steering.Release()
	p.Health.Follow(nil, nil)
	p.Succession.Follow(nil, 0)
	p.names.Follow("")
	if p.watch != nil {
		p.watch.Close()
		p.watch = nil
	}
	p.reconciler.Store(nil)
	p.gate.Close()
	p.reasons.Clear()
	p.current = nil
	p.serving.Store(nil)
	p.upstreams.follow(nil)
}

// RestartFailed restores a load after a reload failed. The load stays in force.
func (p *Agent) RestartFailed(load *Load) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if load == nil || p.current == nil {
		return nil
	}
	p.current = load
	p.serving.Store(load)
	p.upstreams.follow(load)
	defer p.keepAccounts(load)
	err := p.reconciler.Load().Rollback()
	err = errors.Join(err, p.failover(load))
	p.Health.Follow(p.healthOf(load), p.reconciler.Load())
	p.Succeed(load)
	p.Recall(load)
	return err
}

// Shutdown ends a load. At the end of the process it runs before the load's servers
// stop; after a reload it runs when they have stopped.
func (p *Agent) Shutdown(load *Load) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if load == nil || p.current != load {
		return nil // it was not started, or a later load is in force
	}
	// If one step fails, the others run all the same.
	k := p.reconciler.Load()
	ends := load.Server.Running()
	if ends {
		p.Succession.Again() // caches close next
	}
	err := k.Detach()
	p.names.End() // the caches are closed soon
	if ends {
		// The process ends. Its servers still answer queries under way, so the
		// rules for responses and the addresses stay until Exit.
		p.stopping = true
	} else {
		// A Corefile without notrack was loaded.
		p.forget()
		err = errors.Join(err, k.Close())
	}
	if err != nil {
		return load.Server.Error(err)
	}
	return nil
}

// Exit removes everything of ours from the node, in this order: rules for queries,
// listeners, rules for responses, addresses. Queries under way are answered before the
// listeners close. The failover table stays.
func (p *Agent) Exit() {
	p.mu.Lock()
	defer p.mu.Unlock()
	k := p.reconciler.Load()
	if k == nil {
		return
	}
	if err := k.Detach(); err != nil {
		p.log.Errorf("stop: %v", err)
	}
	p.names.End() // without an effect if Shutdown has run
	if p.stopping {
		// Without the rules for responses a late answer would be tracked as a flow
		// of its own. The client's next queries would match that entry.
		p.current.Server.Stop()
	}
	p.Succession.End()
	// Another instance may have been killed since the last sync.
	if err := errors.Join(k.Close(), ruleset.RemoveStale(p.log)); err != nil {
		p.log.Errorf("stop: %v", err)
	}
	p.steering.Release()
	p.Health.Follow(nil, nil)
	p.upstreams.follow(nil)
	p.closeAccounts()
}

// inForce returns the reconciler's backend; nil without a reconciler.
func (p *Agent) inForce() iptables.Backend {
	k := p.reconciler.Load()
	if k == nil {
		return nil
	}
	return k.Backend()
}

// progress returns how many queries were answered, over all listeners.
func (p *Agent) progress() uint64 { return p.Accountant.Answered() - p.Queries.Dropped() }

// healthOf returns the configuration of upstream health for a load.
func (p *Agent) healthOf(load *Load) *health.Config {
	return &health.Config{Blocks: load.Server.Blocks, Listen: load.Plan.Listen, DryRun: load.Plan.DryRun, FailoverTo: p.standing.To}
}
