package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"strconv"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/spf13/cobra"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
	"github.com/trackless-dns/trackless/cmd/trackless/rules"
	"github.com/trackless-dns/trackless/iptables/control"
	"github.com/trackless-dns/trackless/server"
)

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
	return o.run(out, server.Loader(o.conf), nil)
}

// run serves what load returns, until a signal ends the process; it returns
// only when there is nothing to run. before, if not nil, runs when CoreDNS is
// ready to load its first Corefile.
func (o *serveOptions) run(out io.Writer, load caddy.LoaderFunc, before func() error) error {
	if _, err := parsePort(o.port); err != nil {
		return err
	}
	s, err := server.New(server.Options{
		Directives: directives, Version: version, Port: o.port, PIDFile: o.pidFile, Control: o.control, Quiet: o.quiet, Load: load,
	})
	if err != nil {
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
	if before == nil {
		before = func() error { return nil }
	}
	started := func() {
		if !o.quiet {
			fmt.Fprintln(out, versionString())
		}
	}
	if err := s.Run(before, started); err != nil {
		return cli.Exit(cli.ExitFailure, err)
	}
	return nil
}

// parsePort reads -dns.port.
func parsePort(s string) (uint16, error) {
	port, err := strconv.ParseUint(s, 10, 16)
	if err != nil || port == 0 {
		return 0, cli.Exit(cli.ExitUsage, fmt.Errorf("-dns.port %q, or -p: it takes a port from 1 to 65535", s))
	}
	return uint16(port), nil
}

// readPlan loads the Corefile as serve does, up to where serve would start it.
func readPlan(conf, port string) (rules.Plan, error) {
	plan, backend, err := server.Plan(server.Options{
		Directives: directives, Version: version, Port: port, Quiet: true, Load: server.Loader(conf),
	})
	return rules.Plan{Plan: plan, Backend: backend}, err
}
