package iptables

import (
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// The names of the backends: the values of the option `backend` in the Corefile, and
// of [Instance.Backend]. Package backends lists them.
const (
	BackendNFTables = "nftables"
	BackendBinaries = "iptables"
)

// Rules are everything that a backend keeps in the kernel for one instance.
type Rules struct {
	Plan Plan

	// Checks are the transport addresses from which this instance checks its
	// own listeners.
	Checks []Check

	// Leases are the lease probes whose answers renew the lease. None: nothing
	// renews it.
	Leases []Lease

	// Uplinks are the devices over which only Plan.Sources are served. Empty:
	// clients of all devices are served.
	Uplinks []string

	// Unowned are listen addresses that no Service owns. A query to them from
	// outside the cluster is dropped, not passed on.
	Unowned []netip.Addr
}

// Backend keeps the rules of one instance in the kernel, in a table or chains of
// its own. All methods are called by one goroutine at a time.
type Backend interface {
	// Name is [BackendNFTables] or [BackendBinaries].
	Name() string

	// Table is the name of the table, or the prefix of the names of the chains.
	Table() string

	// Owned reports whether the kernel removes the rules when this process dies.
	// It is known once Install has succeeded.
	Owned() bool

	// Capabilities says what the backend can do on this node. It probes the kernel
	// once. An error that matches ErrBusy says that it could not probe yet; the
	// fields that need the probe are then unset.
	Capabilities() (Capabilities, error)

	// Install makes the static part equal to the rules in one transaction, and
	// repairs what other programs changed in it. Attached addresses stay attached
	// if they are still in the plan. On an error the kernel is as it was before.
	Install(Rules) error

	// Attach untracks the queries to every address of the installed plan until
	// Detach. It is for plans without a lease; with a lease, renewals attach.
	Attach() error

	// Detach stops untracking queries and ends the renewals of the lease, in one
	// transaction. Responses stay untracked, so that late answers leave no entry.
	// Queries on TCP connections of our listeners stay untracked, too: those in
	// held, and those that the rules have noted.
	Detach(held []Connection) error

	// EndLease tracks the queries to these addresses again at once, as if their
	// lease had run out. The next renewal untracks them.
	EndLease([]netip.Addr) error

	// Exempt keeps these connections, which are tracked, tracked until they end.
	// Connections that the rules have noted stay noted.
	Exempt([]Connection) error

	// ExemptOnly is Exempt, and forgets the connections that the rules have noted.
	ExemptOnly([]Connection) error

	// Remove removes everything of this instance from the kernel.
	Remove() error

	// Present reports whether the rules are still in the kernel.
	Present() (bool, error)

	// Live returns the listen addresses whose queries are untracked now.
	Live() ([]netip.Addr, error)

	// Counters reads the packet counters since Install was first called.
	Counters() (Counters, error)
}

// Capabilities say what a backend can and cannot do on this node, beyond the methods
// of [Backend].
type Capabilities struct {
	// Variant is the variant of the programs that the backend runs, legacy or nft.
	// Empty: it runs no programs.
	Variant string

	// NeedsLease says why a plan without a lease would outlive a killed process.
	// Empty: it would not, or Install refuses such a plan itself.
	NeedsLease string

	// NoLeases: this kernel cannot end rules after a time, so that only plans
	// without a lease can be installed. It needs a probe.
	NoLeases bool

	// Lacks names the guarantees that this kernel cannot give, one sentence each.
	// It needs a probe.
	Lacks []string

	// Devices finds devices that lose their queries. Nil: the backend cannot.
	Devices Devices

	// Changed reports whether other programs have changed rules since the call before,
	// if the kernel does not announce such changes. One goroutine at a time calls it,
	// in each round of lease probes. Nil: the kernel announces all changes.
	Changed func() bool
}

// Devices finds devices whose queries get lost between the rules and the listeners,
// and can leave these queries to the cluster's DNS.
type Devices interface {
	// Lost returns the devices from which a query was untracked after the given
	// time and within the last LostFor, and no query has arrived since. It costs
	// next to nothing while there are none.
	Lost(after time.Time) ([]string, error)
	// Quarantine leaves the queries that a device brings tracked for a time.
	Quarantine(device string, d time.Duration) error
}

// LostFor is how long [Devices.Lost] remembers a query.
// It is longer than any time between two calls.
const LostFor = 2 * time.Second

// Change is an announcement of the kernel that rules, links or addresses changed.
type Change struct {
	Who string // the process that made the change; empty if the kernel does not say
	Own bool   // this process made it
}

// Check is the transport address from which this instance checks its own
// listeners. Packets from exactly this address to an endpoint of the plan are
// untracked also while queries are tracked. Otherwise kube-proxy would rewrite the
// check, and another server would answer it.
type Check struct {
	Endpoint
}

// Lease is the transport address from which lease probes are sent to a listen
// endpoint. Only an answer to it over lo renews the lease of the address.
type Lease struct {
	Source netip.AddrPort // the listen address and the instance's lease port
	Listen netip.AddrPort
}

// Connection is a TCP connection of a client to a listen endpoint.
type Connection struct {
	Client, Listen netip.AddrPort
}

// Direction tells queries from responses in counters.
type Direction uint8

// A query goes to a listen endpoint; a response comes from it.
const (
	Query Direction = iota
	Response
)

// String returns the value of the metric's label.
func (d Direction) String() string {
	if d == Response {
		return "response"
	}
	return "query"
}

// CounterKey names one counter.
type CounterKey struct {
	Direction Direction
	Family    Family
	Proto     Proto
}

// CounterKeys lists the counters that every backend keeps, in a fixed order.
func CounterKeys() []CounterKey {
	var keys []CounterKey
	for _, d := range []Direction{Query, Response} {
		for _, f := range []Family{IPv4, IPv6} {
			for _, p := range []Proto{UDP, TCP} {
				keys = append(keys, CounterKey{d, f, p})
			}
		}
	}
	return keys
}

// Counters are the numbers of untracked packets. A packet from this node to itself
// passes two hooks and is counted once.
type Counters map[CounterKey]uint64

// UnsupportedError says that the running kernel or the image lacks a feature that a
// backend needs.
type UnsupportedError struct {
	// Feature is the missing feature, for example "nf_tables".
	Feature string
	// Remedy tells the operator what to do.
	Remedy string
	// Err is the kernel's answer.
	Err error
}

func (e *UnsupportedError) Error() string {
	return fmt.Sprintf("this node has no %s: %v (%s)", e.Feature, e.Err, e.Remedy)
}

func (e *UnsupportedError) Unwrap() error { return e.Err }

// HeldBy is the kind of the holder of an address.
type HeldBy int

// The kinds of holders. HeldByNode: it is an address of the node itself, or a gateway.
const (
	HeldByNode HeldBy = iota + 1
	HeldByInstance
	HeldByIPVS
	HeldByOther
)

// HeldError says that an interface already holds a listen address. Nothing was
// changed.
type HeldError struct {
	By        HeldBy
	Prefix    netip.Prefix // the address as the interface has it
	Interface string
	What      string // what the address is for on that interface
	Remedy    string
}

func (e *HeldError) Error() string {
	return fmt.Sprintf("address %s is held by interface %s of this host: %s; %s", e.Prefix.Addr(), e.Interface, e.What, e.Remedy)
}

// ErrBusy is matched by errors that end when another program releases a lock.
// Nothing was changed; try again.
var ErrBusy = errors.New("another program is changing the rules")

// ErrUntracked is matched by errors about addresses whose DNS other programs' rules
// untrack permanently. Queries come here also while the address is detached, and when
// this process is gone nobody answers them.
var ErrUntracked = errors.New("rules of other programs untrack DNS permanently")

// ErrPermission is matched by errors that a process with CAP_NET_ADMIN does not get.
var ErrPermission = errors.New("needs CAP_NET_ADMIN")
