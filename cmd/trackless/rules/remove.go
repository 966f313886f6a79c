package rules

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
	"github.com/trackless-dns/trackless/node/rules"
)

const removeHelp = `Take away everything of Trackless that has no living owner: tables that a dead
instance left (kernels before 5.12 do not bind them to their process), and, for
each listen address that no instance on the node asks for any more, its part of
the failover table, our accept rules in filter chains of the host, the address
and, with its last address, the link.

What a running instance uses stays, and the command fails and names its pid: end
the instance first (SIGTERM takes away all that it alone asks for, but for its
part of the failover table and accept rules), or
hand DNS back with "trackless rules detach". No option overrides that. What is
not certainly ours stays too and is named: tables whose owner lives in a
container that cannot be seen from here, and addresses without our mark, which
may be those of NodeLocal DNSCache (kernels before 5.18 keep no mark). --force
removes these two.

Exit status: 0 done or nothing to do, 1 something failed or was refused, 2 wrong
command line. --dry-run changes nothing and has the status that the removal
would have.`

const removeExample = `  trackless rules remove --dry-run
  trackless rules remove
  trackless rules remove --interface dns0`

type removeOptions struct {
	output string
	link   string
	dryRun bool
	force  bool
}

func removeCommand(node func() rules.Node) *cobra.Command {
	var o removeOptions
	cmd := &cobra.Command{
		Use:     "remove",
		Short:   "Take away everything of ours that has no living owner",
		Long:    removeHelp,
		Example: removeExample,
		Args:    cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cli.CheckOutput("rules remove", o.output); err != nil {
				return err
			}
			if err := checkInterface("remove", o.link); err != nil {
				return err
			}
			return removeRules(node(), o, cmd.OutOrStdout())
		},
	}
	cli.OutputFlag(cmd, &o.output)
	interfaceFlag(cmd, &o.link)
	cmd.Flags().BoolVar(&o.dryRun, "dry-run", false, "list what would be removed, and change nothing")
	cmd.Flags().BoolVar(&o.force, "force", false, "also remove what is not certainly ours or not certainly unused")
	return cmd
}

func removeRules(node rules.Node, o removeOptions, out io.Writer) error {
	done, err := rules.Remove(node, rules.RemoveOptions{Link: o.link, DryRun: o.dryRun, Force: o.force})
	if writeErr := writeRemoved(out, o, done, err == nil); writeErr != nil {
		return failure("remove", writeErr)
	}
	if err != nil {
		return failure("remove", err)
	}
	return nil
}

func writeRemoved(out io.Writer, o removeOptions, done []rules.Removal, well bool) error {
	if o.output == "json" {
		return cli.WriteJSON(out, struct {
			DryRun bool            `json:"dry_run"`
			Items  []rules.Removal `json:"items"`
		}{o.dryRun, append([]rules.Removal{}, done...)})
	}
	for _, d := range done {
		if _, err := fmt.Fprintln(out, d); err != nil {
			return err
		}
	}
	if len(done) == 0 && well {
		_, err := fmt.Fprintln(out, "nothing of ours is on this node")
		return err
	}
	return nil
}
