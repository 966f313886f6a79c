package iptables

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// Rules are everything that a backend keeps in the kernel for one instance.
type Rules struct {
	Plan Plan

	// Checks are the transport addresses from which this instance checks its
	// own listeners.
	Checks []Check

	// Leases are the answers that renew the lease. None: nothing renews it.
	Leases []Lease

	// Uplinks are the devices from which only Plan.Sources are served; nil or
	// empty serves everybody.
	Uplinks []string

	// Unowned are listen addresses that no Service owns: a query from outside
	// to one of them is dropped instead of passed on.
	Unowned []netip.Addr
}

// Backend keeps the rules of one instance in the kernel. It holds one table of
// this instance. All methods are called by one goroutine at a time.
type Backend interface {
	// Name is what `backend` in the Corefile calls it, for example "nftables".
	Name() string

	// Table is the name under which the rules are found: that of a table, or the
	// beginning of the names of chains.
	Table() string

	// Owned reports whether the kernel removes the rules when this process dies.
	// It is known once Install has succeeded.
	Owned() bool

	// Capabilities says what the backend can do on this node. What takes a probe of
	// the kernel is probed once; an error that matches ErrBusy says that it could
	// not be yet, and leaves the fields that say so unset.
	Capabilities() (Capabilities, error)

	// Install makes the static part equal to the rules in one transaction,
	// whatever others have done to it since.
	// Which addresses are live is left as it is, save for those no longer in
	// the plan. On an error the kernel is as it was before.
	Install(Rules) error

	// Attach untracks the queries to every address of the installed plan until
	// Detach. It is for plans without a lease; with one, Renewals attach.
	Attach() error

	// Detach stops untracking queries and lets nothing renew the lease, in one
	// transaction. Responses stay untracked, so that late answers leave no
	// entry, and so do the TCP connections that our listeners hold: those
	// given, and those that the rules have noted.
	Detach(held []Connection) error

	// EndLease gives the queries to addresses of the plan back at once, as if
	// their lease had run out. The next renewal takes them again.
	EndLease([]netip.Addr) error

	// Exempt keeps connections that are tracked already tracked until they end,
	// besides those that the rules have noted.
	Exempt([]Connection) error

	// ExemptOnly is Exempt and forgets whatever the rules have noted.
	ExemptOnly([]Connection) error

	// Remove takes everything of this instance out of the kernel.
	Remove() error

	// Present reports whether the rules are still in the kernel.
	Present() (bool, error)

	// Live returns the listen addresses whose queries are untracked now.
	Live() ([]netip.Addr, error)

	// Counters reads the packet counters since Install was first called.
	Counters() (Counters, error)
}

// Capabilities are what a backend can do on this node besides what [Backend] asks of
// all, and what it cannot.
type Capabilities struct {
	// Variant is that of the programs that the backend runs, legacy or nft. Empty:
	// it runs none.
	Variant string

	// NeedsLease says why a plan without a lease would outlive a killed process.
	// Empty: it would not, or Install refuses such a plan itself.
	NeedsLease string

	// NoLeases: nothing in this kernel ends rules after a time, so that only plans
	// without a lease can be installed. It takes a probe.
	NoLeases bool

	// Lacks names the guarantees that this kernel takes away, one sentence each. It
	// takes a probe.
	Lacks []string

	// Devices sees which devices lose their queries. Nil: the backend cannot.
	Devices Devices

	// Watch calls changed, until the context ends, when others have changed rules of
	// which the kernel announces nothing. Nil: it announces all.
	Watch func(ctx context.Context, changed func())
}

// Devices sees which devices lose their queries on the way from the rules to the
// listeners, and can leave these to the cluster's DNS.
type Devices interface {
	// Lost returns the devices from which queries were untracked within the
	// last LostFor, of which none arrived. A caller that did not run for a
	// while finds none.
	Lost() ([]string, error)
	// Quarantine leaves the queries that a device brings tracked for a time.
	Quarantine(device string, d time.Duration) error
}

// LostFor is how long [Devices.Lost] remembers a query.
const LostFor = 300 * time.Millisecond

// Change is an announcement of the kernel that rules, links or addresses are not
// what they were.
type Change struct {
	Who string // the process that changed them; empty where the kernel does not say
	Own bool   // we did
}

// Check is the transport address from which this instance checks its own
// listeners. Packets with exactly this source and an endpoint of the plan as
// destination are untracked also while queries are not: otherwise kube-proxy
// would rewrite the check and someone else would answer it.
type Check struct {
	Endpoint
}

// Lease is the transport address from which lease probes are sent to a listen
// endpoint. An answer to it over lo, and nothing else, renews the lease of the
// address.
type Lease struct {
	Source netip.AddrPort // the listen address and the instance's lease port
	Listen netip.AddrPort
}

// Connection is a TCP connection to a listen endpoint as its client sees it.
type Connection struct {
	Client, Listen netip.AddrPort
}

// Direction tells queries from responses in counters.
type Direction uint8

// A query goes to a listen endpoint, a response comes from one.
const (
	Query Direction = iota
	Response
)

// String gives the value of the metric's label.
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

// Counters holds the number of untracked packets. A packet that this node
// sends to itself passes two hooks and is counted once.
type Counters map[CounterKey]uint64

// UnsupportedError says that the running kernel, or the image, lacks what a
// backend needs.
type UnsupportedError struct {
	// Feature is what is missing, for example "nf_tables".
	Feature string
	// Remedy is what the operator can do about it.
	Remedy string
	// Err is the kernel's own answer.
	Err error
}

func (e *UnsupportedError) Error() string {
	return fmt.Sprintf("this node has no %s: %v (%s)", e.Feature, e.Err, e.Remedy)
}

func (e *UnsupportedError) Unwrap() error { return e.Err }

// HeldError says that an interface of somebody else holds a listen address, for
// which reason nothing was changed.
type HeldError struct {
	Prefix    netip.Prefix // as it is held
	Interface string
	What      string // what the address is there
	Remedy    string
}

func (e *HeldError) Error() string {
	return fmt.Sprintf("address %s is held by interface %s of this host: %s; %s", e.Prefix.Addr(), e.Interface, e.What, e.Remedy)
}

// ErrBusy is matched by errors that are over as soon as another program gives
// back what it holds. Nothing has been changed, and trying again may do.
var ErrBusy = errors.New("another program is changing the rules")

// ErrUntracked is matched by errors about addresses to which rules of others untrack
// DNS for good: while it is not attached it comes here all the same, and when this
// process is gone nobody answers.
var ErrUntracked = errors.New("rules of others untrack DNS for good")

// ErrPermission is matched by errors that CAP_NET_ADMIN would have prevented.
var ErrPermission = errors.New("needs CAP_NET_ADMIN")
