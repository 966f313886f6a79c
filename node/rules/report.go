// Package rules reports which rules, addresses and instances a node has, and removes
// those that have no living owner.
package rules

import (
	"net/netip"

	"github.com/trackless-dns/trackless/iptables/control"
	"github.com/trackless-dns/trackless/iptables/owner"
	"github.com/trackless-dns/trackless/node/instance"
)

// Report says which rules, addresses and instances a node has. Its JSON is that of
// `rules show`: fields may be added, none renamed.
type Report struct {
	Instances []Instance        `json:"instances"`
	Failover  *Failover         `json:"failover"`
	Accept    []AcceptRule      `json:"accept"`
	Devices   []Device          `json:"devices"`
	Foreign   []ConflictingRule `json:"foreign"`
	Notes     []string          `json:"notes"`

	// Reached are the instances that answered on their control sockets, Silent the
	// sockets on which somebody listens and does not answer.
	Reached []instance.Reached `json:"-"`
	Silent  []instance.Silent  `json:"-"`

	socket string // the one that was to be asked
}

// Instance is a Trackless that has rules in the kernel.
type Instance struct {
	Table   string `json:"table"`
	Backend string `json:"backend"`
	// Variant is that of the programs of backend iptables.
	Variant string `json:"variant,omitempty"`
	// Owned: the kernel removes the table when the process ends.
	Owned bool  `json:"owned"`
	Owner Owner `json:"owner"`
	// State is attached, detached, draining or, where some endpoints are
	// untracked and others not, partly attached.
	State     string     `json:"state"`
	ByHand    bool       `json:"by_hand"`
	Reason    string     `json:"reason,omitempty"`
	Socket    string     `json:"socket,omitempty"`
	Endpoints []Endpoint `json:"endpoints"`
	Packets   []Packets  `json:"packets"`
	// FastPath is what the kernel answers for it, if it has the directive.
	FastPath *control.FastPath `json:"fastpath,omitempty"`
}

// Owner is the process that a table belongs to.
type Owner struct {
	// PID is the id in the owner's own pid namespace, LocalPID the one here.
	PID        int        `json:"pid"`
	LocalPID   int        `json:"local_pid,omitempty"`
	Life       owner.Life `json:"life"`
	Command    string     `json:"command,omitempty"`
	AgeSeconds int64      `json:"age_seconds,omitempty"`
}

// Name says whose a table is, for sentences.
func (o Owner) Name() string {
	return instance.OwnerName(owner.Owner{PID: o.PID, LocalPID: o.LocalPID, Life: o.Life})
}

// Endpoint is an address, port and protocol.
type Endpoint struct {
	Address   netip.Addr `json:"address"`
	Port      uint16     `json:"port"`
	Protocol  string     `json:"protocol"`
	Untracked bool       `json:"untracked"`
}

func (e Endpoint) String() string {
	return e.Protocol + " " + netip.AddrPortFrom(e.Address, e.Port).String()
}

// Packets counts packets of a kind.
type Packets struct {
	Direction string `json:"direction"`
	Family    string `json:"family"`
	Protocol  string `json:"protocol"`
	Packets   uint64 `json:"packets"`
}

// Failover is the standing table for link-local addresses.
type Failover struct {
	Table string `json:"table"`
	// Intact: it is exactly what Trackless makes for these pairs.
	Intact  bool      `json:"intact"`
	Pairs   []Pair    `json:"pairs"`
	Packets []Packets `json:"packets"`
}

// AcceptRule is a rule of ours in a filter chain of the host.
type AcceptRule struct {
	Family    string   `json:"family"`
	Legacy    bool     `json:"legacy"`
	Chain     string   `json:"chain"`
	Endpoint  Endpoint `json:"endpoint"`
	Direction string   `json:"direction"`
	Rule      string   `json:"rule"`
	// InUse: an instance serves the endpoint. If not, `rules remove` takes it away.
	InUse bool `json:"in_use"`
}

// Pair is a listen address of the failover table and the Service that its queries go to.
type Pair struct {
	Listen  netip.Addr `json:"listen"`
	Service netip.Addr `json:"service"`
	Ports   []uint16   `json:"ports"`
	// InUse: an instance serves Listen. If not, it stands for pods that still ask
	// there, and `rules remove` takes it away.
	InUse bool `json:"in_use"`
}

// Device carries listen addresses.
type Device struct {
	Name string `json:"name"`
	Kind string `json:"kind,omitempty"`
	// Link: made to carry listen addresses.
	Link      bool      `json:"link"`
	Addresses []Address `json:"addresses"`
}

// Address is one of a device.
type Address struct {
	Address netip.Addr `json:"address"`
	// Ours: it carries our mark.
	Ours bool `json:"ours"`
	// InUse: somebody asks for it. If not, and it is ours, `rules remove` takes it
	// away.
	InUse bool `json:"in_use"`
}

// ConflictingRule is a rule of others that meets DNS before conntrack sees it.
type ConflictingRule struct {
	Family    string     `json:"family"`
	Table     string     `json:"table"`
	Chain     string     `json:"chain"`
	Legacy    bool       `json:"legacy"`
	Hook      string     `json:"hook"`
	Priority  int        `json:"priority"`
	Handle    uint64     `json:"handle"`
	Rule      string     `json:"rule"`
	Effects   []string   `json:"effects"`
	Meaning   string     `json:"meaning"`
	Certain   bool       `json:"certain"`
	NodeCache bool       `json:"node_cache"`
	Endpoints []Endpoint `json:"endpoints"`
	// Directions holds query, response or both.
	Directions []string `json:"directions"`
}

// Unreached says why the instance of the socket that was named did not answer, nil
// if it did or none was named.
func (r *Report) Unreached() error {
	if r.socket == "" || len(r.Silent) == 0 {
		return nil
	}
	return r.Silent[len(r.Silent)-1].Err
}
