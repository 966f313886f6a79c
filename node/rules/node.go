package rules

import (
	"net/netip"
	"slices"

	"github.com/trackless-dns/trackless/internal/sockets"
	"github.com/trackless-dns/trackless/internal/thread"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/backends"
	"github.com/trackless-dns/trackless/iptables/binaries"
	"github.com/trackless-dns/trackless/iptables/failover"
	"github.com/trackless-dns/trackless/iptables/hostaddr"
	"github.com/trackless-dns/trackless/iptables/hostrules"
	"github.com/trackless-dns/trackless/iptables/kubeproxy"
	"github.com/trackless-dns/trackless/node/instance"
)

// Node is what a report and a removal need of a node.
type Node interface {
	instance.Node
	// RemoveTable removes what the kernel holds of an instance.
	RemoveTable(iptables.Instance) error
	Failover() (failover.State, error)
	RemoveFailover() error
	// KeepFailover leaves these pairs of it.
	KeepFailover([]failover.Pair, failover.Outside) error
	Foreign([]iptables.Endpoint) ([]hostrules.ConflictingRule, error)
	// Servers are addresses of DNS servers that pods of this node may ask, ours
	// or others'.
	Servers() ([]netip.Addr, error)
	// OtherListeners are addresses at which anybody listens for DNS.
	OtherListeners() ([]netip.Addr, error)
	// AcceptRules are ours in the filter chains of the host.
	AcceptRules() ([]hostrules.AcceptRule, error)
	RemoveAcceptRule(hostrules.AcceptRule) error
	Devices(link string, addrs []netip.Addr) ([]hostaddr.Device, error)
	RemoveLink(name string) error
	RemoveAddress(device string, a netip.Addr) error
}

// Kernel is the node on which we run.
type Kernel struct{ instance.Kernel }

// Failover implements Node.
func (Kernel) Failover() (failover.State, error) { return failover.Read(failover.Config{}) }

// RemoveFailover implements Node.
func (Kernel) RemoveFailover() error { return failover.Remove(failover.Config{}) }

// KeepFailover implements Node.
func (Kernel) KeepFailover(pairs []failover.Pair, outside failover.Outside) error {
	return failover.Install(failover.Config{}, pairs, outside)
}

// OtherListeners implements Node.
func (Kernel) OtherListeners() ([]netip.Addr, error) { return sockets.OtherListeners(thread.Proc) }

// RemoveLink implements Node.
func (Kernel) RemoveLink(name string) error { return hostaddr.RemoveLink(hostaddr.Config{}, name) }

// RemoveTable implements Node.
func (Kernel) RemoveTable(i iptables.Instance) error { return backends.Remove(i) }

// Foreign implements Node.
func (Kernel) Foreign(endpoints []iptables.Endpoint) ([]hostrules.ConflictingRule, error) {
	return hostrules.ConflictingRules(hostrules.Config{}, endpoints)
}

// Servers are those that listen on this node, and the Service of kube-dns.
func (Kernel) Servers() ([]netip.Addr, error) {
	addrs, err := Listeners()
	services, _ := kubeproxy.ServiceAddresses(kubeproxy.Config{}, "kube-system/kube-dns") // where it can be read
	for _, s := range services {
		if !slices.Contains(addrs, s.Addr()) {
			addrs = append(addrs, s.Addr())
		}
	}
	return addrs, err
}

// AcceptRules implements Node.
func (Kernel) AcceptRules() ([]hostrules.AcceptRule, error) {
	return hostrules.AcceptRules(hostrules.Config{})
}

// RemoveAcceptRule implements Node.
func (Kernel) RemoveAcceptRule(r hostrules.AcceptRule) error {
	if r.Legacy {
		return binaries.RemoveLegacy(r.Family == "ip6", r.Chain, r.Arguments())
	}
	return hostrules.RemoveAcceptRule(hostrules.Config{}, r)
}

// Devices implements Node.
func (Kernel) Devices(link string, addrs []netip.Addr) ([]hostaddr.Device, error) {
	return hostaddr.Inspect(hostaddr.Config{}, link, addrs)
}

// RemoveAddress implements Node.
func (Kernel) RemoveAddress(device string, a netip.Addr) error {
	return hostaddr.RemoveAddress(hostaddr.Config{}, device, a)
}

// Listeners are the addresses at which a DNS server of this node can be asked,
// also by one socket for all.
func Listeners() ([]netip.Addr, error) {
	var held []netip.Addr
	// Both only for wildcard sockets, and what cannot be read they do not have.
	instances, _ := instance.Kernel{}.Instances()
	for _, i := range instances {
		for _, e := range i.Listen {
			if e.Port == 53 {
				held = append(held, e.Addr)
			}
		}
	}
	devices, _ := hostaddr.Inspect(hostaddr.Config{}, hostaddr.DefaultLink, nil)
	for _, d := range devices {
		for _, a := range d.Addresses {
			if d.Link || a.Marked {
				held = append(held, a.Addr)
			}
		}
	}
	return sockets.Listeners(thread.Proc, held...)
}
