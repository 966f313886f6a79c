// Package names tells whose an address is: a pod's, a Service's, or this node's.
package names

import (
	"cmp"
	"maps"
	"net/netip"
	"path"
	"slices"

	"github.com/trackless-dns/trackless/kubeapi"
)

// Kind is what has an address.
type Kind uint8

// The kinds of owners. A Process stands for a network namespace that is no pod's.
const (
	Unknown Kind = iota
	Pod
	Service
	Node
	Process
)

// String returns the kind as JSON has it, "" for Unknown.
func (k Kind) String() string {
	return [...]string{Unknown: "", Pod: "pod", Service: "service", Node: "node", Process: "process"}[k]
}

// Owner is who has an address.
type Owner struct {
	Kind Kind
	// Namespace is that of a pod or Service. It is empty where only the name is known.
	Namespace string
	Name      string
}

// String returns "namespace/name", or the name alone where there is no namespace.
func (o Owner) String() string {
	if o.Namespace == "" {
		return o.Name
	}
	return o.Namespace + "/" + o.Name
}

// Book has the owners of addresses. The zero Book knows none. A Book does not change: it is
// safe for concurrent use.
type Book struct {
	owners map[netip.Addr]Owner
	pods   bool
}

// New merges lists of owners into a Book. Where two lists have an address, the later one
// holds.
func New(lists ...map[netip.Addr]Owner) *Book {
	b := &Book{owners: map[netip.Addr]Owner{}}
	for _, list := range lists {
		maps.Copy(b.owners, list)
	}
	for _, o := range b.owners {
		b.pods = b.pods || o.Kind == Pod
	}
	return b
}

// Owner returns who has the address. The Kind is Unknown if nobody is known to.
func (b *Book) Owner(a netip.Addr) Owner { return b.owners[a] }

// HasPods reports whether the name of any pod is known.
func (b *Book) HasPods() bool { return b.pods }

// Match is a pod that a pattern matches.
type Match struct {
	Owner     Owner
	Addresses []netip.Addr // sorted
}

// Pods returns the pods that a pattern of path.Match matches, sorted by name. A pattern
// without a slash is compared with the name alone.
func (b *Book) Pods(pattern string) ([]Match, error) {
	found := map[Owner][]netip.Addr{}
	for a, o := range b.owners {
		if o.Kind != Pod {
			continue
		}
		matches, err := path.Match(pattern, o.String())
		if err == nil && !matches {
			matches, err = path.Match(pattern, o.Name)
		}
		if err != nil {
			return nil, err
		}
		if matches {
			found[o] = append(found[o], a)
		}
	}
	out := make([]Match, 0, len(found))
	for o, addresses := range found {
		slices.SortFunc(addresses, netip.Addr.Compare)
		out = append(out, Match{o, addresses})
	}
	slices.SortFunc(out, func(a, b Match) int { return cmp.Compare(a.Owner.String(), b.Owner.String()) })
	return out, nil
}

// OfPods returns the owners of the pods' addresses.
func OfPods(pods []kubeapi.Pod) map[netip.Addr]Owner {
	out := map[netip.Addr]Owner{}
	for _, p := range pods {
		for _, a := range p.Addresses() {
			out[a] = Owner{Pod, p.Metadata.Namespace, p.Metadata.Name}
		}
	}
	return out
}

// OfServices returns the owners of the ClusterIPs.
func OfServices(services []kubeapi.Service) map[netip.Addr]Owner {
	out := map[netip.Addr]Owner{}
	for _, s := range services {
		for _, ap := range s.Addresses() {
			out[ap.Addr()] = Owner{Service, s.Metadata.Namespace, s.Metadata.Name}
		}
	}
	return out
}
