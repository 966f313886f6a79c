package reconcile

import (
	"context"
	"fmt"
	"net/netip"
	"reflect"
	"time"

	"github.com/trackless-dns/trackless/internal/wakeup"
	"github.com/trackless-dns/trackless/iptables"
)

// Addresses puts the plan's addresses on this node; package hostaddr does.
type Addresses interface {
	// Ensure adds what is missing, or changes nothing and fails.
	Ensure([]netip.Addr) error
	// Missing returns those that Ensure would have to add.
	Missing([]netip.Addr) ([]netip.Addr, error)
	// Down reports whether somebody has set the link down that carries them, and
	// SetUp sets it up again. Addresses and routes go with a link that is down.
	Down() (bool, error)
	SetUp() error
	// PreferSource sees to it that flows of this node to the addresses do not
	// have these as their source, for they come and go. Ensure does so too;
	// what the node's other addresses are may change.
	PreferSource() error
	// Release gives up those of ours that are not in keep. Like Remove it leaves
	// what others on this node ask for.
	Release(keep []netip.Addr) error
	// Left returns the addresses that others left, that are not in keep and for
	// which nobody asks; Clear takes them away.
	Left(keep []netip.Addr) ([]netip.Addr, error)
	Clear([]netip.Addr) error
	// Remove gives up all of ours, and takes along what others left.
	Remove() error
}

// Checker finds out whether this process, and nobody else, answers. Its methods
// are called by one goroutine at a time, save for IsDue, Check and Renew, which run
// for different addresses at once, and at the same time.
type Checker interface {
	// Reserve binds the transport addresses from which the given listen
	// addresses are checked, and keeps them until Close. The addresses are on
	// this node by then.
	Reserve([]netip.Addr) ([]iptables.Check, []iptables.Lease, error)
	// Check asks every listening socket of ours at one endpoint, and through
	// what lies behind it. It returns nil if this process answered each time, and
	// ErrStarved if it had no time to answer.
	Check(context.Context, iptables.Endpoint) error
	// IsDue reports whether an endpoint has to be checked: nothing else has shown
	// lately that it answers.
	IsDue(iptables.Endpoint) bool
	// Renew sends lease probes to the addresses, to all at once: one that has to find
	// another port, as when another instance comes, must not cost the others their
	// leases. It tells of each when this process answered, upon which the lease is
	// renewed, or why not; it does so one at a time, and returns after the last.
	Renew(ctx context.Context, addrs []netip.Addr, result func(a netip.Addr, answered time.Time, err error))
	// Void has no lease probe answered that was sent before. None is under way.
	Void()
	// Effect asks from a port that no rule names, as any client would. It
	// returns nil if this process answered and no conntrack entry was left.
	Effect(context.Context, netip.Addr) error
	// Close gives the transport addresses back.
	Close() error
}

// Kernel is what a Reconciler needs to know of the node, and has done there. All
// of its functions are required.
type Kernel struct {
	// Connections returns the TCP connections to the endpoints that are
	// tracked at the moment.
	Connections func([]iptables.Endpoint) ([]iptables.Connection, error)
	// Held returns the TCP connections that our listeners hold at the endpoints.
	// The rules note their beginnings, but somebody may have taken the rules
	// away since.
	Held func([]iptables.Endpoint) []iptables.Connection
	// Purge deletes entries whose original source is one of the endpoints:
	// responses that were tracked as flows of their own.
	Purge func([]iptables.Endpoint) error
	// Uplinks returns the devices that carry a default route, for a plan that
	// names none.
	Uplinks func(iptables.Plan) ([]string, error)
	// Unowned returns those of the addresses that no Service owns.
	Unowned func([]netip.Addr) []netip.Addr
	// Refresh brings up to date what is not the Reconciler's, at every sync.
	Refresh func(iptables.Rules) error
	// Unblock lets untracked DNS pass the filter chains of others. It returns
	// for each address to which it does not pass what blocks it and what
	// can be done, and whether anything passes now that did not before. It is
	// called by one goroutine at a time.
	Unblock func(iptables.Rules) (blocked map[netip.Addr]error, cleared bool)
	// Adopt takes away what a predecessor left for the addresses, and reports
	// whether that was anything. It is called once DNS to them is untracked by
	// our own rules, and at every sync.
	Adopt func([]netip.Addr) (bool, error)
	// Claims returns who else on this node asks for which addresses.
	Claims func() (iptables.Claims, error)
	// Unannounced reports whether there are rules whose changes nobody announces.
	Unannounced func() bool
	// Changed is told that others have changed rules, links or addresses.
	Changed func()
	// Explain names what of somebody else defeats the rules for the address, or
	// returns the empty string.
	Explain func(netip.Addr) string
	// Load is asked once a second what the kernel has made of this process and of
	// the queries to the endpoints.
	Load func([]iptables.Endpoint) Load
}

// Logger is what the reconciler needs of a log: quiet when all is well.
type Logger interface {
	Infof(format string, args ...any)
	Warningf(format string, args ...any)
}

// Config is what a Reconciler works with. All of it is required, save for the
// durations and Changes.
type Config struct {
	Backend   iptables.Backend
	Addresses Addresses
	Kernel    Kernel
	Log       Logger

	// Yield makes our listeners at the endpoints leave what comes from now on to
	// those of another instance; they still answer what has come. It is called
	// at a stop for those at which another instance listens, whose rules go on
	// bringing queries here.
	Yield func([]iptables.Endpoint) error

	// Reset resets the TCP connections that our listeners hold at the endpoints
	// with clients behind the devices, or with all if these are nil. It is called
	// when what they send is tracked from now on. The cluster's DNS knows nothing
	// of such a connection and would reset it, but a client whose segments were
	// lost waits longer each time before it sends another.
	Reset func(listen []iptables.Endpoint, devices []string) error

	// Served tells what the listeners at the endpoints have done so far. The
	// drain ends when it is complete.
	Served func([]iptables.Endpoint) Served

	// Queries is how many have come to the listeners so far, our own checks not among
	// them. It is read in each round of checks.
	Queries func() uint64

	// NewTimer makes the timer of the rounds.
	NewTimer func() wakeup.Timer

	// Drain bounds the wait for answers; zero means 5 s, CoreDNS's longest
	// time with an upstream.
	Drain time.Duration

	// Sync is the time between two checks of rules and addresses when no
	// change was announced; zero means 10 s.
	Sync time.Duration

	// Changes announces that somebody changed rules, links or addresses; nil
	// means that only Sync finds out.
	Changes <-chan iptables.Change
}

// Served is what the listeners have done so far.
type Served struct {
	Arrived  uint64 // queries
	Answered uint64 // those that are done with
	OverTCP  uint64 // those that arrived over TCP

	// Connections is the number of TCP connections that the listeners hold at
	// the moment.
	Connections int
}

// missing names the first function or interface that a configuration lacks.
func (c *Config) missing() string {
	for _, part := range []any{*c, c.Kernel} {
		v := reflect.ValueOf(part)
		for i := range v.NumField() {
			switch f := v.Field(i); f.Kind() {
			case reflect.Func, reflect.Interface:
				if f.IsNil() {
					return fmt.Sprintf("%s.%s", v.Type().Name(), v.Type().Field(i).Name)
				}
			}
		}
	}
	return ""
}
