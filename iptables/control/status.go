package control

import (
	"context"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"
)

// Controlled is an instance whose rules an operator can switch. Its methods are
// called from several goroutines.
type Controlled interface {
	// Status returns the present state without waiting for a change in progress.
	// The server fills in Process.
	Status() Status
	// Attach undoes Detach. It returns when queries are untracked again. It returns
	// an error if the listeners do not answer or ctx ends first; the instance then
	// keeps trying.
	Attach(ctx context.Context) error
	// Detach leaves the queries to the cluster's DNS and returns when the drain
	// ends. The instance stays detached until Attach, also when it loads another
	// Corefile. A second Detach is no error.
	Detach(ctx context.Context) error
}

// Status is the state of an instance.
type Status struct {
	Process Process `json:"process"`
	// Version is the version of the program.
	Version string `json:"version,omitempty"`
	// Backend is the name of its backend, for example "nftables".
	Backend string `json:"backend"`
	// Table is the name of the instance's nf_tables table in family inet. It is
	// empty with another backend, and before the table is made.
	Table string `json:"table,omitempty"`
	// State is "detached", "attached" or "draining".
	State string `json:"state"`
	// ByHand tells that an operator detached it. It will not attach by itself.
	ByHand bool `json:"by_hand"`
	// Since is the time at which State began.
	Since time.Time `json:"since"`
	// Reason says why it is detached, or what is wrong. Empty: nothing is wrong.
	Reason string `json:"reason,omitempty"`
	// Addresses are the listen addresses.
	Addresses []AddressStatus `json:"addresses"`
	// FastPath is nil without the directive fastpath.
	FastPath *FastPath `json:"fastpath,omitempty"`
}

// AddressStatus is one listen address.
type AddressStatus struct {
	Address  netip.Addr `json:"address"`
	Attached bool       `json:"attached"`
}

// Process identifies a process, also when its id is used again, and from other pid
// namespaces.
type Process struct {
	// PID is its id in its own pid namespace.
	PID int `json:"pid"`
	// Start is its start time in clock ticks after boot, field 22 of
	// /proc/PID/stat.
	Start uint64 `json:"start"`
	// PIDNamespace and NetNamespace are inodes of namespaces.
	PIDNamespace uint64 `json:"pid_namespace"`
	NetNamespace uint64 `json:"net_namespace"`
}

// Self describes the calling process. A field that cannot be read is 0.
func Self() Process {
	p := Process{PID: os.Getpid(), PIDNamespace: namespace("pid"), NetNamespace: namespace("net")}
	if stat, err := os.ReadFile("/proc/self/stat"); err == nil {
		// proc_pid_stat(5): the command in parentheses is field 2.
		if _, rest, ok := strings.Cut(string(stat), ") "); ok {
			if fields := strings.Fields(rest); len(fields) >= 20 {
				p.Start, _ = strconv.ParseUint(fields[19], 10, 64)
			}
		}
	}
	return p
}

// namespace reads the inode of a namespace of the calling thread. In tests a thread
// may be in another namespace than the process.
func namespace(kind string) uint64 {
	link, err := os.Readlink("/proc/thread-self/ns/" + kind)
	if err != nil {
		return 0
	}
	ino, _ := strconv.ParseUint(strings.Trim(strings.TrimPrefix(link, kind), ":[]"), 10, 64)
	return ino
}
