// Package who finds out whose the addresses of a node are: which pod, which Service, or the
// node itself. It asks the Kubernetes API where that is allowed, and reads the node
// otherwise: the container runtime, network namespaces, control groups, kube-proxy's rules.
package who

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/trackless-dns/trackless/iptables/kubeproxy"
	"github.com/trackless-dns/trackless/kubeapi"
	"github.com/trackless-dns/trackless/kubeapi/names"
)

// Node is the node whose names are asked for. The calling thread is in its network
// namespace.
type Node struct {
	// Root is the directory under which the host's proc, run and var are.
	Root string
	// Name is the node's name in the API. Empty: NODE_NAME of the environment, else the
	// name of the host.
	Name string

	inCluster func() (kubeapi.Config, error) // nil: kubeapi.InCluster; tests have others
}

// Found is what Find found out.
type Found struct {
	Book *names.Book
	// Pods and Services say where the names come from, "" for nowhere.
	Pods, Services string
	// Notes say why better sources did not answer.
	Notes []string

	local, services map[netip.Addr]names.Owner
	client          *kubeapi.Client // nil: pods are not from the API
	node            string
}

// Sources of names.
const (
	FromAPI       = "Kubernetes API"
	FromRuntime   = "container runtime"
	FromNode      = "network namespaces"
	FromKubeProxy = "rules of kube-proxy"
)

// askTimeout bounds the wait for the API or the container runtime.
const askTimeout = 5 * time.Second

// Find finds out the names that there are now. It always returns a Book.
func (n Node) Find(ctx context.Context) *Found {
	node := kubeapi.NodeName(n.Name)
	f := &Found{local: names.OfNode(node), node: node}
	var pods, services map[netip.Addr]names.Owner
	config, err := n.api()
	if err == nil {
		pods, services = f.askAPI(ctx, kubeapi.New(config))
	} else if !errors.Is(err, kubeapi.ErrNotInCluster) {
		f.note("the Kubernetes API is not asked", err)
	}
	if pods == nil {
		pods = n.askNode(ctx, f)
	}
	if services == nil {
		services = readServices(f)
	}
	f.services = services
	f.Book = names.New(f.local, pods, services)
	return f
}

func (n Node) api() (kubeapi.Config, error) {
	if n.inCluster != nil {
		return n.inCluster()
	}
	return kubeapi.InCluster("/")
}

func (f *Found) note(what string, err error) {
	f.Notes = append(f.Notes, fmt.Sprintf("%s: %v", what, err))
}

func (f *Found) askAPI(ctx context.Context, c *kubeapi.Client) (pods, services map[netip.Addr]names.Owner) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	if list, err := c.ListPods(ctx, f.node); err != nil {
		f.note("no names of pods from the Kubernetes API", kubeapi.ForNames(err))
	} else {
		pods, f.Pods, f.client = names.OfPods(list), FromAPI, c
	}
	if list, err := c.ListServices(ctx); err != nil {
		f.note("no names of Services from the Kubernetes API", kubeapi.ForNames(err))
	} else {
		services, f.Services = names.OfServices(list), FromAPI
	}
	return pods, services
}

// askNode returns the names of pods that the node has itself.
func (n Node) askNode(ctx context.Context, f *Found) map[netip.Addr]names.Owner {
	pods, err := askRuntime(ctx, n.Root)
	if err == nil {
		f.Pods = FromRuntime
		return pods
	}
	if !errors.Is(err, errNoRuntime) {
		f.note("no names of pods from the container runtime", err)
	}
	pods, err = n.readNamespaces()
	if err != nil {
		f.note("no names of pods from network namespaces", err)
	}
	if len(pods) > 0 {
		f.Pods = FromNode
	}
	return pods
}

func readServices(f *Found) map[netip.Addr]names.Owner {
	byAddress, err := kubeproxy.ServiceNames(kubeproxy.Config{})
	if err != nil {
		f.note("no names of Services", err)
	}
	services := map[netip.Addr]names.Owner{}
	for a, name := range byAddress {
		services[a] = ownerOf(names.Service, name)
		f.Services = FromKubeProxy
	}
	return services
}

// refreshInterval is how often a node is read again that announces no changes.
const refreshInterval = 10 * time.Second

// A Follower keeps names current. It is for one goroutine.
type Follower struct {
	node  Node
	found *Found
	at    time.Time
	book  atomic.Pointer[names.Book] // the newest from the API
}

// Follow finds the names that there are now, and keeps them current until the context ends.
func (n Node) Follow(ctx context.Context) *Follower {
	f := &Follower{node: n, found: n.Find(ctx), at: time.Now()}
	f.book.Store(f.found.Book)
	if first := f.found; first.client != nil {
		go names.Follow(ctx, first.client, first.node, func(pods, services map[netip.Addr]names.Owner) {
			if pods == nil {
				return
			}
			if services == nil {
				services = first.services
			}
			f.book.Store(names.New(first.local, pods, services))
		})
	}
	return f
}

// Current returns the names of now. Those from the API are followed there; otherwise the
// node is read again after a while, by the calling thread.
func (f *Follower) Current(ctx context.Context) *Found {
	if f.found.client == nil && time.Since(f.at) >= refreshInterval {
		f.found, f.at = f.node.Find(ctx), time.Now()
		return f.found
	}
	current := *f.found
	if f.found.client != nil {
		current.Book = f.book.Load()
	}
	return &current
}
