package iptables

import (
	"errors"
	"fmt"
)

// Backend keeps the rules of one instance in the kernel.
//
// A backend holds one table of this instance. Install makes the kernel's state
// equal to a plan without untracking any query; Attach and Detach switch the
// query rules. All methods are called by one goroutine at a time.
type Backend interface {
	// Name is what `backend` in the Corefile calls it, for example "nftables".
	Name() string

	// Install makes the static part equal to the plan in one transaction:
	// response rules, check rules, counters. Query rules of endpoints that
	// stay in the plan are left as they are, new ones are not untracked yet,
	// those no longer in the plan are gone when it returns. On an error the
	// kernel is as it was before.
	Install(p Plan, checks []Check) error

	// Attach untracks the queries to every endpoint of the installed plan.
	Attach() error

	// Detach stops untracking queries. Responses stay untracked, so that late
	// answers leave no entry.
	Detach() error

	// Remove takes everything of this instance out of the kernel.
	Remove() error

	// Counters reads the packet counters since Install was first called.
	Counters() (Counters, error)

	// Others returns the number of tables of other Trackless instances on
	// this host, which tells whether the link is still needed.
	Others() (int, error)
}

// Check is the transport address from which this instance checks its own
// listeners. Packets with exactly this source and an endpoint of the plan as
// destination are untracked also while queries are not: otherwise kube-proxy
// would rewrite the check and someone else would answer it.
type Check struct {
	Endpoint
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

// UnsupportedError says that the running kernel lacks what a backend needs.
type UnsupportedError struct {
	// Feature is what is missing, for example "nf_tables".
	Feature string
	// Remedy is what the operator can do about it.
	Remedy string
	// Err is the kernel's own answer.
	Err error
}

func (e *UnsupportedError) Error() string {
	return fmt.Sprintf("this kernel has no %s: %v (%s)", e.Feature, e.Err, e.Remedy)
}

func (e *UnsupportedError) Unwrap() error { return e.Err }

// ErrPermission is matched by errors that CAP_NET_ADMIN would have prevented.
var ErrPermission = errors.New("needs CAP_NET_ADMIN")
