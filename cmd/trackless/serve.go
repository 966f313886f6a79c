package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	clog "github.com/coredns/coredns/plugin/pkg/log"
	"github.com/spf13/cobra"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
	"github.com/trackless-dns/trackless/iptables/control"
)

const serverType = "dns"

// serveOptions are the flags of `trackless serve`: those of CoreDNS, by the
// same names, so that unit files and manifests need no change.
type serveOptions struct {
	conf    string
	port    string
	pidFile string
	control string
	quiet   bool
	plugins bool
	version bool
}

func (o *serveOptions) flagSet(out io.Writer) *flag.FlagSet {
	fs := flag.NewFlagSet("serve", flag.ContinueOnError)
	fs.SetOutput(out)
	fs.StringVar(&o.conf, "conf", "", "Corefile to load, a `file` or \"stdin\" (default \"Corefile\" in the working directory)")
	o.register(fs)
	fs.Usage = func() {
		fmt.Fprint(out, serveHelp)
		fs.PrintDefaults()
	}
	return fs
}

// register defines the flags that node-cache has too.
func (o *serveOptions) register(fs *flag.FlagSet) {
	fs.StringVar(&o.port, "dns.port", dnsserver.DefaultPort, "default `port` of server blocks that name none")
	fs.StringVar(&o.port, "p", dnsserver.DefaultPort, "the same as -dns.port")
	fs.StringVar(&o.pidFile, "pidfile", "", "`file` to write the process id to")
	fs.StringVar(&o.control, "control", control.DefaultPath, "unix `socket` for rules attach, detach, cache, snapshot and support-bundle: a path, @NAME for an abstract one, or off")
	fs.BoolVar(&o.quiet, "quiet", false, "print nothing at start")
	fs.BoolVar(&o.plugins, "plugins", false, "list the compiled-in plugins and exit")
	fs.BoolVar(&o.version, "version", false, "print the version and exit")
}

const serveHelp = `Run the cache: CoreDNS with the notrack directive, configured by a Corefile.

Usage:
  trackless serve [-conf Corefile] [flags]

Signals: SIGTERM and SIGINT stop it (the rules go first, then the listeners,
then the addresses), SIGUSR1 loads the Corefile again, SIGQUIT stops at once.
Exit status: 0 after a stop by signal, 1 when it could not start, 2 for a wrong
command line.

Flags:
`

func serveCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "serve [-conf Corefile] [flags]",
		Short: "Run the cache",
		// The flags are CoreDNS's, with a single dash; package flag reads them.
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			return serve(args, cmd.OutOrStdout())
		},
	}
}

func serve(args []string, out io.Writer) error {
	var o serveOptions
	fs := o.flagSet(out)
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return cli.Exit(cli.ExitUsage, fmt.Errorf("%w; see `trackless serve -help`", err))
	}
	if fs.NArg() > 0 {
		return cli.Exit(cli.ExitUsage, fmt.Errorf("serve: unexpected argument %q; the Corefile is named with -conf", fs.Arg(0)))
	}
	return o.run(out, func(serverType string) (caddy.Input, error) { return loadCorefile(o.conf, serverType) }, nil)
}

// run serves what load returns, until a signal ends the process; it returns
// only when there is nothing to run. before, if not nil, runs when CoreDNS is
// ready to load its first Corefile.
func (o *serveOptions) run(out io.Writer, load caddy.LoaderFunc, before func() error) error {
	if _, err := parsePort(o.port); err != nil {
		return err
	}
	recent := newRecentLog()
	if err := embedCoreDNS(o, load, recent); err != nil {
		return cli.Exit(cli.ExitFailure, err)
	}
	switch {
	case o.version:
		fmt.Fprintln(out, versionString())
		return nil
	case o.plugins:
		fmt.Fprintln(out, caddy.DescribePlugins())
		return nil
	}
	respectMemoryLimit("/")
	if before != nil {
		if err := before(); err != nil {
			return cli.Exit(cli.ExitFailure, err)
		}
	}
	corefile, err := caddy.LoadCaddyfile(serverType)
	if err != nil {
		return cli.Exit(cli.ExitFailure, err)
	}
	controlled := newServedInstance(recent)
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
		return cli.Exit(cli.ExitFailure, err)
	}
	if !o.quiet {
		fmt.Fprintln(out, versionString())
	}
	if o.control != "off" {
		controlled.listen(o.control)
	}
	instance.Wait()
	// All servers have stopped, which only a signal does; its handler ends
	// the process when the cleanup is done.
	select {}
}

// parsePort reads -dns.port.
func parsePort(s string) (uint16, error) {
	port, err := strconv.ParseUint(s, 10, 16)
	if err != nil || port == 0 {
		return 0, cli.Exit(cli.ExitUsage, fmt.Errorf("-dns.port %q, or -p: it takes a port from 1 to 65535", s))
	}
	return uint16(port), nil
}

// embedCoreDNS prepares the process-wide state of CoreDNS and caddy, as the
// documentation of package dnsserver asks of an embedding program. coremain
// is not called; the prometheus plugin links it all the same for its version
// constant, so what its init sets is set again here.
func embedCoreDNS(o *serveOptions, load caddy.LoaderFunc, recent io.Writer) error {
	caddy.AppName = "trackless"
	caddy.AppVersion = version
	buildInfo.WithLabelValues(version, runtime.Version()).Set(1)
	caddy.Quiet = true
	caddy.PidFile = o.pidFile
	caddy.DefaultConfigFile = "Corefile"
	dnsserver.Quiet = o.quiet
	dnsserver.Port = o.port
	clog.SetOutput(io.MultiWriter(os.Stdout, recent))
	log.SetFlags(0)

	keepOpcodes()
	if err := dnsserver.SetDirectives(directives); err != nil {
		return fmt.Errorf("plugin list: %w", err)
	}
	if err := dnsserver.Register(); err != nil {
		return fmt.Errorf("register the DNS server type: %w", err)
	}
	caddy.SetDefaultCaddyfileLoader("trackless", load)
	return nil
}

// loadCorefile reads the Corefile that -conf names, or the one in the working
// directory. With neither there, CoreDNS's default server would answer whoami
// on the default port, which helps nobody on a node: that is an error here.
func loadCorefile(conf, serverType string) (caddy.Input, error) {
	path := conf
	switch path {
	case "stdin":
		return caddy.CaddyfileFromPipe(os.Stdin, serverType)
	case "":
		path = caddy.DefaultConfigFile
	}
	contents, err := os.ReadFile(filepath.Clean(path))
	if err != nil {
		return nil, fmt.Errorf("read the Corefile: %w; name one with -conf", err)
	}
	if strings.TrimSpace(string(contents)) == "" {
		return nil, fmt.Errorf("the Corefile %s is empty; it needs at least one server block", path)
	}
	if unset := unsetVariables(string(contents)); len(unset) > 0 {
		clog.Warningf("the Corefile %s uses variables that are not set, and nothing is put in their place: %s", path, strings.Join(unset, ", "))
	}
	return caddy.CaddyfileInput{Contents: contents, Filepath: path, ServerTypeName: serverType}, nil
}
