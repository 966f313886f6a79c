// Package nodetest has a node and its instances in memory, for tests.
package nodetest

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/failover"
	"github.com/trackless-dns/trackless/iptables/hostaddr"
	"github.com/trackless-dns/trackless/iptables/hostrules"
	"github.com/trackless-dns/trackless/iptables/owner"
	"github.com/trackless-dns/trackless/node/instance"
	"github.com/trackless-dns/trackless/node/rules"
)

// Node is a node in memory; it implements rules.Node.
type Node struct {
	Tables       []iptables.Instance
	Standing     failover.State
	OtherRules   []hostrules.ConflictingRule
	Accepting    []hostrules.AcceptRule
	Links        []hostaddr.Device
	OtherServers []netip.Addr // DNS servers besides ours
	Listening    []netip.Addr // of anybody, ours as well
	Controls     []*Socket
	Err          error // of reading the tables
	Late         bool  // an instance starts after the first reading
	readings     int
	Removed      []string // what was, in words
}

// Instances implements rules.Node.
func (n *Node) Instances() ([]iptables.Instance, error) {
	n.readings++
	if n.Late && n.readings == 2 {
		n.Tables = append(n.Tables, iptables.Instance{Backend: "nftables", Table: "trackless-late", Owned: true, Owner: owner.Owner{Life: owner.Alive}})
	}
	return slices.Clone(n.Tables), n.Err
}

// RemoveTable implements rules.Node.
func (n *Node) RemoveTable(i iptables.Instance) error {
	name := i.Table
	n.Removed = append(n.Removed, "table "+name)
	n.Tables = slices.DeleteFunc(n.Tables, func(i iptables.Instance) bool { return i.Table == name })
	return nil
}

// Failover implements rules.Node.
func (n *Node) Failover() (failover.State, error) { return n.Standing, nil }

// RemoveFailover implements rules.Node.
func (n *Node) RemoveFailover() error {
	n.Removed = append(n.Removed, "failover")
	return nil
}

// KeepFailover implements rules.Node.
func (n *Node) KeepFailover(pairs []failover.Pair, _ failover.Outside) error {
	n.Removed = append(n.Removed, fmt.Sprintf("failover but %v", pairs))
	return nil
}

// OtherListeners implements rules.Node.
func (n *Node) OtherListeners() ([]netip.Addr, error) { return n.Listening, nil }

// Servers implements rules.Node.
func (n *Node) Servers() ([]netip.Addr, error) { return n.OtherServers, nil }

// AcceptRules implements rules.Node.
func (n *Node) AcceptRules() ([]hostrules.AcceptRule, error) { return n.Accepting, nil }

// RemoveAcceptRule implements rules.Node.
func (n *Node) RemoveAcceptRule(r hostrules.AcceptRule) error {
	n.Removed = append(n.Removed, rules.AcceptRuleName(r))
	return nil
}

// Foreign implements rules.Node.
func (n *Node) Foreign(endpoints []iptables.Endpoint) ([]hostrules.ConflictingRule, error) {
	var out []hostrules.ConflictingRule
	for _, f := range n.OtherRules {
		f.Concerns = slices.DeleteFunc(slices.Clone(endpoints), func(e iptables.Endpoint) bool { return e.Proto != iptables.UDP })
		out = append(out, f)
	}
	return out, nil
}

// Devices implements rules.Node.
func (n *Node) Devices(string, []netip.Addr) ([]hostaddr.Device, error) { return n.Links, nil }

// RemoveLink implements rules.Node.
func (n *Node) RemoveLink(name string) error {
	n.Removed = append(n.Removed, "link "+name)
	return nil
}

// RemoveAddress implements rules.Node.
func (n *Node) RemoveAddress(device string, a netip.Addr) error {
	n.Removed = append(n.Removed, fmt.Sprintf("address %s %s", device, a))
	return nil
}

// Sockets implements rules.Node.
func (n *Node) Sockets(name string, pids []int) []instance.ControlSocket {
	var out []instance.ControlSocket
	for _, s := range n.Controls {
		if name != "" && s.Name != name || s.OnlyByPID && !slices.Contains(pids, s.ID) && name == "" {
			continue
		}
		out = append(out, s)
	}
	return out
}

// NetNamespace implements rules.Node.
func (n *Node) NetNamespace() uint64 { return 1 }
