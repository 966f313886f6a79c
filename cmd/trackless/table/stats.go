package table

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
	"github.com/trackless-dns/trackless/conntrack/groups"
	"github.com/trackless-dns/trackless/conntrack/summary"
	"github.com/trackless-dns/trackless/node/who"
)

const statsHelp = `Show what is in the connection tracking table: how full it is, protocols and
states, destination ports, NAT, how much of it is DNS and how much never got an
answer, the addresses with the most entries, and the kernel's counters of what it
dropped.

With filters the shares are those of the entries that the filters select; the fill
and the kernel's counters are always those of the whole table.

--netns all counts every network namespace of this host. A sidecar or a pod with
its own rules fills the table of its own pod; the limit is the same for each.

--by shows who has the entries instead: by pod, namespace, service, destination,
protocol or state. The groups add up to the table. An entry counts for the pod that
opened the flow, else for the pod that is asked, else for the node, else for the
address of the source.

` + namesHelp

type statsOptions struct {
	filterFlags
	output string
	netns  cli.NetNS
	top    int
	perCPU bool
	by     string
	names  who.Node
}

func statsCommand() *cobra.Command {
	var o statsOptions
	cmd := &cobra.Command{
		Use:   "stats",
		Short: "Summarise the table and the kernel's counters",
		Long:  statsHelp,
		Example: `  trackless conntrack stats
  trackless conntrack stats --by pod --dns
  trackless conntrack stats --by service --top 20 -o json`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runStats(cmd.Context(), o, o.set(cmd), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	o.register(cmd)
	cli.OutputFlag(cmd, &o.output)
	o.netns.Register(cmd, "; all counts every one")
	cmd.Flags().IntVar(&o.top, "top", 10, "`length` of the lists")
	cmd.Flags().StringVar(&o.by, "by", "", "count the entries by this `group`: "+strings.Join(groups.Words(), ", "))
	_ = cmd.RegisterFlagCompletionFunc("by", cobra.FixedCompletions(groups.Words(), cobra.ShellCompDirectiveNoFileComp))
	cli.NameFlags(cmd, &o.names)
	cmd.Flags().BoolVar(&o.perCPU, "per-cpu", false, "show the kernel's counters for each CPU too")
	return cmd
}

func runStats(ctx context.Context, o statsOptions, filtered bool, out, errs io.Writer) error {
	f, err := o.filter()
	if err != nil {
		return err
	}
	if err := cli.CheckOutput("conntrack stats", o.output); err != nil {
		return err
	}
	if o.top < 1 {
		return fmt.Errorf("--top %d: the lists have at least one line", o.top)
	}
	if o.by != "" && o.netns == "all" {
		return errors.New("--by and --netns all exclude each other: name one network namespace")
	}
	if o.by != "" {
		return statsBy(ctx, f, o, out, errs)
	}
	if o.netns == "all" {
		return statsOfAllNamespaces(f, o, out, errs)
	}
	return o.netns.Do(func() error {
		r, err := summary.ReadTable(f, o.top, cli.Progress(errs))
		err = cli.CannotMeasure(err)
		if r == nil {
			return err
		}
		r.Filtered = filtered
		if !o.perCPU {
			r.PerCPU = nil
		}
		if o.output == "json" {
			return errors.Join(cli.WriteJSON(out, r), err)
		}
		return errors.Join(writeTable(out, r), err)
	})
}
