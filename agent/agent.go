// Package agent is what this process holds of the node: rules, addresses and what
// follows them, with one owner. Packages below it say one thing each.
package agent

import (
	"context"
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
	"github.com/trackless-dns/trackless/agent/firewall"
	"github.com/trackless-dns/trackless/agent/health"
	"github.com/trackless-dns/trackless/agent/probes"
	"github.com/trackless-dns/trackless/agent/ruleset"
	"github.com/trackless-dns/trackless/agent/services"
	"github.com/trackless-dns/trackless/agent/sockets"
	"github.com/trackless-dns/trackless/agent/tablewalk"
	"github.com/trackless-dns/trackless/conntrack/ledger"
	"github.com/trackless-dns/trackless/internal/logger"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/control"
	"github.com/trackless-dns/trackless/iptables/hostaddr"
	"github.com/trackless-dns/trackless/iptables/reconcile"
	"github.com/trackless-dns/trackless/iptables/reconcile/lease"
)

// Agent is what this process holds of the node, whatever Corefile is loaded: a reload
// replaces loads, not the rules. A process has one. Start, RestartFailed, Shutdown and
// Exit are its lifecycle; its other methods and fields are safe for concurrent use.
type Agent struct {
	Served  Counters
	Ledger  *ledger.Ledger
	Asked   probes.Questions // of readiness probes
	Health  health.Monitor
	Queries admission.Queries
	Table   tablewalk.Watcher

	config     Config
	log        logger.Logger
	reconciler atomic.Pointer[reconcile.Reconciler] // nil without a notrack block
	serving    atomic.Pointer[Load]                 // current, for those who must not wait for mu

	upstreams upstreams
	live      probes.Liveness
	zones     entries.ZoneSearch

	services services.Services
	standing services.Failover
	reasons  sync.Map // why a backend was chosen, by backend

	mu       sync.Mutex
	accounts accounts
	watch    *ruleset.Watch
	current  *Load // the last that was started
	stopping bool  // the shutdown callbacks have run
}

// Counters are of queries, all loads together.
type Counters struct{ Arrived, Answered, OverTCP atomic.Uint64 }

// Config is what an Agent works with.
type Config struct {
	Log logger.Logger

	// CountSetupError counts failures to change the node: "iptables_lock" for each
	// time that the xtables lock was not to be had, "iptables" for other failures of
	// its programs.
	CountSetupError func(errorType string)

	// Listeners are the UDP sockets of the running servers, as a client of this node
	// reaches them.
	Listeners func() []netip.AddrPort
}

// Load is what one load of a Corefile asks for. The agent adapts Plan to what the
// kernel can do.
type Load struct {
	Plan     iptables.Plan
	Backend  ruleset.Choice
	Failover string // an address, or one of the settings of [services.Failover]
	Sync     time.Duration
	Keep     bool

	// Zones has, for each listen endpoint that speaks plain DNS, a zone that is served
	// there; for the others, which are checked by connecting, "".
	Zones    map[iptables.Endpoint]string
	Identity *checks.Identity
	Sockets  int           // listening sockets at each endpoint
	Idle     time.Duration // for which silent TCP connections are kept
	Corefile control.Corefile

	Server Server
}

// Server is the DNS server as a load has set it up.
type Server interface {
	// Forwards are the servers that its blocks with notrack ask, in the order of the
	// Corefile.
	Forwards() []netip.AddrPort
	// Blocks are its blocks with notrack.
	Blocks() []health.Block
	// Ask asks every block a check inside the process.
	Ask(context.Context) error
	// Running reports whether the load is in force.
	Running() bool
	// Stop stops all servers of the process.
	Stop()
	// Error names the directive and its line in the Corefile.
	Error(error) error
}

// New returns an Agent that has changed nothing yet.
func New(c Config) *Agent {
	p := &Agent{config: c, log: c.Log, Ledger: ledger.New(ledger.Config{})}
	p.Table.Log, p.Table.Arrived = c.Log, p.Served.Arrived.Load
	p.Health.Log = c.Log
	p.upstreams.log = c.Log
	p.services.Log, p.services.Tracked = c.Log, p.zones.Tracked
	p.standing.Services, p.standing.Log = &p.services, c.Log
	p.Queries.Crowded = func() {
		if k := p.reconciler.Load(); k != nil {
			k.Crowded()
		}
	}
	return p
}

// Released reports whether the queries go elsewhere from now on.
func (p *Agent) Released() bool {
	k := p.reconciler.Load()
	return k != nil && k.Released()
}

// Rules returns what keeps the rules, the backend in force and why it was chosen; nil
// without a notrack block.
func (p *Agent) Rules() (reconciler *reconcile.Reconciler, backend iptables.Backend, reason string) {
	reconciler, backend = p.reconciler.Load(), p.inForce()
	why, _ := p.reasons.Load(backend)
	reason, _ = why.(string)
	return reconciler, backend, reason
}

// Covers reports whether DNS to the address is untracked, as far as its effect is
// known. It runs for every query.
func (p *Agent) Covers(a netip.Addr) bool {
	k := p.reconciler.Load()
	return k != nil && k.Untracks(a)
}

// Start runs before the listeners of a newly loaded Corefile are opened.
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
		Tracked: p.zones.Tracked, Mostly: p.Table.MostlyTracked, Progress: p.progress, Throttled: p.Queries.Throttled,
	})
	if err := p.reconciler.Load().PrepareOn(b, load.Plan, checker); err != nil {
		return err
	}
	p.watch.Follow(b)
	if why != "" {
		p.reasons.Store(b, why)
		ruleset.Announce(b, why, p.log)
	}
	return p.failover(load)
}

// open makes what lasts from the first load with notrack to the last.
func (p *Agent) open(load *Load, b iptables.Backend) error {
	var err error
	if p.watch, err = ruleset.StartWatch(); err != nil {
		return err
	}
	follower := &devices.Follower{Log: p.log}
	p.reconciler.Store(reconcile.New(reconcile.Config{
		Backend:   b,
		Addresses: hostaddr.New(hostaddr.Config{Keep: load.Keep, Claims: ruleset.Claims, Log: p.log.Infof}, load.Plan.Link),
		Log:       p.log,
		Served:    p.whatIsServed,
		Yield:     sockets.LeaveToOthers,
		Reset:     sockets.Reset,
		Sync:      load.Sync,
		Changes:   p.watch.Changes,
		Kernel: reconcile.Kernel{
			Connections: func(endpoints []iptables.Endpoint) ([]iptables.Connection, error) {
				return entries.Connections(endpoints, p.standing.Pairs())
			},
			Held:    sockets.Connections,
			Purge:   entries.PurgeReversed,
			Uplinks: follower.Uplinks,
			Unowned: p.services.Unowned,
			Refresh: p.refresh,
			Unblock: (&firewall.Opener{Log: p.log}).Open,
			Adopt:   (&ruleset.Adopter{Log: p.log, Count: p.config.CountSetupError}).Adopt,
			Claims:  ruleset.Claims,
			Explain: firewall.Explain,
			Load: func(endpoints []iptables.Endpoint) lease.Load {
				return p.Queries.Load(endpoints, p.Served.Arrived.Load, p.log)
			},
		},
	}))
	return nil
}

// whatIsServed tells a stop what to wait for.
func (p *Agent) whatIsServed(listen []iptables.Endpoint) reconcile.Served {
	answered := p.Served.Answered.Load() // first, so that it is never more than arrived
	return reconcile.Served{
		Answered:    answered,
		Arrived:     p.Served.Arrived.Load(),
		OverTCP:     p.Served.OverTCP.Load(),
		Connections: len(sockets.Connections(listen)),
	}
}

// refresh brings up to date, at every sync, what nobody announces.
func (p *Agent) refresh(r iptables.Rules) error {
	timeouts, err := ledger.ReadTimeouts("/proc")
	if err == nil {
		p.Ledger.SetTimeouts(timeouts)
	}
	p.Health.Recheck()
	return p.standing.Install(r)
}

// failover puts the standing table in place. It stands back as soon as queries
// are untracked.
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
			p.log.Warningf("no failover for link-local addresses: %v", err)
			p.standing.Forget()
			return nil
		}
		return errors.Join(err, p.reconciler.Load().Rollback())
	}
	return nil
}

func (p *Agent) forget() {
	p.closeAccounts()
	p.Health.Follow(nil, nil)
	if p.watch != nil {
		p.watch.Close()
		p.watch = nil
	}
	p.reconciler.Store(nil)
	p.reasons.Clear()
	p.current = nil
	p.serving.Store(nil)
	p.upstreams.follow(nil)
}

// RestartFailed runs on the load that stays in force.
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
	p.watch.Follow(p.inForce())
	err = errors.Join(err, p.failover(load))
	p.Health.Follow(p.healthOf(load), p.reconciler.Load())
	return err
}

// Shutdown runs when a load's servers stop: at the end, before they
// do, or after a reload, when they have.
func (p *Agent) Shutdown(load *Load) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if load == nil || p.current != load {
		return nil // it was not started, or a later load has taken over
	}
	// What fails on the way keeps nothing of the rest from being taken away.
	k := p.reconciler.Load()
	err := k.Detach()
	if load.Server.Running() {
		// The process ends. Its servers still answer what is under way, so
		// rules for responses and addresses stay until exit.
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

// Exit takes everything of ours off the node: query rules, what is under way,
// listeners, response rules, addresses. The failover table stays.
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
	if p.stopping {
		// An answer that leaves after the response rules went would be tracked
		// as a flow of its own and catch the client's next queries.
		p.current.Server.Stop()
	}
	// One may have been killed beside us since the last look.
	if err := errors.Join(k.Close(), ruleset.RemoveStale(p.log)); err != nil {
		p.log.Errorf("stop: %v", err)
	}
	p.Health.Follow(nil, nil)
	p.upstreams.follow(nil)
	p.closeAccounts()
}

// inForce is the reconciler's backend; nil without a reconciler.
func (p *Agent) inForce() iptables.Backend {
	k := p.reconciler.Load()
	if k == nil {
		return nil
	}
	return k.Backend()
}

// progress counts the queries that were answered, over all listeners.
func (p *Agent) progress() uint64 { return p.Served.Answered.Load() - p.Queries.Dropped() }

// healthOf is what the upstreams of a load are followed by.
func (p *Agent) healthOf(load *Load) *health.Config {
	return &health.Config{Blocks: load.Server.Blocks, Listen: load.Plan.Listen, DryRun: load.Plan.DryRun, Instead: p.standing.Instead}
}

// forwardTargets are the addresses to which the notrack blocks of the load forward, in
// the order of the Corefile: those of `forward`, and those that `upstream` falls back
// to.
func (l *Load) forwardTargets() []netip.Addr {
	var out []netip.Addr
	for _, ap := range l.Server.Forwards() {
		if !slices.Contains(out, ap.Addr()) {
			out = append(out, ap.Addr())
		}
	}
	return out
}

// plain are the endpoints that speak plain DNS over UDP.
func (l *Load) plain() []netip.AddrPort {
	var out []netip.AddrPort
	for _, e := range l.Plan.Listen {
		if e.Proto == iptables.UDP && l.Zones[e] != "" {
			out = append(out, e.AddrPort())
		}
	}
	return out
}
