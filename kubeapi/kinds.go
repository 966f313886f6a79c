package kubeapi

import (
	"cmp"
	"context"
	"net/netip"
	"net/url"
	"os"
	"slices"
)

// Service has the fields of a Service that are used here (core/v1).
type Service struct {
	Metadata Meta `json:"metadata"`
	Spec     struct {
		ClusterIP  string   `json:"clusterIP"`
		ClusterIPs []string `json:"clusterIPs"`
		Ports      []Port   `json:"ports"`
	} `json:"spec"`
}

// Pod has the fields of a Pod that are used here (core/v1). The API returns whole pods: the
// form with metadata alone has no addresses, and the form for tables one address of two.
type Pod struct {
	Metadata Meta `json:"metadata"`
	Spec     struct {
		HostNetwork bool `json:"hostNetwork"`
	} `json:"spec"`
	Status struct {
		Phase  string `json:"phase"`
		PodIPs []struct {
			IP string `json:"ip"`
		} `json:"podIPs"`
	} `json:"status"`
}

// Addresses returns the addresses that are the pod's alone. A pod in the host's network has
// none, and neither has one that ended: another pod may have its addresses now.
func (p Pod) Addresses() []netip.Addr {
	if p.Spec.HostNetwork || p.Status.Phase == "Succeeded" || p.Status.Phase == "Failed" {
		return nil
	}
	var out []netip.Addr
	for _, ip := range p.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil {
			out = append(out, a)
		}
	}
	return out
}

// Port is a port of a Service or of an EndpointSlice.
type Port struct {
	Name     string `json:"name"`
	Protocol string `json:"protocol"` // TCP if empty
	Port     uint16 `json:"port"`
}

// EndpointSlice has the fields of an EndpointSlice that are used here (discovery/v1).
type EndpointSlice struct {
	Metadata  Meta       `json:"metadata"`
	Endpoints []Endpoint `json:"endpoints"`
	Ports     []Port     `json:"ports"`
}

// Endpoint is one endpoint of a slice. Missing conditions have the defaults of the API:
// ready is true, serving is ready, terminating is false.
type Endpoint struct {
	Addresses  []string `json:"addresses"`
	Conditions struct {
		Ready   *bool `json:"ready"`
		Serving *bool `json:"serving"`
	} `json:"conditions"`
}

func (p Pod) meta() Meta           { return p.Metadata }
func (s Service) meta() Meta       { return s.Metadata }
func (s EndpointSlice) meta() Meta { return s.Metadata }

// WatchService watches one Service until the context ends. Changed gets an empty list if
// there is no such Service. The verbs list and watch must be allowed for that name.
func (c *Client) WatchService(ctx context.Context, namespace, name string, h Handler[Service]) {
	w := &watcher[Service]{
		client: c, handler: h, pace: defaultPace,
		path: "/api/v1/namespaces/" + url.PathEscape(namespace) + "/services",
		// With this selector, RBAC applies resourceNames to list and watch.
		query: url.Values{"fieldSelector": {"metadata.name=" + name}},
	}
	w.run(ctx)
}

// WatchEndpoints watches the EndpointSlices of one Service until the context ends. The
// verbs list and watch must be allowed for endpointslices in the namespace.
func (c *Client) WatchEndpoints(ctx context.Context, namespace, service string, h Handler[EndpointSlice]) {
	w := &watcher[EndpointSlice]{
		client: c, handler: h, pace: defaultPace,
		path:  "/apis/discovery.k8s.io/v1/namespaces/" + url.PathEscape(namespace) + "/endpointslices",
		query: url.Values{"labelSelector": {"kubernetes.io/service-name=" + service}},
	}
	w.run(ctx)
}

// NodeName returns the name of this node in the API: the given one, else NODE_NAME of the
// environment, else the name of the host.
func NodeName(name string) string {
	host, _ := os.Hostname()
	return cmp.Or(name, os.Getenv("NODE_NAME"), host)
}

const (
	podsPath     = "/api/v1/pods"
	servicesPath = "/api/v1/services"
)

// podsOn selects the pods of a node. RBAC knows no nodes: the verbs must be allowed for the
// pods of all.
func podsOn(node string) url.Values { return url.Values{"fieldSelector": {"spec.nodeName=" + node}} }

// ListPods returns the pods of a node, as the API server has them in memory. The verb list
// must be allowed for pods in all namespaces.
func (c *Client) ListPods(ctx context.Context, node string) ([]Pod, error) {
	return listed[Pod](ctx, c, podsPath, podsOn(node))
}

// ListServices returns all Services, as the API server has them in memory. The verb list
// must be allowed for services in all namespaces.
func (c *Client) ListServices(ctx context.Context) ([]Service, error) {
	return listed[Service](ctx, c, servicesPath, url.Values{})
}

func listed[T object](ctx context.Context, c *Client, path string, query url.Values) (out []T, err error) {
	query.Set("resourceVersion", "0") // not asked of etcd: names need not be the newest
	_, err = list(ctx, c, path, query, func(o T) { out = append(out, o) })
	return out, err
}

// WatchPods watches the pods of a node until the context ends. The verbs list and watch must
// be allowed for pods in all namespaces.
func (c *Client) WatchPods(ctx context.Context, node string, h Handler[Pod]) {
	w := &watcher[Pod]{client: c, handler: h, pace: defaultPace, path: podsPath, query: podsOn(node)}
	w.run(ctx)
}

// WatchServices watches all Services until the context ends. The verbs list and watch must
// be allowed for services in all namespaces.
func (c *Client) WatchServices(ctx context.Context, h Handler[Service]) {
	w := &watcher[Service]{client: c, handler: h, pace: defaultPace, path: servicesPath}
	w.run(ctx)
}

// Addresses returns the ClusterIPs of a Service with its DNS port, the primary one first.
// A headless Service has none.
func (s Service) Addresses() []netip.AddrPort {
	ips := s.Spec.ClusterIPs
	if len(ips) == 0 {
		ips = []string{s.Spec.ClusterIP}
	}
	var out []netip.AddrPort
	for _, ip := range ips {
		if a, err := netip.ParseAddr(ip); err == nil {
			out = append(out, netip.AddrPortFrom(a, dnsPort(s.Spec.Ports)))
		}
	}
	return out
}

// Addresses returns the endpoints of all slices with their DNS port, sorted: the endpoints
// that are ready or, if none is, the endpoints that still serve while they terminate.
func Addresses(slicesOf []EndpointSlice) []netip.AddrPort {
	var ready, serving []netip.AddrPort
	for _, s := range slicesOf {
		port := dnsPort(s.Ports)
		for _, e := range s.Endpoints {
			isReady := e.Conditions.Ready == nil || *e.Conditions.Ready
			isServing := isReady
			if e.Conditions.Serving != nil {
				isServing = *e.Conditions.Serving
			}
			// All addresses of an endpoint are equivalent. Clients use the first one
			// (discovery/v1).
			if len(e.Addresses) == 0 {
				continue
			}
			a, err := netip.ParseAddr(e.Addresses[0])
			if err != nil {
				continue // a slice of type FQDN
			}
			switch ap := netip.AddrPortFrom(a, port); {
			case isReady:
				ready = append(ready, ap)
			case isServing:
				serving = append(serving, ap)
			}
		}
	}
	if len(ready) == 0 {
		ready = serving
	}
	slices.SortFunc(ready, func(a, b netip.AddrPort) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Port(), b.Port()))
	})
	return slices.Compact(ready)
}

// dnsPort returns the port of DNS over UDP, which kube-dns names "dns". The port for TCP
// has the same number.
func dnsPort(ports []Port) uint16 {
	const standard = 53
	best, rank := uint16(standard), 0
	for _, p := range ports {
		r := 0
		switch {
		case p.Port == 0:
		case p.Protocol == "UDP" && p.Name == "dns":
			r = 4
		case p.Protocol == "UDP":
			r = 3
		case p.Name == "dns-tcp":
			r = 2
		}
		if r > rank {
			best, rank = p.Port, r
		}
	}
	return best
}
