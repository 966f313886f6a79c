package table

import (
	"context"
	"errors"
	"io"

	"github.com/spf13/cobra"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/conntrack/format"
	"github.com/trackless-dns/trackless/conntrack/reread"
)

const listHelp = `List the entries of the connection tracking table, or those that all given
filters select. Entries are printed as the kernel sends them; the table is never
held.

Filters that take several values take them separated by commas; one has to match.
Where the kernel can filter (family and mark; protocol with ports and IPv4
addresses since Linux 5.8, status since 5.15, zone since 6.8) what is not wanted is
not even read.

--pod selects the entries of pods: those that they opened, and those in which they are
asked, directly or behind a Service. See ` + "`trackless conntrack stats --help`" + ` for where
names come from.

Output: "conntrack" is byte for byte what conntrack -L prints; json, jsonl and
yaml have the same fields, which do not change.`

type listOptions struct {
	filterFlags
	podFlags
	output string
	netns  cli.NetNS
}

func listCommand() *cobra.Command {
	var o listOptions
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List entries",
		Long:    listHelp,
		Example: `  trackless conntrack list --dns
  trackless conntrack list --proto tcp --state TIME_WAIT --dst 10.96.0.0/12
  trackless conntrack list --pod 'shop/cart-*' --dns
  trackless conntrack list --nat dnat --reply-src 10.244.1.7 -o wide
  trackless conntrack list -o jsonl | jq -r .original.src | sort | uniq -c`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runList(cmd.Context(), o, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	o.filterFlags.register(cmd)
	o.podFlags.register(cmd)
	cli.OutputFlag(cmd, &o.output, format.Names...)
	o.netns.Register(cmd, "")
	return cmd
}

func runList(ctx context.Context, o listOptions, out, errs io.Writer) error {
	f, err := o.filter()
	if err != nil {
		return err
	}
	if err := cli.CheckOutput("conntrack list", o.output, format.Names...); err != nil {
		return err
	}
	return o.netns.Do(func() error {
		c, err := conntrack.Dial(nil)
		if err != nil {
			return cli.CannotMeasure(err)
		}
		defer func() { _ = c.Close() }()
		// A dump that fails at once prints nothing, not even an empty document.
		if _, _, err := c.Count(); err != nil {
			return cli.CannotMeasure(err)
		}
		if err := o.find(ctx, &f, errs); err != nil {
			return err
		}
		w, err := format.New(o.output, out)
		if err != nil {
			return err
		}
		err = reread.Entries(c.Dump, f, w.Entry, cli.Progress(errs))
		return errors.Join(cli.CannotMeasure(err), w.Close())
	})
}
