package notrack

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/coredns/caddy"
	clog "github.com/coredns/coredns/plugin/pkg/log"

	"github.com/trackless-dns/trackless/agent/admission"
	"github.com/trackless-dns/trackless/agent/backends"
	"github.com/trackless-dns/trackless/agent/checks"
	"github.com/trackless-dns/trackless/agent/devices"
	"github.com/trackless-dns/trackless/agent/entries"
	"github.com/trackless-dns/trackless/agent/firewall"
	"github.com/trackless-dns/trackless/agent/health"
	"github.com/trackless-dns/trackless/agent/probes"
	"github.com/trackless-dns/trackless/agent/services"
	"github.com/trackless-dns/trackless/agent/sockets"
	"github.com/trackless-dns/trackless/agent/tablewalk"
	"github.com/trackless-dns/trackless/conntrack/ledger"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/hostaddr"
	"github.com/trackless-dns/trackless/iptables/reconcile"
	"github.com/trackless-dns/trackless/iptables/reconcile/lease"
)

var log = clog.NewWithPlugin(directive)

// contract is what this process holds of the node, whatever Corefile is
// loaded: a reload replaces configurations, not the rules.
type contract struct {
	keeper  atomic.Pointer[reconcile.Reconciler] // nil without a notrack block
	served  counters
	ledger  *ledger.Ledger
	serving atomic.Pointer[configuration] // current, for those who must not wait for mu
	asked   probes.Questions

	upstreams upstreams
	misses    health.Monitor
	queries   admission.Queries
	live      probes.Liveness
	table     tablewalk.Watcher
	zones     entries.ZoneSearch

	services services.Services
	standing services.Failover
	reasons  sync.Map // why a backend was chosen, by backend

	mu       sync.Mutex
	accounts accounts
	watch    *backends.Watch
	current  *configuration // the last load that was started
	stopping bool           // the shutdown callbacks have run
}

// counters are of queries, all loads together.
type counters struct{ arrived, answered, overTCP atomic.Uint64 }

var process = contract{ledger: ledger.New(ledger.Config{})}

func init() {
	process.table.Log, process.table.Arrived = log, process.served.arrived.Load
	process.misses.Log = log
	process.services.Log, process.services.Tracked = log, process.zones.Tracked
	process.standing.Services, process.standing.Log = &process.services, log
	// The last step of a stop. caddy runs it after the shutdown callbacks at
	// SIGTERM, before them at SIGINT, alone at SIGQUIT; `trackless serve` runs
	// it when a start failed.
	caddy.OnProcessExit = append(caddy.OnProcessExit, process.exit)
	process.queries.Crowded = func() {
		if k := process.keeper.Load(); k != nil {
			k.Crowded()
		}
	}
}

// covers reports whether DNS to the address is untracked, as far as its effect is
// known. It runs for every query.
func (p *contract) covers(a netip.Addr) bool {
	k := p.keeper.Load()
	return k != nil && k.Untracks(a)
}

// start runs before the listeners of a newly loaded Corefile are opened.
func (p *contract) start(config *configuration) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.begin(config); err != nil {
		if p.current == nil {
			p.forget()
		}
		return config.error(err)
	}
	p.current = config
	config.corefile = loadedCorefile()
	p.serving.Store(config)
	p.upstreams.follow(config)
	followWaits(config, &p.queries)
	p.keepAccounts(config)
	p.keeper.Load().Commit()
	p.misses.Follow(config.health(p.standing.Instead), p.keeper.Load())
	return nil
}

func (p *contract) begin(config *configuration) error {
	if err := devices.Check(config.plan, log); err != nil {
		return err
	}
	b, why := p.inForce(), ""
	if b == nil || !config.backend.Serves(b) {
		var err error
		if b, why, err = config.backend.Open(countSetupError); err != nil {
			return err
		}
	}
	if err := backends.Fit(&config.plan, b, log); err != nil {
		return err
	}
	if p.keeper.Load() == nil {
		if err := p.open(config, b); err != nil {
			return err
		}
	}
	checker := checks.New(checks.Config{
		Identity: config.identity, Listen: config.plan.Listen, Zones: config.zones, Sockets: config.sockets,
		Tracked: p.zones.Tracked, Mostly: p.table.MostlyTracked, Progress: progress, Throttled: throttled,
	})
	if err := p.keeper.Load().PrepareOn(b, config.plan, checker); err != nil {
		return err
	}
	p.watch.Follow(b)
	if why != "" {
		p.reasons.Store(b, why)
		backends.Announce(b, why, log)
	}
	return p.failover(config)
}

// open makes what lasts from the first load with notrack to the last.
func (p *contract) open(config *configuration, b iptables.Backend) error {
	var err error
	if p.watch, err = backends.StartWatch(); err != nil {
		return err
	}
	follower := &devices.Follower{Log: log}
	p.keeper.Store(reconcile.New(reconcile.Config{
		Backend:   b,
		Addresses: hostaddr.New(hostaddr.Config{Keep: config.keep, Claims: backends.Claims, Log: log.Infof}, config.plan.Link),
		Log:       log,
		Served:    p.whatIsServed,
		Yield:     sockets.LeaveToOthers,
		Reset:     sockets.Reset,
		Sync:      config.sync,
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
			MakeWay: (&firewall.Opener{Log: log}).Open,
			Adopt:   (&backends.Adopter{Log: log, Count: countSetupError}).Adopt,
			Claims:  backends.Claims,
			Explain: firewall.Explain,
			Load: func(endpoints []iptables.Endpoint) lease.Load {
				return p.queries.Load(endpoints, p.served.arrived.Load, log)
			},
		},
	}))
	return nil
}

// whatIsServed tells a stop what to wait for.
func (p *contract) whatIsServed(listen []iptables.Endpoint) reconcile.Served {
	answered := p.served.answered.Load() // first, so that it is never more than arrived
	return reconcile.Served{
		Answered:    answered,
		Arrived:     p.served.arrived.Load(),
		OverTCP:     p.served.overTCP.Load(),
		Connections: len(sockets.Connections(listen)),
	}
}

// refresh brings up to date, at every sync, what nobody announces.
func (p *contract) refresh(r iptables.Rules) error {
	timeouts, err := ledger.ReadTimeouts("/proc")
	if err == nil {
		p.ledger.SetTimeouts(timeouts)
	}
	p.misses.Recheck()
	return p.standing.Install(r)
}

// failover puts the standing table in place. It stands back as soon as queries
// are untracked.
func (p *contract) failover(config *configuration) error {
	p.standing.Choose(config.failover, config.plan, forwardTargets(config))
	r := iptables.Rules{Plan: config.plan}
	names, err := devices.UplinksOf(config.plan)
	if err == nil {
		r.Uplinks = names
		err = p.refresh(r)
	}
	if err != nil {
		var unsupported *iptables.UnsupportedError
		if errors.As(err, &unsupported) {
			log.Warningf("no failover for link-local addresses: %v", err)
			p.standing.Forget()
			return nil
		}
		return errors.Join(err, p.keeper.Load().Rollback())
	}
	return nil
}

func (p *contract) forget() {
	p.closeAccounts()
	p.misses.Follow(nil, nil)
	if p.watch != nil {
		p.watch.Close()
		p.watch = nil
	}
	p.keeper.Store(nil)
	p.reasons.Clear()
	p.current = nil
	p.serving.Store(nil)
	p.upstreams.follow(nil)
}

// restartFailed runs on the configuration that stays in force.
func (p *contract) restartFailed(config *configuration) error {
	config.leaving.Store(false)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.current == nil {
		return nil
	}
	p.current = config
	p.serving.Store(config)
	p.upstreams.follow(config)
	defer p.keepAccounts(config)
	err := p.keeper.Load().Rollback()
	p.watch.Follow(p.inForce())
	err = errors.Join(err, p.failover(config))
	p.misses.Follow(config.health(p.standing.Instead), p.keeper.Load())
	return err
}

// shutdown runs when a configuration's servers stop: at the end, before they
// do, or after a reload, when they have.
func (p *contract) shutdown(config *configuration) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.current != config {
		return nil // a later load has taken over
	}
	// What fails on the way keeps nothing of the rest from being taken away.
	k := p.keeper.Load()
	err := k.Detach()
	if config.running() {
		// The process ends. Its servers still answer what is under way, so
		// rules for responses and addresses stay until exit.
		p.stopping = true
	} else {
		// A Corefile without notrack was loaded.
		p.forget()
		err = errors.Join(err, k.Close())
	}
	if err != nil {
		return config.error(err)
	}
	return nil
}

// running reports whether caddy still runs an instance with this configuration.
func (c *configuration) running() bool {
	return slices.ContainsFunc(caddy.Instances(), func(i *caddy.Instance) bool {
		i.StorageMu.RLock()
		defer i.StorageMu.RUnlock()
		return i.Storage[configurationKey{}] == c
	})
}

// exit takes everything of ours off the node: query rules, what is under way,
// listeners, response rules, addresses. The failover table stays.
func (p *contract) exit() {
	p.mu.Lock()
	defer p.mu.Unlock()
	k := p.keeper.Load()
	if k == nil {
		return
	}
	if err := k.Detach(); err != nil {
		log.Errorf("stop: %v", err)
	}
	if p.stopping {
		// An answer that leaves after the response rules went would be tracked
		// as a flow of its own and catch the client's next queries.
		stopAll(p.current.askedServers())
		for _, i := range slices.Clone(caddy.Instances()) {
			if err := i.Stop(); err != nil {
				log.Errorf("stop: %v", err)
			}
		}
	}
	// One may have been killed beside us since the last look.
	if err := errors.Join(k.Close(), backends.RemoveStale(log)); err != nil {
		log.Errorf("stop: %v", err)
	}
	p.misses.Follow(nil, nil)
	p.upstreams.follow(nil)
	p.closeAccounts()
}

// stopper is a server as a stop sees it.
type stopper interface{ Stop() error }

// stopAll stops servers at once. caddy does so one after the other, and each whose
// queries hang takes 5 s: together longer than kubelet waits for a container. Their
// errors come up again when caddy stops them.
func stopAll(servers []stopper) {
	var wg sync.WaitGroup
	for _, s := range servers {
		wg.Go(func() { _ = s.Stop() })
	}
	wg.Wait()
}

// error names the directive and the line of the Corefile.
func (c *configuration) error(err error) error {
	return fmt.Errorf("plugin/%s: Corefile line %d: %w", directive, c.line, err)
}

// inForce is the keeper's backend; nil without a keeper.
func (p *contract) inForce() iptables.Backend {
	k := p.keeper.Load()
	if k == nil {
		return nil
	}
	return k.Backend()
}

// progress counts the queries that were answered, over all listeners.
func progress() uint64 { return process.served.answered.Load() - process.queries.Dropped() }

// throttled tells whether a CPU limit was used up a moment ago.
func throttled() bool { return process.queries.Throttled() }
