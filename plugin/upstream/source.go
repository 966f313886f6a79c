package upstream

import (
	"context"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/trackless-dns/trackless/internal/figure"
)

// kind is what a source knows of a Service.
type kind string

const (
	service   kind = "service"
	endpoints kind = "endpoints"
)

// name says which addresses are meant.
type name struct {
	kind               kind
	namespace, service string
}

func (n name) String() string { return string(n.kind) + " " + n.namespace + "/" + n.service }

// clusterIP is what kubelet told about the Service when the container started.
// Instead of kube-dns it is kube-dns-upstream that answers for its endpoints,
// since we listen on the address of the former.
func (n name) clusterIP() netip.Addr {
	service := n.service
	if n.kind == endpoints {
		service += "-upstream"
	}
	variable := strings.ToUpper(strings.ReplaceAll(service, "-", "_")) + "_SERVICE_HOST"
	a, _ := netip.ParseAddr(os.Getenv(variable))
	return a
}

// source follows one name for all server blocks and over reloads, so that what
// is known is not forgotten with a Corefile.
type source struct {
	name   name
	cancel context.CancelFunc
	users  int

	mu          sync.Mutex
	addrs       []netip.AddrPort
	subscribers map[*Upstream]bool
}

// sources are those of this process.
var sources = struct {
	sync.Mutex
	all map[name]*source
}{all: map[name]*source{}}

// follow begins to follow a name; tests replace it.
var follow = func(ctx context.Context, n name, found Found) {
	if n.kind == endpoints {
		FollowEndpoints(ctx, n.namespace, n.service, found)
		return
	}
	FollowService(ctx, n.namespace, n.service, found)
}

// subscribe has u told of the addresses until it unsubscribes. What is known
// already it learns at once.
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
	log.Infof("%s: %s (says %s)", s.name, figure.Joined(addrs), by)
	s.addrs = slices.Clone(addrs)
	known.WithLabelValues(s.name.String()).Set(float64(len(addrs)))
	for u := range s.subscribers {
		u.use(s.addrs)
	}
}
