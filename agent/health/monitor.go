// Package health follows the upstreams that misses go to. While these fail and the
// cluster's DNS answers, the queries are given back to it.
package health

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

	"github.com/trackless-dns/trackless/agent/services"
	"github.com/trackless-dns/trackless/internal/logger"
	"github.com/trackless-dns/trackless/iptables"
)

// Monitor serves misses, queries for which `cache` has no answer. They go to a Service
// that somebody may delete: by mistake, or as `kubectl delete -f` does, a moment
// before our process is told to end. The same clients would be answered without
// us. So the queries are given back until there is a Service again, and misses that
// have come meanwhile are sent to the cluster's DNS.
type Monitor struct {
	Log logger.Logger

	now  atomic.Pointer[state] // nil where no miss goes to a Service
	pipe chan struct{}         // asks for a check
	end  context.CancelFunc
	done chan struct{}

	mu      sync.Mutex
	waiting []chan struct{} // for the next check
	rest    time.Time       // no check begins before
	took    time.Duration   // the last check
	seen    map[netip.Addr]bool
	given   bool
	failure string // logged last

	failing failing

	asking atomic.Int64 // how many ask the cluster
	ours   sync.Map     // the transport addresses from which they do
}

// state is what is known of the Services to which misses go.
type state struct {
	ctx     context.Context // ends when the next state is published
	end     context.CancelFunc
	blocks  map[Block]bool                // those whose Service is gone
	instead map[netip.Addr]netip.AddrPort // who answers for a listen address
}

// Block is a server block. Blocks are told apart by ==.
type Block interface {
	// Upstreams are those that the block asks.
	Upstreams() []Group
}

// Config is what a Corefile says.
type Config struct {
	Blocks func() []Block // with a handler of ours
	Listen []iptables.Endpoint
	DryRun bool

	// Instead returns the Service that answers for a listen address while queries are
	// given back; the zero Addr for none.
	Instead func(netip.Addr) netip.Addr
}

// Rules are those that bring queries here. FailOver leaves the queries to the cluster's
// DNS, FailBack ends that.
type Rules interface {
	FailOver(why error) error
	FailBack() error
}

// Serve passes a miss on, or asks the cluster's DNS in place of the block's upstreams.
func (m *Monitor) Serve(ctx context.Context, q Query) (rcode int, err error) {
	return m.failing.serve(ctx, q, m.serveMiss)
}

// Follow begins, or begins anew, with the configuration in force. Nil rules end it.
func (m *Monitor) Follow(config *Config, k Rules) {
	if m.end != nil {
		m.end()
		<-m.done
		m.end = nil
		m.failing.end()
		m.letGo()
	}
	if k == nil || config.DryRun {
		if k != nil && m.given {
			if err := k.FailBack(); err != nil {
				m.Log.Errorf("%v", err)
			}
		}
		m.given = false
		m.publish(nil)
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	pipe, done := make(chan struct{}, 1), make(chan struct{})
	m.mu.Lock()
	m.end, m.done, m.pipe = cancel, done, pipe
	m.mu.Unlock()
	m.failing.begin(m.Recheck)
	go func() {
		defer close(done)
		m.watch(ctx, pipe, config, k)
	}()
	m.Recheck()
}

// letGo ends the waits for a check that does not come.
func (m *Monitor) letGo() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, w := range m.waiting {
		close(w)
	}
	m.waiting, m.rest, m.took = nil, time.Time{}, 0
}

// Recheck asks for a check soon.
func (m *Monitor) Recheck() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pokeLocked()
}

func (m *Monitor) pokeLocked() {
	select {
	case m.pipe <- struct{}{}:
	default: // one is due, or nobody looks
	}
}

// maxWaiting is how many failed misses may wait for a check at once. One check serves
// them all. The others fail as they would without us.
const maxWaiting = 64

// look asks for a check and returns a channel that is closed after it. It returns nil
// where the check would not end within the given time, or too many wait.
func (m *Monitor) look(within time.Duration) <-chan struct{} {
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

// looksShare bounds the time of checks to 1/50 of a CPU.
const looksShare = 50

// lostInterval is the time between two checks while the queries are given back.
const lostInterval = 2 * time.Second

func (m *Monitor) watch(ctx context.Context, pipe <-chan struct{}, config *Config, k Rules) {
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
		m.decide(config, k)
		took := time.Since(began)
		rest := looksShare * took
		m.mu.Lock()
		m.took, m.rest = took, time.Now().Add(rest)
		m.mu.Unlock()
		for _, w := range waiting {
			close(w)
		}
		if m.failing.look(ctx, m.resolversOf(config, services.HasEndpoints)) {
			m.decide(config, k)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(rest):
		}
	}
}

// decide gives the queries back, or takes them back.
func (m *Monitor) decide(config *Config, k Rules) {
	l, why, err := m.evaluate(config, services.HasEndpoints)
	if err != nil {
		if err.Error() != m.failure {
			m.Log.Warningf("whether the upstream Service is there could not be found out: %v", err)
		}
		m.failure = err.Error()
		return
	}
	m.failure = ""
	if why == nil {
		l, why = m.failing.join(config, l)
	}
	switch {
	case why != nil:
		err = k.FailOver(why)
		m.given = true
	case m.given:
		err = k.FailBack()
		m.given = false
	}
	if err != nil {
		m.Log.Errorf("%v", err)
	}
	m.publish(l)
}

// publish puts another state in force and wakes those who wait for one.
func (m *Monitor) publish(l *state) {
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

// evaluate finds the blocks that have lost their Service, and the reason for which the
// queries are given back. The reason is nil where nobody else would answer them.
func (m *Monitor) evaluate(config *Config, leads func(netip.AddrPort) (bool, error)) (*state, error, error) {
	l := &state{blocks: map[Block]bool{}, instead: map[netip.Addr]netip.AddrPort{}}
	asks := false
	var gone []string
	for _, block := range config.Blocks() {
		for _, group := range block.Upstreams() {
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
	for _, e := range config.Listen {
		service := netip.AddrPortFrom(config.Instead(e.Addr), e.Port)
		there := false
		if service.Addr().IsValid() {
			var err error
			if there, err = leads(service); err != nil {
				return nil, nil, err
			}
		}
		if !there {
			// Cached answers are all that there is.
			return &state{}, nil, nil
		}
		l.instead[e.Addr] = service
	}
	return l, why, nil
}

// Group is of upstreams that stand for one another.
type Group struct {
	Addrs   []netip.AddrPort
	Service bool // as far as is known without the rules
}

func (g Group) String() string {
	if len(g.Addrs) == 0 {
		return "the upstream Service"
	}
	words := make([]string, 0, len(g.Addrs))
	for _, a := range g.Addrs {
		words = append(words, a.Addr().String())
	}
	return "the upstream Service " + strings.Join(words, " ")
}

// lost reports whether a group has Services, and whether all of it were and are
// none any more.
func (m *Monitor) lost(g Group, leads func(netip.AddrPort) (bool, error)) (asks, lost bool, err error) {
	if len(g.Addrs) == 0 {
		return g.Service, g.Service, nil
	}
	lost = true
	environ := services.ServiceHosts(os.Environ())
	for _, a := range g.Addrs {
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
		is := g.Service || m.seen[a.Addr()] || slices.Contains(environ, a.Addr())
		asks = asks || is
		lost = lost && is && !there
	}
	return asks, lost, nil
}
