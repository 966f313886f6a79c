package notrack

import (
	"net/netip"

	"github.com/coredns/caddy"
	clog "github.com/coredns/coredns/plugin/pkg/log"

	"github.com/trackless-dns/trackless/agent"
)

var log = clog.NewWithPlugin(directive)

// process is the agent of this process. caddy and Prometheus call plugins without
// saying for whom, so that it is a variable.
var process = agent.New(agent.Config{
	Log:             log,
	CountSetupError: func(errorType string) { SetupErrors.WithLabelValues(errorType).Inc() },
	Listeners:       listeners,
})

func init() {
	// The last step of a stop. caddy runs it after the shutdown callbacks at
	// SIGTERM, before them at SIGINT, alone at SIGQUIT; `trackless serve` runs
	// it when a start failed.
	caddy.OnProcessExit = append(caddy.OnProcessExit, process.Exit)
}

// LookAtUpstreams rechecks the upstream Service. A handler calls it when it asks another
// one from now on.
func LookAtUpstreams() { process.Health.Recheck() }

// Controlled returns this process's agent as the control socket shows it.
func Controlled(version string) agent.Measured { return process.Controlled(version) }

// Untrack keeps queries to the servers, and the answers, out of the conntrack
// table for as long as a Corefile with notrack is in force; none ends that. Each
// owner has its own servers. What is already under way stays as it is.
//
// The servers must be asked directly: a ClusterIP that is untracked is answered
// by nobody.
func Untrack(owner any, servers []netip.AddrPort) { process.Untrack(owner, servers) }
