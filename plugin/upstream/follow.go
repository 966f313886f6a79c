package upstream

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/trackless-dns/trackless/iptables/kubeproxy"
	"github.com/trackless-dns/trackless/kubeapi"
)

// Found is called with the addresses of an upstream when they have changed. It is not
// called with none: the last addresses stay in use. by names the source.
type Found func(addrs []netip.AddrPort, by string)

// Sources of addresses.
const (
	byAPI       = "the Kubernetes API"
	byKubeProxy = "kube-proxy's rules"
	// byPredecessor is used until one of the others has told addresses.
	byPredecessor = "the instance before"
)

// FollowService calls found with the ClusterIPs of a Service, the primary one first, until
// the context ends. It watches the Kubernetes API. While the API does not answer, or gives
// no permission, it reads kube-proxy's rules.
func FollowService(ctx context.Context, namespace, name string, found Found) {
	f := newFollower(namespace+"/"+name, found)
	var wg sync.WaitGroup
	defer wg.Wait()
	if client := f.client(); client != nil {
		wg.Go(func() {
			client.WatchService(ctx, namespace, name, kubeapi.Handler[kubeapi.Service]{
				Changed: func(services []kubeapi.Service) {
					var addrs []netip.AddrPort
					for _, s := range services {
						addrs = append(addrs, s.Addresses()...)
					}
					f.tell(addrs, byAPI)
				},
				Failed: f.apiFailed,
			})
		})
	}
	f.readRules(ctx)
}

// FollowEndpoints calls found with the endpoints of a Service until the context ends. Only
// the API has them.
func FollowEndpoints(ctx context.Context, namespace, service string, found Found) {
	f := newFollower("the endpoints of "+namespace+"/"+service, found)
	client := f.client()
	if client == nil {
		return
	}
	client.WatchEndpoints(ctx, namespace, service, kubeapi.Handler[kubeapi.EndpointSlice]{
		Changed: func(s []kubeapi.EndpointSlice) { f.tell(kubeapi.Addresses(s), byAPI) },
		Failed:  f.apiFailed,
	})
}

// follower merges the addresses of several sources.
type follower struct {
	name  string
	found Found

	// Tests replace these.
	inCluster func() (kubeapi.Config, error)
	rules     func() ([]netip.AddrPort, error)

	mu          sync.Mutex
	last        []netip.AddrPort
	api         bool   // the API answers
	failure     string // of the API, logged last
	rulesFailed bool   // the rules cannot be read, and that was logged
}

func newFollower(name string, found Found) *follower {
	return &follower{
		name: name, found: found,
		inCluster: func() (kubeapi.Config, error) { return kubeapi.InCluster("/") },
		rules:     func() ([]netip.AddrPort, error) { return kubeproxy.ServiceAddresses(kubeproxy.Config{}, name) },
	}
}

func (f *follower) client() *kubeapi.Client {
	config, err := f.inCluster()
	if err != nil {
		log.Infof("%s: %v", f.name, err)
		return nil
	}
	return kubeapi.New(config)
}

func (f *follower) tell(addrs []netip.AddrPort, by string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if by == byAPI {
		f.api = true
	} else if f.api {
		return // the API is newer
	}
	if len(addrs) == 0 {
		if by == byAPI && len(f.last) > 0 {
			log.Warningf("%s: %s has no addresses any more; the last ones stay in use", f.name, by)
		}
		return
	}
	if slices.Equal(addrs, f.last) {
		return
	}
	f.last = slices.Clone(addrs)
	f.found(f.last, by)
}

func (f *follower) apiFailed(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.api = err == nil
	switch {
	case err == nil && f.failure != "":
		log.Infof("%s: the Kubernetes API answers again", f.name)
		f.failure = ""
	case err != nil && err.Error() != f.failure:
		log.Warningf("%s: %v; the last addresses stay in use", f.name, err)
		f.failure = err.Error()
	}
}

func (f *follower) apiAnswers() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.api
}

// kube-proxy's rules are read every rulesInterval. Reads of large rulesets are rarer: they
// take at most 1/rulesShare of a processor.
const (
	rulesInterval = 2 * time.Second
	rulesShare    = 50
)

func (f *follower) readRules(ctx context.Context) {
	for {
		wait := rulesInterval
		if !f.apiAnswers() {
			began := time.Now()
			addrs, err := f.rules()
			wait = max(wait, rulesShare*time.Since(began))
			switch {
			case err != nil && !f.rulesFailed:
				f.rulesFailed = true
				log.Warningf("%v", err)
			case err == nil:
				f.rulesFailed = false
				f.tell(addrs, byKubeProxy)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}
