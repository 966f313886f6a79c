package notrack

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/coredns/caddy"
	clog "github.com/coredns/coredns/plugin/pkg/log"

	"github.com/trackless-dns/trackless/conntrack/ledger"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/hostaddr"
	"github.com/trackless-dns/trackless/iptables/nft"
)

var log = clog.NewWithPlugin(directive)

// contract is what this process holds of the node, whatever Corefile is
// loaded: a reload replaces configurations, not the rules.
type contract struct {
	keeper  atomic.Pointer[iptables.Keeper] // nil without a notrack block
	backend atomic.Pointer[nft.Backend]
	pending atomic.Int64 // queries being answered
	ledger  *ledger.Ledger

	mu       sync.Mutex
	current  *configuration // the last load that was started
	stopping bool           // the shutdown callbacks have run
}

var process = contract{ledger: newLedger()}

// newLedger reads the timeouts that the kernel would apply.
func newLedger() *ledger.Ledger {
	timeouts, err := ledger.ReadTimeouts("/proc")
	if err != nil {
		log.Debugf("conntrack timeouts: %v; the kernel's defaults are assumed", err)
	}
	return ledger.New(ledger.Config{Timeouts: timeouts})
}

func init() {
	// The last step of a stop. caddy runs it after the shutdown callbacks at
	// SIGTERM, before them at SIGINT, alone at SIGQUIT; `trackless serve` runs
	// it when a start failed.
	caddy.OnProcessExit = append(caddy.OnProcessExit, process.exit)
}

// covers reports whether DNS to the address is untracked. It runs for every
// query.
func (p *contract) covers(a netip.Addr) bool {
	k := p.keeper.Load()
	return k != nil && k.Covers(a)
}

// start runs before the listeners of a newly loaded Corefile are opened.
func (p *contract) start(config *configuration) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	k := p.keeper.Load()
	if k == nil {
		backend, err := nft.New(nft.Config{})
		if err != nil {
			return config.error(err)
		}
		k = iptables.NewKeeper(iptables.Config{
			Backend:   backend,
			Addresses: hostaddr.New(hostaddr.Config{}, config.plan.Link),
			Log:       log,
			Pending:   p.pending.Load,
		})
		p.backend.Store(backend)
		p.keeper.Store(k)
	}
	if err := k.Prepare(config.plan, newChecker(config)); err != nil {
		if p.current == nil {
			p.forget()
		}
		return config.error(err)
	}
	if p.current == nil {
		p.announce()
	}
	p.current = config
	k.Commit()
	return nil
}

// announce says once which backend was chosen and what it cannot promise.
func (p *contract) announce() {
	b := p.backend.Load()
	if b.Owned() {
		log.Infof("backend %s: table inet %s, bound to the life of this process", b.Name(), b.Table())
		return
	}
	log.Warningf("backend %s: table inet %s. This kernel has no owned tables (they came with Linux 5.12): after a SIGKILL the rules stay until the next start, and DNS to the listen addresses fails until then",
		b.Name(), b.Table())
}

func (p *contract) forget() {
	p.keeper.Store(nil)
	p.backend.Store(nil)
	p.current = nil
}

// restartFailed runs on the configuration that stays in force.
func (p *contract) restartFailed(config *configuration) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.current == nil {
		return nil
	}
	p.current = config
	return p.keeper.Load().Rollback()
}

// shutdown runs when a configuration's servers stop: at the end, before they
// do, or after a reload, when they have.
func (p *contract) shutdown(config *configuration) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.current != config {
		return nil // a later load has taken over
	}
	k := p.keeper.Load()
	if err := k.Detach(); err != nil {
		return config.error(err)
	}
	if config.running() {
		// The process ends. Its servers still answer what is under way, so
		// rules for responses and addresses stay until exit.
		p.stopping = true
		return nil
	}
	// A Corefile without notrack was loaded.
	p.forget()
	if err := k.Close(); err != nil {
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
// listeners, response rules, addresses.
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
		for _, i := range slices.Clone(caddy.Instances()) {
			if err := i.Stop(); err != nil {
				log.Errorf("stop: %v", err)
			}
		}
	}
	if err := k.Close(); err != nil {
		log.Errorf("stop: %v", err)
	}
}

// error names the directive and the line of the Corefile.
func (c *configuration) error(err error) error {
	return fmt.Errorf("plugin/%s: Corefile line %d: %w", directive, c.line, err)
}
