package main

import (
	"errors"
	"flag"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
	"github.com/trackless-dns/trackless/nodecache"
	"github.com/trackless-dns/trackless/nodecache/source"
)

// nodeCacheName is the program of NodeLocal DNSCache. Called by that name we
// are in its place.
const nodeCacheName = "node-cache"

const nodeCacheHelp = `Run the cache in the place of NodeLocal DNSCache's node-cache: with its flags,
the template of its Corefile and the ConfigMap of kube-dns. A program called
node-cache, such as a link to this one, does so by itself.

Usage:
  node-cache -localip ADDRESS,... [flags]
  trackless node-cache -localip ADDRESS,... [flags]

A notrack block is put into each server block that listens on one of the
addresses; a Corefile with a notrack block of its own is taken as it is.

Signals and exit status are those of ` + "`trackless serve`" + `.

Flags:
`

func nodeCacheCommand() *cobra.Command {
	return &cobra.Command{
		Use:                nodeCacheName + " -localip ADDRESS,... [flags]",
		Short:              "Run the cache in the place of NodeLocal DNSCache's node-cache",
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			return nodeCache(args, cmd.OutOrStdout())
		},
	}
}

// nodeCache runs until a signal ends the process.
func nodeCache(args []string, out io.Writer) error {
	var (
		serve   serveOptions
		options nodecache.Options
	)
	fs := flag.NewFlagSet(nodeCacheName, flag.ContinueOnError)
	fs.SetOutput(out)
	fs.StringVar(&serve.conf, "conf", "", "the same as -corefile")
	serve.register(fs)
	options.Register(fs)
	fs.Usage = func() {
		fmt.Fprint(out, nodeCacheHelp)
		fs.PrintDefaults()
	}
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return cli.Exit(cli.ExitUsage, fmt.Errorf("%w; see `%s -help`", err, nodeCacheName))
	}
	if fs.NArg() > 0 {
		return cli.Exit(cli.ExitUsage, fmt.Errorf("%s: unexpected argument %q", nodeCacheName, fs.Arg(0)))
	}
	if serve.conf != "" {
		options.Corefile = serve.conf
	}
	port, err := parsePort(serve.port)
	if err != nil {
		return err
	}
	if err := options.Validate(); err != nil && !serve.version && !serve.plugins {
		return cli.Exit(cli.ExitUsage, fmt.Errorf("%s: %w", nodeCacheName, err))
	}
	n := source.New(&options, port, directives)
	return serve.run(out, n.Load, n.Start)
}
