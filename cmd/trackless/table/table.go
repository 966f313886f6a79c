// Package table is the verb conntrack: it shows the connection tracking table.
package table

import (
	"github.com/spf13/cobra"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
)

const tableHelp = `See what the kernel's connection tracking table holds, how near it is to full,
who fills it, and what the kernel drops.

  trackless conntrack stats                      the table at a glance
  trackless conntrack top                        who has the entries, live
  trackless conntrack list --dns --state UNREPLIED
  trackless conntrack list -o conntrack          the same lines as conntrack -L
  trackless conntrack watch --rate               new and destroyed entries per second
  trackless conntrack limits                     every limit and timeout, and who sets it
  trackless conntrack help states                what NEW, ASSURED, INVALID ... mean

Entries need CAP_NET_ADMIN. Without it "limits" works, and "stats" shows the fill
and, on kernels that have /proc/net/stat/nf_conntrack, what was dropped.

Exit status: 0 done, 1 the table changed under every attempt to read it whole, or
the output could not be written, 2 wrong command line, 3 the table cannot be read.`

// Command makes the verb.
func Command() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "conntrack",
		Short: "See and explain the connection tracking table",
		Long:  tableHelp,
		Args:  cli.UnknownVerb,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(listCommand(), statsCommand(), watchCommand(), topCommand(),
		limitsCommand(), helpCommand())
	return cmd
}
