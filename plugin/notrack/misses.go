package notrack

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin/forward"

	"github.com/trackless-dns/trackless/agent/admission"
	"github.com/trackless-dns/trackless/agent/services"
	"github.com/trackless-dns/trackless/iptables/reconcile"
)

// LookAtUpstreams has notrack look whether the Service is there that misses go to:
// a handler calls it that asks another one from now on.
func LookAtUpstreams() { process.misses.poke() }

// misses looks after those for whom `cache` has no answer. They go to a Service,
// which somebody may delete: by mistake, or as `kubectl delete -f` does, a moment
// before our process is told to end. The same clients would be answered without
// us, so the queries are given back until there is a Service again, and what has
// come meanwhile is asked of the cluster's DNS.
type misses struct {
	now  atomic.Pointer[loss] // nil where no miss goes to a Service
	pipe chan struct{}        // asks for a look
	end  context.CancelFunc
	done chan struct{}

	underWay admission.Queries

	mu      sync.Mutex
	waiting []chan struct{} // for the look that comes
	rest    time.Time       // no look begins before
	took    time.Duration   // the last one
	seen    map[netip.Addr]bool
	given   bool
	failure string // said last

	failing failing

	asking atomic.Int64 // how many ask the cluster
	ours   sync.Map     // the transport addresses from which they do
}

// loss is what is known of the Services to which misses go.
type loss struct {
	ctx     context.Context // ends when something else is known
	end     context.CancelFunc
	blocks  map[*dnsserver.Config]bool    // those whose Service is gone
	instead map[netip.Addr]netip.AddrPort // who answers for a listen address
}

// forwarder is a handler that knows which Service addresses it asks. The second
// result is false if it asks none; without addresses it knows none.
type forwarder interface {
	Services() (addrs []netip.AddrPort, asks bool)
}

// follow begins, or begins anew, with the configuration in force. A nil keeper
// ends it.
func (m *misses) follow(config *configuration, k *reconcile.Reconciler, instead func(netip.Addr) netip.Addr) {
	if m.end != nil {
		m.end()
		<-m.done
		m.end = nil
		m.failing.end()
		m.letGo()
	}
	if k == nil || config.plan.DryRun {
		if k != nil && m.given {
			if err := k.TakeBack(); err != nil {
				log.Errorf("%v", err)
			}
		}
		m.given = false
		m.know(nil)
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	pipe, done := make(chan struct{}, 1), make(chan struct{})
	m.mu.Lock()
	m.end, m.done, m.pipe = cancel, done, pipe
	m.mu.Unlock()
	m.failing.begin(m.poke)
	go func() {
		defer close(done)
		m.watch(ctx, pipe, config, k, instead)
	}()
	m.poke()
}

// letGo ends the waits for a look that does not come.
func (m *misses) letGo() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, w := range m.waiting {
		close(w)
	}
	m.waiting, m.rest, m.took = nil, time.Time{}, 0
}

// poke asks for a look soon.
func (m *misses) poke() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pokeLocked()
}

func (m *misses) pokeLocked() {
	select {
	case m.pipe <- struct{}{}:
	default: // one is due, or nobody looks
	}
}

// maxWaiting is how many misses that have failed may wait for a look at once. One
// look serves them all, and the others fail as they would without us.
const maxWaiting = 64

// look asks for one and returns a channel that is closed after it. It returns nil
// where the look would not be over within the given time, or too many wait.
func (m *misses) look(within time.Duration) <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pokeLocked()
	if len(m.waiting) >= maxWaiting || time.Until(m.rest)+m.took > within {
		return nil
	}
	looked := make(chan struct{})
	m.waiting = append(m.waiting, looked)
	return looked
}

// looksShare is by which the time of a look is multiplied to give that until the
// next one: looks cost two percent of a processor at most.
const looksShare = 50

// lostInterval is the time between two looks while the queries are given back.
const lostInterval = 2 * time.Second

func (m *misses) watch(ctx context.Context, pipe <-chan struct{}, config *configuration, k *reconcile.Reconciler, instead func(netip.Addr) netip.Addr) {
	for {
		var again <-chan time.Time
		if m.given { // so that no misses come, and nothing else may ask
			again = time.After(lostInterval)
		}
		select {
		case <-ctx.Done():
			return
		case <-pipe:
		case <-again:
		}
		m.mu.Lock()
		waiting := m.waiting
		m.waiting = nil
		m.mu.Unlock()
		began := time.Now()
		m.decide(config, k, instead)
		took := time.Since(began)
		rest := looksShare * took
		m.mu.Lock()
		m.took, m.rest = took, time.Now().Add(rest)
		m.mu.Unlock()
		for _, w := range waiting {
			close(w)
		}
		if m.failing.look(ctx, m.waysOf(config, services.HasEndpoints, instead)) {
			m.decide(config, k, instead)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(rest):
		}
	}
}

// decide gives the queries back, or takes them back.
func (m *misses) decide(config *configuration, k *reconcile.Reconciler, instead func(netip.Addr) netip.Addr) {
	l, why, err := m.judge(config, services.HasEndpoints, instead)
	if err != nil {
		if err.Error() != m.failure {
			log.Warningf("whether the upstream Service is there could not be found out: %v", err)
		}
		m.failure = err.Error()
		return
	}
	m.failure = ""
	if why == nil {
		l, why = m.failing.join(config, l, instead)
	}
	switch {
	case why != nil:
		err = k.GiveBack(why)
		m.given = true
	case m.given:
		err = k.TakeBack()
		m.given = false
	}
	if err != nil {
		log.Errorf("%v", err)
	}
	m.know(l)
}

// know tells those who wait, if it is anything else than before.
func (m *misses) know(l *loss) {
	before := m.now.Load()
	if before != nil && l != nil && maps.Equal(before.blocks, l.blocks) && maps.Equal(before.instead, l.instead) {
		return
	}
	if l != nil {
		l.ctx, l.end = context.WithCancel(context.Background())
	}
	m.now.Store(l)
	if before != nil {
		before.end()
	}
}

// judge finds out which blocks have lost their Service, and why the queries are
// to be given back: nil where they had better stay here, since nobody else
// would answer them.
func (m *misses) judge(config *configuration, leads func(netip.AddrPort) (bool, error), instead func(netip.Addr) netip.Addr) (*loss, error, error) {
	l := &loss{blocks: map[*dnsserver.Config]bool{}, instead: map[netip.Addr]netip.AddrPort{}}
	asks := false
	var gone []string
	for _, block := range config.handledBlocks() {
		for _, group := range upstreamsOf(block) {
			services, lost, err := m.lost(group, leads)
			if err != nil {
				return nil, nil, err
			}
			asks = asks || services
			if lost {
				l.blocks[block] = true
				gone = append(gone, group.String())
			}
		}
	}
	if !asks {
		return nil, nil, nil
	}
	if len(gone) == 0 {
		return l, nil, nil
	}
	slices.Sort(gone)
	why := fmt.Errorf("%s is gone from kube-proxy's rules, and misses have nowhere to go", strings.Join(slices.Compact(gone), ", "))
	for _, e := range config.plan.Listen {
		service := netip.AddrPortFrom(instead(e.Addr), e.Port)
		there := false
		if service.Addr().IsValid() {
			var err error
			if there, err = leads(service); err != nil {
				return nil, nil, err
			}
		}
		if !there {
			// Cached answers are all that there is.
			return &loss{}, nil, nil
		}
		l.instead[e.Addr] = service
	}
	return l, why, nil
}

// upstreamGroup is of upstreams that stand for one another.
type upstreamGroup struct {
	addrs   []netip.AddrPort
	service bool // as far as is known without the rules
}

func (g upstreamGroup) String() string {
	if len(g.addrs) == 0 {
		return "the upstream Service"
	}
	words := make([]string, 0, len(g.addrs))
	for _, a := range g.addrs {
		words = append(words, a.Addr().String())
	}
	return "the upstream Service " + strings.Join(words, " ")
}

// lost reports whether a group has Services, and whether all of it were and are
// none any more.
func (m *misses) lost(g upstreamGroup, leads func(netip.AddrPort) (bool, error)) (asks, lost bool, err error) {
	if len(g.addrs) == 0 {
		return g.service, g.service, nil
	}
	lost = true
	environ := services.ServiceHosts(os.Environ())
	for _, a := range g.addrs {
		there, err := leads(a)
		if err != nil {
			return false, false, err
		}
		if there {
			if m.seen == nil {
				m.seen = map[netip.Addr]bool{}
			}
			m.seen[a.Addr()] = true
		}
		is := g.service || m.seen[a.Addr()] || slices.Contains(environ, a.Addr())
		asks = asks || is
		lost = lost && is && !there
	}
	return asks, lost, nil
}

// upstreamsOf are those that a server block asks.
func upstreamsOf(block *dnsserver.Config) []upstreamGroup {
	var out []upstreamGroup
	if f, ok := block.Handler("upstream").(forwarder); ok {
		if addrs, asks := f.Services(); asks {
			out = append(out, upstreamGroup{addrs, true})
		}
	}
	next := block.Handler("forward")
	for {
		f, ok := next.(*forward.Forward)
		if !ok {
			return out
		}
		var g upstreamGroup
		for _, p := range f.List() {
			// Another transport has a scheme, and a name is no Service address.
			if ap, err := netip.ParseAddrPort(p.Addr()); err == nil {
				g.addrs = append(g.addrs, ap)
			}
		}
		if len(g.addrs) == f.Len() && f.Len() > 0 {
			slices.SortFunc(g.addrs, netip.AddrPort.Compare)
			out = append(out, g)
		}
		next = f.Next
	}
}

// handledBlocks are the blocks with a handler of ours.
func (c *configuration) handledBlocks() []*dnsserver.Config {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]*dnsserver.Config, 0, len(c.handlers))
	for block := range c.handlers {
		out = append(out, block)
	}
	return out
}
