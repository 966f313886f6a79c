// Package groups counts the entries of a connection tracking table by who has them: by pod,
// namespace, Service, destination, protocol or state. It reads the table in one pass, in
// bounded memory, and its counts add up to the table.
package groups

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/kubeapi/names"
)

// By is what entries are counted by.
type By uint8

// What entries can be counted by. All of them are in All.
const (
	// Pod counts an entry for the pod that opened the flow, else for the pod that is asked,
	// else for the node if it is an end of the flow, else for the address of the source.
	Pod By = iota
	// Namespace is that of this pod.
	Namespace
	// Service is the one whose ClusterIP the flow was opened to. For other destination NAT,
	// such as that of a NodePort, it is the destination.
	Service
	// Destination is the address, by name where it has one, the port and the protocol that
	// the flow was opened to.
	Destination
	Protocol
	// State is the protocol and the state.
	State

	kinds = 6
)

var words = [kinds]string{"pod", "namespace", "service", "destination", "protocol", "state"}

// String returns the word for it in command lines and JSON.
func (b By) String() string { return words[b] }

// Words are the words for all of All.
func Words() []string { return words[:] }

// All returns all of them, in the order in which screens offer them.
func All() []By { return []By{Pod, Namespace, Service, Destination, Protocol, State} }

// Parse returns what a word stands for.
func Parse(word string) (By, error) {
	for _, b := range All() {
		if b.String() == word {
			return b, nil
		}
	}
	return 0, fmt.Errorf("%q: there are %s", word, strings.Join(Words(), ", "))
}

// Counts are the counts of a group. Their JSON names do not change.
type Counts struct {
	Entries   uint64 `json:"entries"`
	Unreplied uint64 `json:"unreplied"`
	DNS       uint64 `json:"dns"`
	// New are the entries that were not there at the reading before.
	New uint64 `json:"new,omitempty"`
}

func (c *Counts) add(other Counts) {
	c.Entries += other.Entries
	c.Unreplied += other.Unreplied
	c.DNS += other.DNS
	c.New += other.New
}

// countsOf are the counts of one entry.
func countsOf(e *conntrack.Entry, isNew bool) Counts {
	c := Counts{Entries: 1}
	if e.Status&conntrack.StatusSeenReply == 0 {
		c.Unreplied = 1
	}
	if e.IsDNS() {
		c.DNS = 1
	}
	if isNew {
		c.New = 1
	}
	return c
}

// key identifies a group while it is counted. Names are found out for each key, not for each
// entry.
type key struct {
	addr     netip.Addr
	port     uint16
	protocol conntrack.Protocol
	state    string
}

// keyOf returns the key of an entry. The zero key stands for the node itself, and for no
// Service.
func keyOf(by By, e *conntrack.Entry, book *names.Book) key {
	o := &e.Original
	switch by {
	case Pod, Namespace:
		return key{addr: holder(e, book)}
	case Service:
		if e.NAT()&conntrack.NATDestination == 0 && book.Owner(o.Dst).Kind != names.Service {
			return key{}
		}
		return key{addr: o.Dst, port: o.DstPort, protocol: o.Proto}
	case Destination:
		return key{addr: o.Dst, port: o.DstPort, protocol: o.Proto}
	case Protocol:
		return key{protocol: o.Proto}
	}
	return key{protocol: o.Proto, state: e.State()}
}

// holder returns the address of the pod that an entry counts for. The zero address is the
// node.
func holder(e *conntrack.Entry, book *names.Book) netip.Addr {
	src := book.Owner(e.Original.Src).Kind
	if src == names.Pod || src == names.Process {
		return e.Original.Src
	}
	server := book.Owner(e.Reply.Src).Kind
	switch {
	case server == names.Pod || server == names.Process:
		return e.Reply.Src
	case src == names.Node || server == names.Node:
		return netip.Addr{}
	}
	return e.Original.Src
}

// Names of groups that have none of their own.
const (
	NodeItself = "(node)"
	NoPod      = "(no pod)"
	NoService  = "(no Service)"
	Rest       = "(rest)"
)

// nameOf returns the name of a group.
func nameOf(by By, k key, book *names.Book) string {
	owner := book.Owner(k.addr)
	switch by {
	case Pod:
		switch {
		case !k.addr.IsValid():
			return NodeItself
		case owner.Kind == names.Pod, owner.Kind == names.Process:
			return owner.String()
		}
		return k.addr.String()
	case Namespace:
		switch {
		case !k.addr.IsValid():
			return NodeItself
		case owner.Namespace == "" || owner.Kind != names.Pod:
			return NoPod
		}
		return owner.Namespace
	case Service:
		switch {
		case !k.addr.IsValid():
			return NoService
		case owner.Kind == names.Service:
			return owner.String()
		}
		return endpoint(k, book)
	case Destination:
		return endpoint(k, book)
	case Protocol:
		return k.protocol.String()
	}
	return k.protocol.String() + " " + k.state
}

// endpoint writes an address by its owner's name where it has one, with port and protocol.
func endpoint(k key, book *names.Book) string {
	name := k.addr.String()
	if owner := book.Owner(k.addr); owner.Kind != names.Unknown {
		name = owner.String()
	} else if k.addr.Is6() && k.protocol.HasPorts() {
		name = "[" + name + "]"
	}
	if !k.protocol.HasPorts() {
		return name + " " + k.protocol.String()
	}
	return fmt.Sprintf("%s:%d %s", name, k.port, k.protocol)
}
