// Package queries is the verb dns: the queries that this node's instances are asked.
package queries

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
	"github.com/trackless-dns/trackless/node/instance"
	"github.com/trackless-dns/trackless/node/who"
)

const topHelp = `Count the queries that the instances of this node are asked, by pod, namespace, name,
zone, type, rcode, transport or tier: how many, and how many of them the cache answered.
They count only while this command asks them to, over their control socket, and log
nothing. Names of clients and domains are shown to whoever may ask there, root on this node.

On a terminal it is a live screen: tab and the digits choose the group, s sorts, / filters,
space freezes, q ends it. With --once, queries are counted once and written. The most frequent pods and names are exact. Those that are too many to count one by
one are the row "(rest)". A zone is a namespace of the cluster, or the last two labels of a
name. Only server blocks with the directives notrack and prometheus are counted.

A tier is where the answer came from: the kernel, a socket's fast path, the cache, or
upstream. Of queries that a fast path answered only the client is known; by name, zone, type
and rcode they are the row "(fast path)".

Pods are named as by "trackless conntrack top": by the Kubernetes API, the container
runtime or network namespaces; else their addresses are shown.

Exit status: 0 counted, 1 an instance refused or there is none, 2 wrong command line.`

const topExample = `  trackless dns top
  trackless dns top --by name --interval 1m --once
  trackless dns top --once -o json`

// ways are what queries can be counted by.
var ways = []string{"pod", "namespace", "name", "zone", "type", "rcode", "transport", "tier"}

type options struct {
	by       string
	interval time.Duration
	once     bool
	output   string
	top      int
	socket   string
	pid      int
	names    who.Node
}

// Command makes the verb.
func Command() *cobra.Command {
	return commandOn(func() instance.Node { return instance.Kernel{} })
}

// commandOn makes the verb for a node, which tests replace.
func commandOn(node func() instance.Node) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dns",
		Short: "Show what this node's pods ask",
		Long:  "Show what the instances of this node are asked.",
		Args:  cli.UnknownVerb,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(topCommand(node))
	return cmd
}

func topCommand(node func() instance.Node) *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:     "top",
		Short:   "Count queries by pod, name, zone and more",
		Long:    topHelp,
		Example: topExample,
		Args:    cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := cli.UntilInterrupted(cmd.Context())
			defer stop()
			out := cmd.OutOrStdout()
			if live := !o.once && o.output == "table" && cli.IsTerminal(out) && !cli.DumbTerminal(); live {
				if !cmd.Flags().Changed("interval") {
					o.interval = screenInterval
				}
				if err := o.check(); err != nil {
					return err
				}
				return show(ctx, node(), o, cmd.InOrStdin(), out)
			}
			return runTop(ctx, node(), o, out, cmd.ErrOrStderr())
		},
	}
	cli.OutputFlag(cmd, &o.output, "table", "json", "jsonl")
	cli.SocketFlag(cmd, &o.socket)
	cli.PIDFlag(cmd, &o.pid, node)
	fs := cmd.Flags()
	fs.StringVar(&o.by, "by", "pod", "what to count by: "+strings.Join(ways, ", "))
	_ = cmd.RegisterFlagCompletionFunc("by", cobra.FixedCompletions(ways, cobra.ShellCompDirectiveNoFileComp))
	fs.DurationVar(&o.interval, "interval", 10*time.Second, "`time` for which queries are counted; on the screen 2s unless given")
	fs.BoolVar(&o.once, "once", false, "count once, and end")
	fs.IntVar(&o.top, "top", 20, "`number` of rows")
	cli.NameFlags(cmd, &o.names)
	return cmd
}

// The bounds of --interval; the control socket counts no longer than that for one request.
const (
	shortestInterval = 100 * time.Millisecond
	longestInterval  = 10 * time.Minute
)

func (o *options) check() error {
	if err := cli.CheckOutput("dns top", o.output, "table", "json", "jsonl"); err != nil {
		return err
	}
	if err := cli.OneOf("dns top", "--by", o.by, ways...); err != nil {
		return err
	}
	switch {
	case o.interval < shortestInterval || o.interval > longestInterval:
		return cli.Exit(cli.ExitUsage, fmt.Errorf("dns top: --interval %s: it takes %s to %s", o.interval, shortestInterval, longestInterval))
	case o.top < 1:
		return cli.Exit(cli.ExitUsage, fmt.Errorf("dns top: --top %d: there is at least one row", o.top))
	case !o.once && o.output == "json":
		return cli.Exit(cli.ExitUsage, errors.New("dns top: --output json is one document, for --once; jsonl goes on"))
	}
	return cli.CheckRoot(o.names.Root)
}

func failure(err error) error { return cli.Exit(cli.ExitFailure, fmt.Errorf("dns top: %w", err)) }

func runTop(ctx context.Context, node instance.Node, o options, out, errs io.Writer) error {
	if err := o.check(); err != nil {
		return err
	}
	names := o.names.Follow(ctx)
	for {
		r, err := count(ctx, node, o)
		switch {
		case ctx.Err() != nil && !o.once:
			return nil // Ctrl-C ends it
		case err != nil:
			return failure(err)
		}
		r.group(o.by, o.top, names.Current(ctx))
		if err := r.write(o, out, errs); err != nil || o.once {
			return err
		}
	}
}
