// Package upstream forwards queries to a Service of the cluster, or straight to
// its endpoints, wherever they are at the moment.
//
// The addresses that `forward` is given stand still: a Service that is made
// again has another ClusterIP, and a query to a Service is recorded by conntrack
// and rewritten by kube-proxy, so that a full table stops misses. This directive
// follows the API, keeps what it knew while the API is away, and asks endpoints
// directly.
package upstream

import (
	"context"
	"errors"
	"math/rand/v2"
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
	"github.com/coredns/coredns/plugin/pkg/transport"
	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/plugin/notrack"
)

const directive = "upstream"

var log = clog.NewWithPlugin(directive)

// Upstream is the handler of one server block.
type Upstream struct {
	Next plugin.Handler

	name     name
	fallback []netip.AddrPort // while nothing better is known, or answers
	options  proxy.Options
	maxFails uint32
	expire   time.Duration
	timeout  time.Duration // of one try
	limit    int64         // queries at once, 0 for any number
	tracked  bool          // leave queries to endpoints in the conntrack table

	source     *source
	concurrent atomic.Int64
	targets    atomic.Pointer[targets]

	mu      sync.Mutex // of changes
	proxies map[netip.AddrPort]*proxy.Proxy
	stopped bool
}

// targets are those to ask, and those to ask when all of them are down.
type targets struct{ first, last []*proxy.Proxy }

const (
	defaultMaxFails = 2
	defaultExpire   = 10 * time.Second
	defaultTimeout  = 2 * time.Second

	// healthInterval is the time between two health checks of what has failed.
	healthInterval = 500 * time.Millisecond

	// queryTimeout bounds all tries of a query: clients give up after five
	// seconds.
	queryTimeout = 5 * time.Second
)

// New returns a handler with the default options.
func newUpstream() *Upstream {
	return &Upstream{
		maxFails: defaultMaxFails, expire: defaultExpire, timeout: defaultTimeout,
		options: proxy.Options{HCRecursionDesired: true, HCDomain: "."},
		proxies: map[netip.AddrPort]*proxy.Proxy{},
	}
}

// Name implements plugin.Handler.
func (*Upstream) Name() string { return directive }

var (
	errUnknown   = errors.New("no address is known yet")
	errTooMany   = errors.New("max_concurrent is reached")
	errNoAnswer  = errors.New("nobody answered in time")
	errNotAnswer = errors.New("the answer is not that to the question")
)

// ServeDNS implements plugin.Handler.
func (u *Upstream) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	if n := u.concurrent.Add(1); u.limit > 0 && n > u.limit {
		u.concurrent.Add(-1)
		return dns.RcodeRefused, u.wrap(errTooMany)
	}
	defer u.concurrent.Add(-1)
	state := request.Request{W: w, Req: r}
	order := u.order()
	if len(order) == 0 {
		return dns.RcodeServerFailure, u.wrap(errUnknown)
	}
	deadline := time.Now().Add(queryTimeout)
	err := errNoAnswer
	// Each is tried, and the first two once more, or a lost packet would be a
	// lost query where there is one only.
	for _, p := range append(order, order[:min(len(order), 2)]...) {
		if ctx.Err() != nil || !time.Now().Before(deadline) {
			break
		}
		metadata.SetValueFunc(ctx, "upstream/address", p.Addr)
		var answer *dns.Msg
		answer, err = u.ask(ctx, p, state)
		switch {
		case errors.Is(err, proxy.ErrInvalidRequest):
			return dns.RcodeFormatError, u.wrap(err)
		case errors.Is(err, proxy.ErrUnsupportedRequest):
			return dns.RcodeNotImplemented, u.wrap(err)
		case err != nil:
			if u.maxFails != 0 {
				p.Healthcheck()
			}
			continue
		case !state.Match(answer):
			return dns.RcodeFormatError, u.wrap(errNotAnswer)
		}
		return dns.RcodeSuccess, w.WriteMsg(answer)
	}
	return dns.RcodeServerFailure, u.wrap(err)
}

func (u *Upstream) wrap(err error) error { return plugin.Error(directive, &nameError{u.name, err}) }

type nameError struct {
	name name
	err  error
}

func (e *nameError) Error() string { return e.name.String() + ": " + e.err.Error() }
func (e *nameError) Unwrap() error { return e.err }

// ask sends the query to one address.
func (u *Upstream) ask(ctx context.Context, p *proxy.Proxy, state request.Request) (*dns.Msg, error) {
	options := u.options
	for {
		answer, _, _, err := p.Connect(ctx, state, options)
		switch {
		case errors.Is(err, proxy.ErrCachedClosed):
			continue // an idle connection that was closed; the next one is open
		case err == nil && answer.Truncated && options.PreferUDP && !options.ForceTCP:
			options.ForceTCP = true
			continue
		}
		return answer, err
	}
}

// order are the addresses to try: those that answer, at random, then the
// fallback, then those that are down.
func (u *Upstream) order() []*proxy.Proxy {
	t := u.targets.Load()
	if t == nil {
		return nil
	}
	var up, down []*proxy.Proxy
	for _, p := range t.first {
		if p.Down(u.maxFails) {
			down = append(down, p)
		} else {
			up = append(up, p)
		}
	}
	for _, list := range [][]*proxy.Proxy{up, down} {
		rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	}
	return slices.Concat(up, t.last, down)
}

// use changes the addresses. Those that stay keep their connections; queries
// under way at those that go are still answered.
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
	u.proxies = map[netip.AddrPort]*proxy.Proxy{}
	get := func(list []netip.AddrPort) []*proxy.Proxy {
		var out []*proxy.Proxy
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
			p.Stop() // its connections go with the last query that uses them
		}
	}
	notrack.LookAtUpstreams()
}

func (u *Upstream) open(a netip.AddrPort) *proxy.Proxy {
	p := proxy.NewProxy(directive, a.String(), transport.DNS)
	p.SetExpire(u.expire)
	p.SetReadTimeout(u.timeout)
	p.GetHealthchecker().SetRecursionDesired(u.options.HCRecursionDesired)
	p.GetHealthchecker().SetDomain(u.options.HCDomain)
	p.Start(healthInterval)
	return p
}

// reachable reports whether there is a route: of a cluster with two families a
// node may have one.
func reachable(a netip.AddrPort) bool {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(a))
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

// Services are the addresses of the Service that is asked for what comes now;
// false if that is asked of endpoints.
func (u *Upstream) Services() (addrs []netip.AddrPort, asks bool) {
	t := u.targets.Load()
	if t == nil {
		return nil, false // not started
	}
	if u.name.kind == endpoints && len(t.first) > 0 {
		return nil, false
	}
	for _, p := range slices.Concat(t.first, t.last) {
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
		p.Stop()
	}
	return nil
}
