// Package upstream forwards queries to a Service of the cluster, or directly to its
// endpoints, and follows their addresses.
//
// `forward` has fixed addresses, but a Service that is created again has another
// ClusterIP. conntrack records queries to a Service, so a full table stops misses. This
// directive watches the Kubernetes API, keeps the last addresses while the API does not
// answer, and asks endpoints directly.
package upstream

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/metadata"
	clog "github.com/coredns/coredns/plugin/pkg/log"
	"github.com/coredns/coredns/plugin/pkg/proxy"
	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/plugin/notrack"
)

const directive = "upstream"

var log = clog.NewWithPlugin(directive)

// Upstream is the handler of one server block.
type Upstream struct {
	Next plugin.Handler

	name          name
	fallback      []netip.AddrPort // asked while no other address is known, or answers
	options       proxy.Options
	policy        policy
	failover      []int // codes of answers after which the next address is asked
	maxFails      uint32
	failFast      bool // fail at once when all addresses are down
	checkInterval time.Duration
	expire        time.Duration
	maxAge        time.Duration // of a connection, 0 for any
	maxIdle       int           // connections, 0 for any number
	timeout       time.Duration // of one try
	attempts      int           // tries of a query, 0 for the default
	limit         int64         // queries at once, 0 for any number
	tracked       bool          // leave queries to endpoints in the conntrack table

	source     *source
	concurrent atomic.Int64
	extra      atomic.Int64  // tries that run beside others
	turn       atomic.Uint64 // the counter of round_robin
	targets    atomic.Pointer[targets]

	mu      sync.Mutex // held while addresses change
	proxies map[netip.AddrPort]*target
	stopped bool
}

const (
	defaultMaxFails = 2
	defaultExpire   = 10 * time.Second
	defaultTimeout  = 2 * time.Second

	// defaultInterval is the time between two health checks of a failed address.
	defaultInterval = 500 * time.Millisecond

	// queryTimeout bounds all tries of a query: clients give up after five
	// seconds.
	queryTimeout = 5 * time.Second
)

// newUpstream returns a handler with the default options.
func newUpstream() *Upstream {
	return &Upstream{
		maxFails: defaultMaxFails, expire: defaultExpire, timeout: defaultTimeout, checkInterval: defaultInterval,
		policy: random, failover: []int{dns.RcodeServerFailure, dns.RcodeRefused},
		options: proxy.Options{HCRecursionDesired: true, HCDomain: "."},
		proxies: map[netip.AddrPort]*target{},
	}
}

// Name implements plugin.Handler.
func (*Upstream) Name() string { return directive }

var (
	errUnknown   = errors.New("no address is known yet")
	errTooMany   = errors.New("max_concurrent is reached")
	errNoAnswer  = errors.New("no address answered in time")
	errNotAnswer = errors.New("the answer is for another question")
	errAllDown   = errors.New("all addresses fail their health checks (failfast_all_unhealthy_upstreams)")
)

// ServeDNS implements plugin.Handler.
func (u *Upstream) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	if n := u.concurrent.Add(1); u.limit > 0 && n > u.limit {
		u.concurrent.Add(-1)
		rejects.WithLabelValues(u.name.String()).Inc()
		return dns.RcodeRefused, u.wrap(errTooMany)
	}
	defer u.concurrent.Add(-1)
	order := u.order()
	switch {
	case len(order) == 0:
		return dns.RcodeServerFailure, u.wrap(errUnknown)
	case u.failFast && !slices.ContainsFunc(order, func(t *target) bool { return !t.Down(u.maxFails) }):
		return dns.RcodeServerFailure, u.wrap(errAllDown)
	}
	q := query{Upstream: u, state: request.Request{W: w, Req: r}, tries: u.repeat(order)}
	by, answer, err := q.run(ctx)
	if by != nil {
		metadata.SetValueFunc(ctx, "upstream/address", by.Addr)
	}
	switch {
	case answer != nil:
		return dns.RcodeSuccess, w.WriteMsg(answer)
	case errors.Is(err, proxy.ErrInvalidRequest), errors.Is(err, errNotAnswer):
		return dns.RcodeFormatError, u.wrap(err)
	case errors.Is(err, proxy.ErrUnsupportedRequest):
		return dns.RcodeNotImplemented, u.wrap(err)
	}
	return dns.RcodeServerFailure, u.wrap(err)
}

// repeat returns the addresses as often as they are tried. By default each is tried once
// and the first two again, so that a lost packet is no lost query. Addresses that have
// failed come last: a lost packet is more likely than a recovered server.
// max_connect_attempts sets the number of tries.
func (u *Upstream) repeat(order []*target) []*target {
	if u.attempts == 0 {
		well := slices.IndexFunc(order, func(t *target) bool { return t.doubt(u.maxFails) >= failed })
		if well <= 0 {
			well = len(order)
		}
		return slices.Concat(order[:well], order[:min(well, 2)], order[well:])
	}
	return slices.Repeat(order, (u.attempts+len(order)-1)/len(order))[:u.attempts]
}

// wrap adds the plugin and the upstream to an error.
func (u *Upstream) wrap(err error) error { return plugin.Error(directive, &nameError{u.name, err}) }

type nameError struct {
	name name
	err  error
}

func (e *nameError) Error() string { return e.name.String() + ": " + e.err.Error() }
func (e *nameError) Unwrap() error { return e.err }

// use replaces the addresses. Addresses that stay keep their connections. Queries under way
// to removed addresses are still answered.
func (u *Upstream) use(addrs []netip.AddrPort) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.stopped {
		return
	}
	addrs = slices.DeleteFunc(slices.Clone(addrs), func(a netip.AddrPort) bool { return !reachable(a) })
	if u.name.kind == service {
		addrs = addrs[:min(len(addrs), 1)] // the others lead to the same endpoints
	}
	before := u.proxies
	u.proxies = map[netip.AddrPort]*target{}
	get := func(list []netip.AddrPort) []*target {
		var out []*target
		for _, a := range list {
			p := u.proxies[a]
			if p == nil {
				if p = before[a]; p == nil {
					p = u.open(a)
				}
				u.proxies[a] = p
			}
			out = append(out, p)
		}
		return out
	}
	if u.name.kind == endpoints && !u.tracked {
		notrack.Untrack(u, addrs)
	}
	t := &targets{first: get(addrs), last: get(u.fallback)}
	u.targets.Store(t)
	for a, p := range before {
		if u.proxies[a] == nil {
			p.close()
		}
	}
	notrack.RecheckUpstreams()
}

// reachable reports whether there is a route. A node may have only one of the cluster's
// address families.
func reachable(a netip.AddrPort) bool {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(a))
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

// Services returns the addresses of the Service that is asked now. asks is false while
// endpoints are asked.
func (u *Upstream) Services() (addrs []netip.AddrPort, asks bool) {
	t := u.targets.Load()
	if t == nil {
		return nil, false // not started
	}
	if u.name.kind == endpoints && len(t.first) > 0 {
		return nil, false
	}
	for _, p := range t.all() {
		if a, err := netip.ParseAddrPort(p.Addr()); err == nil && !slices.Contains(addrs, a) {
			addrs = append(addrs, a)
		}
	}
	return addrs, true
}

// start runs before the listeners open.
func (u *Upstream) start() error {
	u.use(nil)
	u.source = subscribe(u.name, u)
	return nil
}

func (u *Upstream) stop() error {
	if u.source != nil {
		u.source.unsubscribe(u)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.stopped = true
	notrack.Untrack(u, nil)
	for _, p := range u.proxies {
		p.close()
	}
	return nil
}
