// Package health watches the upstreams that answer misses. While they fail and the
// cluster's DNS answers, queries fail over to it.
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

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/agent/services"
	"github.com/trackless-dns/trackless/internal/logger"
	"github.com/trackless-dns/trackless/iptables"
)

// Monitor serves misses: queries for which `cache` has no answer. They go to a Service
// that may be deleted: by mistake, or by `kubectl delete -f`, a moment before this process
// ends. Without us the clients would still get answers. So queries fail over until the
// Service exists again, and misses that have arrived are sent to the cluster's DNS.
type Monitor struct {
	Log logger.Logger

	now  atomic.Pointer[state] // nil where no miss goes to a Service
	wake chan struct{}         // requests a check
	end  context.CancelFunc
	done chan struct{}

	mu      sync.Mutex
	waiting []chan struct{}     // for the next check
	rest    time.Time           // no check begins before it
	took    time.Duration       // how long the last check took
	seen    map[netip.Addr]bool // addresses that were in kube-proxy's rules
	over    bool                // queries have failed over
	failure string              // logged last

	failing failing

	asking atomic.Int64 // queries to the cluster under way
	ours   sync.Map     // their transport addresses
}

// state describes the Services to which misses go.
type state struct {
	ctx      context.Context // ends when the next state is published
	end      context.CancelFunc
	blocks   map[Block]bool                // blocks whose Service is gone
	services map[netip.Addr]netip.AddrPort // the Service that answers for a listen address
}

// Block is a server block. It is comparable.
type Block interface {
	// Upstreams returns the upstreams of the block.
	Upstreams() []Group
	// Label names the block for another process that has the same one.
	Label() string
	// Pass passes a query to the plugins below the block's cache.
	Pass(context.Context, dns.ResponseWriter, *dns.Msg) (rcode int, err error)
}

// Config is the part of a Corefile that the monitor needs.
type Config struct {
	Blocks func() []Block // blocks with notrack
	Listen []iptables.Endpoint
	DryRun bool

	// FailoverTo returns the Service that answers for a listen address after a failover;
	// the zero Addr for none.
	FailoverTo func(netip.Addr) netip.Addr
}

// Rules are the rules that bring queries to this process. FailOver sends the queries to
// the cluster's DNS, FailBack brings them back.
type Rules interface {
	FailOver(why error) error
	FailBack() error
}

// Serve passes a miss on, or asks the cluster's DNS in place of the block's upstreams.
func (m *Monitor) Serve(ctx context.Context, q Query) (rcode int, err error) {
	return m.failing.serve(ctx, q, m.serveMiss)
}

// Follow starts the monitor, or restarts it with another configuration. Nil rules stop it.
func (m *Monitor) Follow(config *Config, k Rules) {
	if m.end != nil {
		m.end()
		<-m.done
		m.end = nil
		m.failing.end()
		m.releaseWaiting()
	}
	if k == nil || config.DryRun {
		if k != nil && m.over {
			if err := k.FailBack(); err != nil {
				m.Log.Errorf("%v", err)
			}
		}
		m.over = false
		m.publish(nil)
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	wake, done := make(chan struct{}, 1), make(chan struct{})
	m.mu.Lock()
	m.end, m.done, m.wake = cancel, done, wake
	m.mu.Unlock()
	m.failing.begin(m.Recheck)
	go func() {
		defer close(done)
		m.watch(ctx, wake, config, k)
	}()
	m.Recheck()
}

// releaseWaiting ends the waits for a check that does not come.
func (m *Monitor) releaseWaiting() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, w := range m.waiting {
		close(w)
	}
	m.waiting, m.rest, m.took = nil, time.Time{}, 0
}

// Recheck requests a check soon.
func (m *Monitor) Recheck() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.wakeLocked()
}

func (m *Monitor) wakeLocked() {
	select {
	case m.wake <- struct{}{}:
	default: // a check is due, or the monitor is stopped
	}
}

// maxWaiting bounds the failed misses that wait for a check. One check serves them all.
// Further misses fail at once.
const maxWaiting = 64

// checkWithin requests a check and returns a channel that is closed after it. It returns
// nil if the check would take longer than that, or if too many misses wait.
func (m *Monitor) checkWithin(limit time.Duration) <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.wakeLocked()
	if len(m.waiting) >= maxWaiting || time.Until(m.rest)+m.took > limit {
		return nil
	}
	checked := make(chan struct{})
	m.waiting = append(m.waiting, checked)
	return checked
}

// checkShare bounds the time of checks to 1/50 of a CPU.
const checkShare = 50

// failoverInterval is the time between two checks after a failover.
const failoverInterval = 2 * time.Second

func (m *Monitor) watch(ctx context.Context, wake <-chan struct{}, config *Config, k Rules) {
	for {
		var again <-chan time.Time
		if m.over { // no misses arrive that could request a check
			again = time.After(failoverInterval)
		}
		select {
		case <-ctx.Done():
			return
		case <-wake:
		case <-again:
		}
		m.mu.Lock()
		waiting := m.waiting
		m.waiting = nil
		m.mu.Unlock()
		took := m.decide(config, k)
		rest := checkShare * took
		m.mu.Lock()
		m.took, m.rest = took, time.Now().Add(rest)
		m.mu.Unlock()
		for _, w := range waiting {
			close(w)
		}
		if m.failing.check(ctx, m.resolversOf(config, services.HasEndpoints)) {
			m.decide(config, k)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(rest):
		}
	}
}

// decide fails queries over, or back, and returns what the check took. What follows from
// it may wait for another change of rules, which must not put off the next check: after a
// flush of all rules kube-proxy's are back a moment later.
func (m *Monitor) decide(config *Config, k Rules) (took time.Duration) {
	began := time.Now()
	st, why, err := m.evaluate(config, services.HasEndpoints)
	took = time.Since(began)
	if err != nil {
		if err.Error() != m.failure {
			m.Log.Warningf("cannot check whether the upstream Service exists: %v", err)
		}
		m.failure = err.Error()
		return took
	}
	m.failure = ""
	if why == nil {
		st, why = m.failing.join(config, st)
	}
	switch {
	case why != nil:
		err = k.FailOver(why)
		m.over = true
	case m.over:
		err = k.FailBack()
		m.over = false
	}
	if err != nil {
		m.Log.Errorf("%v", err)
	}
	m.publish(st)
	return took
}

// publish stores another state and wakes the misses that wait for one.
func (m *Monitor) publish(st *state) {
	before := m.now.Load()
	if before != nil && st != nil && maps.Equal(before.blocks, st.blocks) && maps.Equal(before.services, st.services) {
		return
	}
	if st != nil {
		st.ctx, st.end = context.WithCancel(context.Background())
	}
	m.now.Store(st)
	if before != nil {
		before.end()
	}
}

// evaluate returns the blocks whose Service is gone, and the reason for a failover. The
// reason is nil if no other server would answer.
func (m *Monitor) evaluate(config *Config, hasEndpoints func(netip.AddrPort) (bool, error)) (*state, error, error) {
	st := &state{blocks: map[Block]bool{}, services: map[netip.Addr]netip.AddrPort{}}
	asks := false
	var gone []string
	for _, block := range config.Blocks() {
		for _, group := range block.Upstreams() {
			isService, lost, err := m.lost(group, hasEndpoints)
			if err != nil {
				return nil, nil, err
			}
			asks = asks || isService
			if lost {
				st.blocks[block] = true
				gone = append(gone, group.String())
			}
		}
	}
	if !asks {
		return nil, nil, nil
	}
	if len(gone) == 0 {
		return st, nil, nil
	}
	slices.Sort(gone)
	why := fmt.Errorf("%s is gone from kube-proxy's rules, and no upstream answers misses", strings.Join(slices.Compact(gone), ", "))
	for _, e := range config.Listen {
		service := netip.AddrPortFrom(config.FailoverTo(e.Addr), e.Port)
		there := false
		if service.Addr().IsValid() {
			var err error
			if there, err = hasEndpoints(service); err != nil {
				return nil, nil, err
			}
		}
		if !there {
			// Without us there would be no answers at all.
			return &state{}, nil, nil
		}
		st.services[e.Addr] = service
	}
	return st, why, nil
}

// Group is a group of upstreams; any of them may be asked.
type Group struct {
	Addrs   []netip.AddrPort
	Service bool // known to be a Service without kube-proxy's rules
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

// lost reports whether a group asks Services, and whether all of them are gone.
func (m *Monitor) lost(g Group, hasEndpoints func(netip.AddrPort) (bool, error)) (asks, lost bool, err error) {
	if len(g.Addrs) == 0 {
		return g.Service, g.Service, nil
	}
	lost = true
	environ := services.ServiceHosts(os.Environ())
	for _, a := range g.Addrs {
		there, err := hasEndpoints(a)
		if err != nil {
			return false, false, err
		}
		if there {
			m.see(a.Addr())
		}
		is := g.Service || m.saw(a.Addr()) || slices.Contains(environ, a.Addr())
		asks = asks || is
		lost = lost && is && !there
	}
	return asks, lost, nil
}
