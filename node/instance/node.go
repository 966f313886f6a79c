// Package instance finds the instances of Trackless on a node, asks them over their
// control sockets how they are, and has them attach and detach.
package instance

import (
	"context"
	"fmt"
	"time"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/backends"
	"github.com/trackless-dns/trackless/iptables/control"
	"github.com/trackless-dns/trackless/iptables/owner"
)

// Node is a node as far as its instances go.
type Node interface {
	// Instances are those that have rules in the kernel, of both backends.
	Instances() ([]iptables.Instance, error)
	// Sockets lists control sockets that may answer, also those of these
	// processes. A name given asks for that one alone.
	Sockets(name string, pids []int) []ControlSocket
	// NetNamespace is the inode of the network namespace whose rules these
	// are.
	NetNamespace() uint64
}

// ControlSocket is an instance that can be asked; *control.Client is one.
type ControlSocket interface {
	Socket() string
	PID() int
	Status(context.Context) (control.Status, error)
	Attach(context.Context) (control.Status, error)
	Detach(context.Context) (control.Status, error)
	Corefile(context.Context) (control.Corefile, error)
	Figures(context.Context) (control.Figures, error)
	Log(context.Context) ([]byte, error)
	ShowCache(ctx context.Context, name, qtype string) (control.CacheContent, error)
	FlushCache(context.Context, control.CacheScope) (control.CacheRemoved, error)
	CountQueries(context.Context, time.Duration) (control.QueryCounts, error)
}

// Kernel is the node on which we run, as the calling thread's network namespace
// has it.
type Kernel struct{}

// NetNamespace implements Node.
func (Kernel) NetNamespace() uint64 { return control.Self().NetNamespace }

// Instances are those of all backends, also where the kernel has no nf_tables.
func (Kernel) Instances() ([]iptables.Instance, error) { return backends.Instances() }

// Sockets implements Node.
func (Kernel) Sockets(name string, pids []int) []ControlSocket {
	names := []string{name}
	if name == "" {
		names = control.Sockets(pids...)
	}
	var out []ControlSocket
	for _, n := range names {
		out = append(out, control.NewClient(n))
	}
	return out
}

// LocalPIDs are the processes of the instances that run and can be seen.
func LocalPIDs(instances []iptables.Instance) []int {
	var pids []int
	for _, i := range instances {
		if i.Owner.LocalPID != 0 {
			pids = append(pids, i.Owner.LocalPID)
		}
	}
	return pids
}

// OwnerName says whose a table is, for sentences.
func OwnerName(o owner.Owner) string {
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
