package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/trackless-dns/trackless/conntrack/host"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/binaries"
	"github.com/trackless-dns/trackless/iptables/control"
	"github.com/trackless-dns/trackless/iptables/failover"
	"github.com/trackless-dns/trackless/iptables/hostaddr"
	"github.com/trackless-dns/trackless/iptables/hostrules"
	"github.com/trackless-dns/trackless/iptables/kubeproxy"
	"github.com/trackless-dns/trackless/iptables/nftables"
	"github.com/trackless-dns/trackless/iptables/owner"
)

// rulesNode is what `trackless rules` needs of a node.
type rulesNode interface {
	Instances() ([]iptables.Instance, error)
	// RemoveTable removes what the kernel holds of an instance.
	RemoveTable(iptables.Instance) error
	Failover() (failover.State, error)
	RemoveFailover() error
	// KeepFailover leaves these pairs of it.
	KeepFailover([]failover.Pair, failover.Outside) error
	Foreign([]iptables.Endpoint) ([]hostrules.ForeignRule, error)
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
	// Sockets lists control sockets that may answer, also those of these
	// processes. A name given asks for that one alone.
	Sockets(name string, pids []int) []controlSocket
	// NetNamespace is the inode of the network namespace whose rules these
	// are.
	NetNamespace() uint64
}

// controlSocket is an instance that can be asked; *control.Client is one.
type controlSocket interface {
	Socket() string
	PID() int
	Status(context.Context) (control.Status, error)
	Attach(context.Context) (control.Status, error)
	Detach(context.Context) (control.Status, error)
	ShowCache(ctx context.Context, name, qtype string) (control.CacheContent, error)
	FlushCache(context.Context, control.CacheScope) (control.CacheRemoved, error)
}

// kernelNode is the node on which we run.
type kernelNode struct{}

func (kernelNode) Failover() (failover.State, error) { return failover.Read(failover.Config{}) }
func (kernelNode) RemoveFailover() error             { return failover.Remove(failover.Config{}) }
func (kernelNode) KeepFailover(pairs []failover.Pair, outside failover.Outside) error {
	return failover.Install(failover.Config{}, pairs, outside)
}
func (kernelNode) OtherListeners() ([]netip.Addr, error) { return host.OtherListeners(threadProc) }
func (kernelNode) RemoveLink(name string) error          { return hostaddr.RemoveLink(hostaddr.Config{}, name) }
func (kernelNode) NetNamespace() uint64                  { return control.Self().NetNamespace }

// Instances are those of both backends, also where the kernel has no nf_tables.
func (kernelNode) Instances() ([]iptables.Instance, error) {
	tables, err := nftables.Instances(nftables.Config{})
	chains, chainsErr := binaries.Instances()
	return append(tables, chains...), errors.Join(err, chainsErr)
}

func (kernelNode) RemoveTable(i iptables.Instance) error {
	if i.Backend == "iptables" {
		return binaries.RemoveInstance(i.Table)
	}
	return nftables.RemoveTable(nftables.Config{}, i.Table)
}

func (kernelNode) Foreign(endpoints []iptables.Endpoint) ([]hostrules.ForeignRule, error) {
	return hostrules.ForeignRules(hostrules.Config{}, endpoints)
}

// Servers are those that listen on this node, and the Service of kube-dns.
func (kernelNode) Servers() ([]netip.Addr, error) {
	addrs, err := dnsListeners()
	services, _ := kubeproxy.ServiceAddresses(kubeproxy.Config{}, "kube-system/kube-dns") // where it can be read
	for _, s := range services {
		if !slices.Contains(addrs, s.Addr()) {
			addrs = append(addrs, s.Addr())
		}
	}
	return addrs, err
}

func (kernelNode) AcceptRules() ([]hostrules.AcceptRule, error) {
	return hostrules.AcceptRules(hostrules.Config{})
}

func (kernelNode) RemoveAcceptRule(r hostrules.AcceptRule) error {
	if r.Legacy {
		return binaries.RemoveLegacy(r.Family == "ip6", r.Chain, r.Arguments())
	}
	return hostrules.RemoveAcceptRule(hostrules.Config{}, r)
}

func (kernelNode) Devices(link string, addrs []netip.Addr) ([]hostaddr.Device, error) {
	return hostaddr.Inspect(hostaddr.Config{}, link, addrs)
}

func (kernelNode) RemoveAddress(device string, a netip.Addr) error {
	return hostaddr.RemoveAddress(hostaddr.Config{}, device, a)
}

func (kernelNode) Sockets(name string, pids []int) []controlSocket {
	names := []string{name}
	if name == "" {
		names = control.Sockets(pids...)
	}
	var out []controlSocket
	for _, n := range names {
		out = append(out, control.NewClient(n))
	}
	return out
}

// statusTimeout bounds the wait for an instance to say how it is.
const statusTimeout = 2 * time.Second

// reached is an instance that answers on its control socket.
type reached struct {
	controlSocket
	status control.Status
}

// silent is a socket on which somebody listens and does not answer.
type silent struct {
	socket string
	err    error
}

// reach asks all sockets at once how their instances are. Instances of other
// network namespaces have no rules here and are left out; so are sockets that a
// dead process left, unless one was named.
func reach(ctx context.Context, node rulesNode, name string, pids []int) (found []reached, quiet []silent) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	var (
		wg sync.WaitGroup
		mu sync.Mutex
	)
	for _, s := range node.Sockets(name, pids) {
		wg.Go(func() {
			status, err := s.Status(ctx)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				found = append(found, reached{s, status})
			case name != "" || errors.Is(err, context.DeadlineExceeded):
				quiet = append(quiet, silent{s.Socket(), err})
			}
		})
	}
	wg.Wait()
	here := node.NetNamespace()
	found = slices.DeleteFunc(found, func(r reached) bool {
		there := r.status.Process.NetNamespace
		return name == "" && here != 0 && there != 0 && here != there
	})
	// An instance may be found by several names: the shortest is its own.
	slices.SortFunc(found, func(a, b reached) int {
		return cmp.Or(cmp.Compare(a.status.Process.Start, b.status.Process.Start), cmp.Compare(a.status.Process.PID, b.status.Process.PID),
			cmp.Compare(a.status.Process.PIDNamespace, b.status.Process.PIDNamespace),
			cmp.Compare(len(a.Socket()), len(b.Socket())), cmp.Compare(a.Socket(), b.Socket()))
	})
	found = slices.CompactFunc(found, func(a, b reached) bool { return a.status.Process == b.status.Process })
	slices.SortFunc(quiet, func(a, b silent) int { return cmp.Compare(a.socket, b.socket) })
	return found, quiet
}

// localPIDs are the processes of the instances that run and can be seen.
func localPIDs(instances []iptables.Instance) []int {
	var pids []int
	for _, i := range instances {
		if i.Owner.LocalPID != 0 {
			pids = append(pids, i.Owner.LocalPID)
		}
	}
	return pids
}

// ownerName says whose a table is, for sentences.
func ownerName(o owner.Owner) string {
	switch {
	case o.LocalPID != 0 && o.LocalPID != o.PID:
		return fmt.Sprintf("pid %d (pid %d in its container)", o.LocalPID, o.PID)
	case o.LocalPID != 0 || o.PID != 0 && o.Life == owner.Dead:
		return fmt.Sprintf("pid %d", o.PID)
	case o.PID != 0:
		return fmt.Sprintf("pid %d of a container that cannot be seen from here", o.PID)
	}
	return "a process that the table does not name"
}
