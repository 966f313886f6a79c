// Package who finds out whose the addresses of a node are: which pod, which Service, or the
// node itself. It asks the Kubernetes API where that is allowed, and reads the node
// otherwise: the container runtime, network namespaces, control groups, kube-proxy's rules.
package who

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
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

	local  map[netip.Addr]names.Owner
	client *kubeapi.Client // nil: pods are not from the API
	node   string
}

// Sources of names.
const (
	FromAPI       = "Kubernetes API"
	FromRuntime   = "container runtime"
	FromNode      = "network namespaces"
	FromKubeProxy = "kube-proxy's rules"
)

// askTimeout bounds the wait for the API or the container runtime.
const askTimeout = 5 * time.Second

// Find finds out the names that there are now. It always returns a Book.
func (n Node) Find(ctx context.Context) *Found {
	f := &Found{local: n.own(), node: n.name()}
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
		f.note("no names of pods from the Kubernetes API", err)
	} else {
		pods, f.Pods, f.client = names.OfPods(list), FromAPI, c
	}
	if list, err := c.ListServices(ctx); err != nil {
		f.note("no names of Services from the Kubernetes API", err)
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

// own returns the addresses of the node itself.
func (n Node) own() map[netip.Addr]names.Owner {
	own := map[netip.Addr]names.Owner{}
	for _, a := range interfaceAddresses() {
		own[a] = names.Owner{Kind: names.Node, Name: n.name()}
	}
	return own
}

func (n Node) name() string {
	host, _ := os.Hostname()
	return cmp.Or(n.Name, os.Getenv("NODE_NAME"), host)
}

// interfaceAddresses returns the addresses in the calling thread's network namespace.
func interfaceAddresses() []netip.Addr {
	var out []netip.Addr
	list, _ := net.InterfaceAddrs()
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			out = append(out, p.Addr())
		}
	}
	return out
}

// refreshInterval is how often a node is read again that announces no changes.
const refreshInterval = 10 * time.Second

// Follow calls changed with each new Book until the context ends. Where the names of pods
// come from the API, it watches them there.
func (n Node) Follow(ctx context.Context, f *Found, changed func(*names.Book)) {
	if f.client != nil {
		names.Follow(ctx, f.client, f.node, func(pods, services map[netip.Addr]names.Owner) {
			if services == nil {
				services = readServices(&Found{})
			}
			if pods != nil {
				changed(names.New(f.local, pods, services))
			}
		})
		return
	}
	ticker := time.NewTicker(refreshInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			changed(n.Find(ctx).Book)
		}
	}
}
