// Package server embeds CoreDNS: its process-wide state, the Corefile, what a node
// asks of the process besides, and the control socket.
package server

import (
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"runtime"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	clog "github.com/coredns/coredns/plugin/pkg/log"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/plugin/notrack"
	"github.com/trackless-dns/trackless/server/stacks"
)

// Type is the server type of a Corefile.
const Type = "dns"

// Options say what a server is made of.
type Options struct {
	Directives []string // the plugin list, in the order in which a query meets them
	Version    string   // of Trackless
	Port       string   // of server blocks that name none
	PIDFile    string
	Control    string // the control socket, "off" for none
	Quiet      bool   // nothing is printed at start
	Load       caddy.LoaderFunc
}

// Server is CoreDNS in this process, of which there is one.
type Server struct {
	options Options
	log     *recentLog
}

// buildInfo tells Trackless from other CoreDNS, which export the same names:
// the cluster's DNS behind it, for one. coredns_build_info has CoreDNS's version.
var buildInfo = promauto.NewGaugeVec(prometheus.GaugeOpts{
	Namespace: plugin.Namespace,
	Subsystem: "trackless",
	Name:      "build_info",
	Help:      "The version of Trackless; always 1.",
}, []string{"version", "goversion"})

// New prepares CoreDNS to load its first Corefile.
func New(o Options) (*Server, error) {
	recent := newRecentLog()
	if err := embed(o, recent); err != nil {
		return nil, err
	}
	return &Server{options: o, log: recent}, nil
}

// Run serves until a signal ends the process; it returns only when there is
// nothing to run. before runs before the first Corefile is loaded, started once
// it serves.
func (s *Server) Run(before func() error, started func()) error {
	respectMemoryLimit("/")
	respectCPULimit("/")
	stacks.Keep()
	if err := before(); err != nil {
		return err
	}
	corefile, err := caddy.LoadCaddyfile(Type)
	if err != nil {
		return err
	}
	served := newServedInstance(s.options.Version, s.log)
	caddy.TrapSignals()
	// It subscribes to the signals in goroutines of its own. While this one
	// sleeps they run; a SIGTERM before that would end us without cleanup.
	time.Sleep(10 * time.Millisecond)
	instance, err := caddy.Start(corefile)
	if err != nil {
		err = withUnset(err, string(corefile.Body()))
		// A start that failed half way may have left rules and addresses;
		// the same cleanup runs as at a stop.
		for _, cleanup := range caddy.OnProcessExit {
			cleanup()
		}
		return err
	}
	started()
	if s.options.Control != "off" {
		served.listen(s.options.Control)
	}
	instance.Wait()
	// All servers have stopped, which only a signal does; its handler ends
	// the process when the cleanup is done.
	select {}
}

// Plan loads the Corefile as Run does, up to where Run would start it, and returns
// what it would install, with which backend.
func Plan(o Options) (plan iptables.Plan, backend string, err error) {
	if err := embed(o, io.Discard); err != nil {
		return plan, "", err
	}
	clog.SetOutput(os.Stderr)
	corefile, err := o.Load(Type)
	if err != nil {
		return plan, "", err
	}
	if corefile == nil {
		return plan, "", errors.New("read the Corefile: nothing comes on standard input")
	}
	return notrack.PlanOf(corefile)
}

// embed prepares the process-wide state of CoreDNS and caddy, as the
// documentation of package dnsserver asks of an embedding program. coremain
// is not called; the prometheus plugin links it all the same for its version
// constant, so what its init sets is set again here.
func embed(o Options, recent io.Writer) error {
	caddy.AppName = "trackless"
	caddy.AppVersion = o.Version
	buildInfo.WithLabelValues(o.Version, runtime.Version()).Set(1)
	caddy.Quiet = true
	caddy.PidFile = o.PIDFile
	caddy.DefaultConfigFile = "Corefile"
	dnsserver.Quiet = o.Quiet
	dnsserver.Port = o.Port
	clog.SetOutput(io.MultiWriter(os.Stdout, recent))
	log.SetFlags(0)

	keepOpcodes()
	if err := dnsserver.SetDirectives(o.Directives); err != nil {
		return fmt.Errorf("plugin list: %w", err)
	}
	if err := dnsserver.Register(); err != nil {
		return fmt.Errorf("register the DNS server type: %w", err)
	}
	caddy.SetDefaultCaddyfileLoader("trackless", o.Load)
	return nil
}
