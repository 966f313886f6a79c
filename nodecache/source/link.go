package source

import (
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/coredns/caddy"
	clog "github.com/coredns/coredns/plugin/pkg/log"

	"github.com/trackless-dns/trackless/agent/ruleset"
	"github.com/trackless-dns/trackless/iptables/hostaddr"
	"github.com/trackless-dns/trackless/nodecache"
)

// link puts the addresses on the node where notrack does not, and restores them at
// every -syncinterval. As with node-cache, DNS is served whatever becomes of them:
// the process may not be allowed to, and need not where they are there already or
// where it listens elsewhere.
type link struct {
	addrs  []netip.Addr
	every  time.Duration
	errors *errorCount

	mu            sync.Mutex
	host          *hostaddr.Host
	lastComplaint string // is logged once
	removed       bool
}

func newLink(o *nodecache.Options, e *errorCount) *link {
	return &link{
		addrs: o.LocalIPs, every: o.SyncInterval, errors: e,
		host: hostaddr.New(hostaddr.Config{Keep: o.SkipTeardown, Claims: ruleset.Claims, Log: clog.Infof}, o.InterfaceName),
	}
}

func (i *link) start() {
	i.ensure()
	caddy.OnProcessExit = append(caddy.OnProcessExit, i.remove)
	go func() {
		for range time.Tick(i.every) {
			i.ensure()
		}
	}()
}

// ensure counts every failure, and says the same one once.
func (i *link) ensure() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.removed {
		return
	}
	err := i.host.Ensure(i.addrs)
	switch {
	case err != nil:
		i.errors.count(errorInterfaceAdd)
		if err.Error() != i.lastComplaint {
			clog.Errorf("-setupinterface: %v; DNS is served without, and it is tried again every %s: add NET_ADMIN to the container's capabilities if that is missing, or set -setupinterface=false", err, i.every)
			i.lastComplaint = err.Error()
		}
	case i.lastComplaint != "":
		clog.Infof("-setupinterface: the addresses are on %s", i.host.Device())
		i.lastComplaint = ""
	}
}

// remove takes the addresses away when nobody listens there any more.
func (i *link) remove() {
	for _, instance := range slices.Clone(caddy.Instances()) {
		if err := instance.Stop(); err != nil {
			clog.Errorf("stop: %v", err)
		}
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.removed = true
	if err := i.host.Remove(); err != nil {
		clog.Errorf("remove the listen addresses: %v", err)
	}
}
