package notrack

import (
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/coredns/caddy"
	clog "github.com/coredns/coredns/plugin/pkg/log"

	"github.com/trackless-dns/trackless/agent"
	"github.com/trackless-dns/trackless/agent/tally"
	"github.com/trackless-dns/trackless/fastpath"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/control"
	"github.com/trackless-dns/trackless/iptables/route"
	"github.com/trackless-dns/trackless/plugin/fairness"
)

var log = clog.NewWithPlugin(directive)

// process is the agent of this process. It is a variable, since caddy and Prometheus call
// plugins without a context.
var process = agent.New(agent.Config{
	Log:             log,
	CountSetupError: func(errorType string) { SetupErrors.WithLabelValues(errorType).Inc() },
	Listeners:       listeners,
	Queries:         fairness.Queries,
	Search: func() (f control.SearchFigures) {
		if count := countSearch.Load(); count != nil {
			f = (*count)()
		}
		return f
	},
})

func init() {
	// Exit is the last step of a stop. caddy runs it after the shutdown callbacks at
	// SIGTERM, before them at SIGINT, without them at SIGQUIT. `trackless serve` runs
	// it after a failed start.
	caddy.OnProcessExit = append(caddy.OnProcessExit, process.Exit)
}

// RecheckUpstreams checks soon whether the upstream Services exist. A handler calls it when
// its upstreams have changed.
func RecheckUpstreams() { process.Health.Recheck() }

// Controlled returns the agent of this process as the control socket shows it.
func Controlled(version string) agent.Measured { return process.Controlled(version) }

// Untrack keeps queries to the servers, and the answers, out of the conntrack table while
// a Corefile with notrack is in force. Each owner has its own servers; an empty list
// removes them. Queries under way stay as they are.
//
// The servers must be endpoints: an untracked query to a ClusterIP gets no answer.
func Untrack(owner any, servers []netip.AddrPort) { process.Untrack(owner, servers) }

// JoinGate tells a fast path until when the lease of each listen address is held. See
// [agent.Agent.JoinGate].
func JoinGate(tell func(a netip.Addr, until time.Time)) (leave func()) { return process.JoinGate(tell) }

// ShowFastPath has the control socket show what a fast path answers. It is called before the
// first Corefile is loaded.
func ShowFastPath(show func() *control.FastPath) { process.FastPath = show }

// ChoosesSockets has a fast path tell at which addresses it chooses the UDP sockets that get
// queries. It is called before the first Corefile is loaded.
func ChoosesSockets(at func(netip.AddrPort) bool) { process.FastPathSockets = at }

// OthersServe reports whether another instance has queries to the address untracked now.
func OthersServe(a netip.Addr) bool { return process.OthersServe(a) }

// HandOver has these states given to the instance that replaces this one, besides the state of
// this directive. It is called before the first Corefile is loaded.
func HandOver(states ...agent.State) { process.States = states }

// KeepNames has the names kept that these caches are asked most, where `warm` says so. It is
// called before the first Corefile is loaded.
func KeepNames(c agent.Caches) { process.Caches = c }

// Listening returns the endpoints of the Corefile in force for queries over UDP.
func Listening() []iptables.Endpoint { return process.Listening() }

// Uplinks returns the devices that lead to the rest of the world.
func Uplinks(lists *route.Lists) ([]string, error) { return process.Uplinks(lists) }

// Accountant returns what counts the queries to this process.
func Accountant() *fastpath.Accountant { return &process.Accountant }

// QueriesByClient returns what counts the queries of each client, for metrics.
func QueriesByClient() *tally.Clients { return &process.Tally.Clients }

// IsOurs reports whether a client is this process, which asks the cluster's DNS. A query of
// it that comes here gets no answer: it is not the cluster's that would answer.
func IsOurs(client netip.AddrPort) bool { return process.Health.IsOurs(client) }

// DenyLeases has a plugin tell whether queries wait at a listen address that nobody reads:
// the lease there is not renewed then.
func DenyLeases(denied func(server netip.AddrPort) bool) { denyLeases.Store(&denied) }

var denyLeases atomic.Pointer[func(netip.AddrPort) bool]
