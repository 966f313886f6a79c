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

// Found is told the addresses of an upstream whenever they are others than
// before, never none: what was known last stays valid. by says who told.
type Found func(addrs []netip.AddrPort, by string)

// Who tells the addresses.
const (
	byAPI       = "the Kubernetes API"
	byKubeProxy = "kube-proxy's rules"
)

// FollowService tells the ClusterIPs of a Service, the primary one first, until
// the context ends. It asks the API; while that does not answer, as without the
// permission to, it reads kube-proxy's rules.
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

// FollowEndpoints tells the endpoints of a Service until the context ends. Only
// the API knows them.
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

// follower merges what several tell.
type follower struct {
	what  string
	found Found

	// Tests replace them.
	inCluster func() (kubeapi.Config, error)
	rules     func() ([]netip.AddrPort, error)

	mu     sync.Mutex
	last   []netip.AddrPort
	api    bool // it answers
	said   string
	silent bool // the rules cannot be read, and that was said
}

func newFollower(what string, found Found) *follower {
	return &follower{
		what: what, found: found,
		inCluster: func() (kubeapi.Config, error) { return kubeapi.InCluster("/") },
		rules:     func() ([]netip.AddrPort, error) { return kubeproxy.ServiceAddresses(kubeproxy.Config{}, what) },
	}
}

func (f *follower) client() *kubeapi.Client {
	config, err := f.inCluster()
	if err != nil {
		log.Infof("%s: %v", f.what, err)
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
		return // it knows better
	}
	if len(addrs) == 0 {
		if by == byAPI && len(f.last) > 0 {
			log.Warningf("%s: %s knows no address any more; the last ones are used", f.what, by)
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
	case err == nil && f.said != "":
		log.Infof("%s: the Kubernetes API answers again", f.what)
		f.said = ""
	case err != nil && err.Error() != f.said:
		log.Warningf("%s: %v; what is known stays in use", f.what, err)
		f.said = err.Error()
	}
}

func (f *follower) apiAnswers() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.api
}

// Times between two readings of kube-proxy's rules: the second is that by which
// the time of a reading is multiplied, so that large rulesets cost no more than
// two percent of a processor.
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
			case err != nil && !f.silent:
				f.silent = true
				log.Warningf("%v", err)
			case err == nil:
				f.silent = false
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
