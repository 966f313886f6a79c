package control

import (
	"context"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"
)

// Controlled is an instance whose rules can be switched by hand. Its methods
// are called from several goroutines.
type Controlled interface {
	// Status tells how things are now, without waiting for a change under
	// way. The server fills in Process.
	Status() Status
	// Attach undoes Detach: it returns when queries are untracked again, or
	// with an error if the listeners do not answer or ctx ends first; the
	// instance then goes on trying.
	Attach(ctx context.Context) error
	// Detach hands the queries back to the cluster's DNS and returns when the
	// drain is over. The instance stays detached until Attach, whatever
	// Corefile it loads meanwhile. Doing so twice is no error.
	Detach(ctx context.Context) error
}

// Status is how an instance sees itself.
type Status struct {
	Process Process `json:"process"`
	// Version is that of the program.
	Version string `json:"version,omitempty"`
	// Backend is the iptables.Backend's name, for example "nftables".
	Backend string `json:"backend"`
	// Table is the name of the instance's nf_tables table in family inet;
	// empty with another backend, and before there is one.
	Table string `json:"table,omitempty"`
	// State is "detached", "attached" or "draining".
	State string `json:"state"`
	// ByHand tells that it is detached because somebody asked for it, and will
	// not attach by itself.
	ByHand bool `json:"by_hand"`
	// Since is when State was entered.
	Since time.Time `json:"since"`
	// Reason says why it is detached or what is missing; empty if all is well.
	Reason string `json:"reason,omitempty"`
	// Addresses are the listen addresses.
	Addresses []AddressStatus `json:"addresses"`
}

// AddressStatus is one listen address.
type AddressStatus struct {
	Address  netip.Addr `json:"address"`
	Attached bool       `json:"attached"`
}

// Process names a process beyond the life of its id and the borders of its pid
// namespace.
type Process struct {
	// PID is its id in its own pid namespace.
	PID int `json:"pid"`
	// Start is its start in clock ticks after boot, field 22 of
	// /proc/PID/stat.
	Start uint64 `json:"start"`
	// PIDNamespace and NetNamespace are inodes of namespaces.
	PIDNamespace uint64 `json:"pid_namespace"`
	NetNamespace uint64 `json:"net_namespace"`
}

// Self describes the calling process. What cannot be read is 0.
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

// namespace reads the inode of a namespace of the calling thread, which in
// tests is not always that of the process.
func namespace(kind string) uint64 {
	link, err := os.Readlink("/proc/thread-self/ns/" + kind)
	if err != nil {
		return 0
	}
	ino, _ := strconv.ParseUint(strings.Trim(strings.TrimPrefix(link, kind), ":[]"), 10, 64)
	return ino
}
