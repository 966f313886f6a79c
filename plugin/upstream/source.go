package upstream

import (
	"context"
	"net/netip"
	"os"
	"slices"
	"sync"

	"github.com/trackless-dns/trackless/agent/services"
	"github.com/trackless-dns/trackless/internal/figure"
)

// kind is the kind of addresses of a Service.
type kind string

const (
	service   kind = "service"
	endpoints kind = "endpoints"
)

// name is a Service and the kind of its addresses.
type name struct {
	kind               kind
	namespace, service string
}

func (n name) String() string { return string(n.kind) + " " + n.namespace + "/" + n.service }

// clusterIP returns the ClusterIP that kubelet put into our environment. For the endpoints
// of kube-dns it is that of kube-dns-upstream, since we listen at kube-dns's own.
func (n name) clusterIP() netip.Addr {
	service := n.service
	if n.kind == endpoints {
		service += "-upstream"
	}
	a, _ := netip.ParseAddr(os.Getenv(services.HostVariable(service)))
	return a
}

// source follows one name for all server blocks. It keeps the addresses over a reload.
type source struct {
	name   name
	cancel context.CancelFunc
	users  int

	mu          sync.Mutex
	addrs       []netip.AddrPort
	subscribers map[*Upstream]bool
}

// sources are the sources of this process.
var sources = struct {
	sync.Mutex
	all map[name]*source
}{all: map[name]*source{}}

// follow follows a name until the context ends; tests replace it.
var follow = func(ctx context.Context, n name, found Found) {
	if n.kind == endpoints {
		FollowEndpoints(ctx, n.namespace, n.service, found)
		return
	}
	FollowService(ctx, n.namespace, n.service, found)
}

// subscribe passes the addresses to u until it unsubscribes, the known ones at once.
func subscribe(n name, u *Upstream) *source {
	sources.Lock()
	defer sources.Unlock()
	s := sources.all[n]
	if s == nil {
		ctx, cancel := context.WithCancel(context.Background())
		s = &source{name: n, cancel: cancel, subscribers: map[*Upstream]bool{}}
		sources.all[n] = s
		go follow(ctx, n, s.found)
	}
	s.users++
	s.mu.Lock()
	defer s.mu.Unlock()
	s.subscribers[u] = true
	u.use(s.addrs)
	return s
}

func (s *source) unsubscribe(u *Upstream) {
	sources.Lock()
	defer sources.Unlock()
	s.mu.Lock()
	delete(s.subscribers, u)
	s.mu.Unlock()
	if s.users--; s.users == 0 {
		s.cancel()
		delete(sources.all, s.name)
		known.DeleteLabelValues(s.name.String())
	}
}

func (s *source) found(addrs []netip.AddrPort, by string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tell(addrs, by)
}

// tell passes the addresses to all subscribers. The lock is held.
func (s *source) tell(addrs []netip.AddrPort, by string) {
	log.Infof("%s has the addresses %s (from %s)", s.name, figure.Joined(addrs), by)
	s.addrs = slices.Clone(addrs)
	known.WithLabelValues(s.name.String()).Set(float64(len(addrs)))
	for u := range s.subscribers {
		u.use(s.addrs)
	}
}
