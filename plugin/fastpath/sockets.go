package fastpath

import (
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin/pkg/transport"
	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/fastpath/socket"
	"github.com/trackless-dns/trackless/plugin/notrack"
)

// tier has the sockets of this process for cached answers. A socket stays open over
// reloads as long as its listen address has some.
type tier struct {
	mu        sync.Mutex
	current   *configuration // in force, or starting
	blocks    []*decided     // of it
	listeners map[netip.AddrPort]*listener
	join      func(tell func(a netip.Addr, until time.Time)) (leave func())
	leave     func()         // the gate
	closing   sync.WaitGroup // of listeners that are not among them any more

	groups atomic.Pointer[[]*socket.Group] // for readers that must not wait
}

// sockets are those of this process. It is a variable, since caddy calls plugins without a
// context.
var sockets = tier{join: notrack.JoinGate}

// follow puts a configuration in force. Its sockets open when its servers begin to serve:
// none of a load that fails ever do.
func (t *tier) follow(c *configuration, blocks []*decided) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.current, t.blocks = c, blocks
}

// decorate returns what CoreDNS calls when a server begins to serve a listen address: the
// server gets our sockets there. Another plugin may want to be called, too.
func (t *tier) decorate(c *configuration, other func(*dnsserver.Server) dns.DecorateWriter) func(*dnsserver.Server) dns.DecorateWriter {
	return func(s *dnsserver.Server) dns.DecorateWriter {
		var inner dns.DecorateWriter
		if other != nil {
			inner = other(s)
		}
		l := t.commit(c, s, inner)
		if l == nil {
			return inner
		}
		return func(w dns.Writer) dns.Writer {
			l.stray(w)
			if inner != nil {
				return inner(w)
			}
			return w
		}
	}
}

// commit has a server use our sockets at its listen address. A fault is logged, and
// CoreDNS's own socket gets all queries. It returns nil then, and where no block is
// eligible.
func (t *tier) commit(c *configuration, s *dnsserver.Server, decorate dns.DecorateWriter) *listener {
	t.mu.Lock()
	defer t.mu.Unlock()
	at, err := netip.ParseAddrPort(strings.TrimPrefix(s.Addr, transport.DNS+"://"))
	if t.current != c || err != nil || at.Addr().IsUnspecified() || at.Addr().Zone() != "" {
		return nil
	}
	at = netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
	table, err := routes(s, at, t.blocks)
	if err != nil {
		log.Warningf("%s: no cached answers at sockets of our own, CoreDNS answers all queries: %v", s.Addr, err)
	}
	l := t.listeners[at]
	if l != nil && l.group.Len() != c.sockets {
		t.remove(at)
		l = nil
	}
	if l == nil {
		if table == nil {
			return nil
		}
		if l, err = openListener(at, c.sockets); err != nil {
			log.Warningf("CoreDNS answers all queries at this address: %v", err)
			return nil
		}
		if t.listeners == nil {
			t.listeners = map[netip.AddrPort]*listener{}
		}
		t.listeners[at] = l
	}
	l.config = c
	l.use(s, table, decorate)
	t.publish()
	return l
}

// publish has the gate and the checks of leases know the sockets that there are now. The
// lock is held.
func (t *tier) publish() {
	groups := make([]*socket.Group, 0, len(t.listeners))
	for _, l := range t.listeners {
		groups = append(groups, l.group)
	}
	t.groups.Store(&groups)
	leave := t.leave
	if t.leave = nil; len(groups) > 0 {
		t.leave = t.join(t.door)
	}
	if leave != nil {
		leave() // only now: between the two the gate might be closed
	}
}

// door opens or closes the sockets at an address.
func (t *tier) door(a netip.Addr, until time.Time) {
	for _, g := range *t.groups.Load() {
		if g.At().Addr() == a {
			g.Until(until)
		}
	}
}

// stuck reports whether queries to a listen address wait for a reader that does not read.
func (t *tier) stuck(at netip.AddrPort) bool {
	groups := t.groups.Load()
	if groups == nil {
		return false
	}
	for _, g := range *groups {
		if g.At() == at && g.Stuck() {
			return true
		}
	}
	return false
}

// has reports whether there are sockets of ours at an address.
func (t *tier) has(at netip.AddrPort) bool {
	groups := t.groups.Load()
	return groups != nil && slices.ContainsFunc(*groups, func(g *socket.Group) bool { return g.At() == at })
}

// takeover is how long the servers of a load may take to begin once the load before ends.
const takeover = 5 * time.Second

// leaveOld ends a configuration. It closes the sockets at addresses where the one in force
// has none, and waits for that at the end of the process.
func (t *tier) leaveOld(c *configuration) {
	t.mu.Lock()
	if t.current == c {
		t.current, t.blocks = nil, nil
	}
	wanted := map[netip.AddrPort]bool{}
	if t.current != nil && t.current.sockets > 0 {
		for _, b := range t.blocks {
			for _, config := range b.configs {
				for _, at := range listenersOf(config) {
					wanted[at] = true
				}
			}
		}
	}
	for at := range t.listeners {
		if !wanted[at] {
			t.remove(at)
		}
	}
	ended := t.current == nil
	t.mu.Unlock()
	if ended {
		t.closing.Wait()
		return
	}
	time.AfterFunc(takeover, t.removeOld)
}

// removeOld closes the sockets that no server of the configuration in force has taken: those
// of the load before have ended. Another plugin of a block at the same address may have kept
// CoreDNS from calling us.
func (t *tier) removeOld() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for at, l := range t.listeners {
		if l.config != t.current {
			log.Warningf("%s: no cached answers at sockets of our own, CoreDNS answers all queries: a plugin of another server block at this address decorates its writer, too", at)
			t.remove(at)
		}
	}
}

// stop is the last step of a process.
func (t *tier) stop() {
	t.mu.Lock()
	c := t.current
	t.mu.Unlock()
	t.leaveOld(c)
}

// remove closes the sockets at an address in the background: queries under way are answered
// before. The lock is held.
func (t *tier) remove(at netip.AddrPort) {
	l := t.listeners[at]
	delete(t.listeners, at)
	t.publish()
	t.closing.Go(l.close)
}
