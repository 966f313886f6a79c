package rules

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
	"github.com/trackless-dns/trackless/node/instance"
	"github.com/trackless-dns/trackless/node/rules"
)

const detachHelp = `Hand DNS back to the cluster's DNS at once, without a restart: the instance takes
its query rules away, and what comes from then on is tracked and goes where
kube-proxy sends it. Queries under way are still answered. The command returns
when the drain is over. The instance stays detached, also when it loads its
Corefile again, until "trackless rules attach" or a restart.

Without --pid or --socket all instances of this node are asked. The rules of an
instance belong to its process, so one that does not answer on its control
socket is named, and nothing is forced: a signal ends it, and its rules with it.

Exit status: 0 all did it, 1 one did not or there is none, 2 wrong command line.`

const attachHelp = `Untrack DNS to the listen addresses again after "trackless rules detach": the
instance checks that its listeners answer and installs its query rules. The
command returns when queries are untracked.

Exit status: 0 all did it, 1 one did not or there is none, 2 wrong command line.`

const switchExample = `  trackless rules %[1]s
  trackless rules %[1]s --pid 4711
  trackless rules %[1]s --socket /run/trackless/control.sock`

type switchOptions struct {
	verb    string
	output  string
	socket  string
	pid     int
	timeout time.Duration
}

func detachCommand(node func() rules.Node) *cobra.Command {
	return switchCommand(node, "detach", "Hand DNS back to the cluster's DNS, without a restart", detachHelp)
}

func attachCommand(node func() rules.Node) *cobra.Command {
	return switchCommand(node, "attach", "Untrack DNS again after a detach", attachHelp)
}

func switchCommand(node func() rules.Node, verb, short, long string) *cobra.Command {
	o := switchOptions{verb: verb}
	cmd := &cobra.Command{
		Use:     verb,
		Short:   short,
		Long:    long,
		Example: fmt.Sprintf(switchExample, verb),
		Args:    cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.check(); err != nil {
				return err
			}
			return switchRules(cmd.Context(), node(), o, cmd.OutOrStdout())
		},
	}
	cli.OutputFlag(cmd, &o.output)
	cli.SocketFlag(cmd, &o.socket)
	cli.PIDFlag(cmd, &o.pid, func() instance.Node { return node() })
	cmd.Flags().DurationVar(&o.timeout, "timeout", 30*time.Second, "how long to wait for an instance")
	return cmd
}

func (o switchOptions) check() error {
	if err := cli.CheckOutput("rules "+o.verb, o.output); err != nil {
		return err
	}
	switch {
	case o.pid < 0:
		return cli.Exit(cli.ExitUsage, fmt.Errorf("rules %s: --pid is a process id, not %d", o.verb, o.pid))
	case o.timeout <= 0:
		return cli.Exit(cli.ExitUsage, fmt.Errorf("rules %s: --timeout is more than 0, not %s", o.verb, o.timeout))
	}
	return nil
}

func switchRules(ctx context.Context, node rules.Node, o switchOptions, out io.Writer) error {
	results, err := instance.Switch(ctx, node, instance.SwitchOptions{
		Attach: o.verb == "attach", Socket: o.socket, PID: o.pid, Timeout: o.timeout,
	})
	if err == nil {
		err = writeSwitched(out, o.output, results)
	}
	if err == nil {
		err = instance.Failures(results)
	}
	if err != nil {
		return failure(o.verb, err)
	}
	return nil
}

func writeSwitched(out io.Writer, output string, results []instance.Switched) error {
	if output == "json" {
		return cli.WriteJSON(out, struct {
			Instances []instance.Switched `json:"instances"`
		}{results})
	}
	for _, r := range results {
		if r.Error != "" {
			continue // the error says it
		}
		if _, err := fmt.Fprintf(out, "pid %d (table inet %s): %s\n", r.PID, r.Table, r.State); err != nil {
			return err
		}
	}
	return nil
}
