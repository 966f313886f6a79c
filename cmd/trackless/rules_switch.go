package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/control"
	"github.com/trackless-dns/trackless/iptables/owner"
)

const rulesDetachHelp = `Hand DNS back to the cluster's DNS at once, without a restart: the instance takes
its query rules away, and what comes from then on is tracked and goes where
kube-proxy sends it. Queries under way are still answered. The command returns
when the drain is over. The instance stays detached, also when it loads its
Corefile again, until "trackless rules attach" or a restart.

Without --pid or --socket all instances of this node are asked. The rules of an
instance belong to its process, so one that does not answer on its control
socket is named, and nothing is forced: a signal ends it, and its rules with it.

Exit status: 0 all did it, 1 one did not or there is none, 2 wrong command line.`

const rulesAttachHelp = `Untrack DNS to the listen addresses again after "trackless rules detach": the
instance checks that its listeners answer and installs its query rules. The
command returns when queries are untracked.

Exit status: 0 all did it, 1 one did not or there is none, 2 wrong command line.`

const rulesSwitchExample = `  trackless rules %[1]s
  trackless rules %[1]s --pid 4711
  trackless rules %[1]s --socket /run/trackless/control.sock`

type rulesSwitchOptions struct {
	verb    string
	output  string
	socket  string
	pid     int
	timeout time.Duration
}

func rulesDetachCommand(node func() rulesNode) *cobra.Command {
	return rulesSwitchCommand(node, "detach", "Hand DNS back to the cluster's DNS, without a restart", rulesDetachHelp)
}

func rulesAttachCommand(node func() rulesNode) *cobra.Command {
	return rulesSwitchCommand(node, "attach", "Untrack DNS again after a detach", rulesAttachHelp)
}

func rulesSwitchCommand(node func() rulesNode, verb, short, long string) *cobra.Command {
	o := rulesSwitchOptions{verb: verb}
	cmd := &cobra.Command{
		Use:     verb,
		Short:   short,
		Long:    long,
		Example: fmt.Sprintf(rulesSwitchExample, verb),
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
	pidFlag(cmd, node, &o.pid)
	cmd.Flags().DurationVar(&o.timeout, "timeout", 30*time.Second, "how long to wait for an instance")
	return cmd
}

// pidFlag adds --pid.
func pidFlag(cmd *cobra.Command, node func() rulesNode, pid *int) {
	cmd.Flags().IntVar(pid, "pid", 0, "process id of the one instance to ask")
	_ = cmd.RegisterFlagCompletionFunc("pid", func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		var pids []string
		found, _ := reach(cmd.Context(), node(), "", nil)
		for _, f := range found {
			pids = append(pids, strconv.Itoa(f.pid()))
		}
		return pids, cobra.ShellCompDirectiveNoFileComp
	})
}

func (o rulesSwitchOptions) check() error {
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

// pid is the instance's process id as seen from here or, if it cannot be seen,
// in its container.
func (r reached) pid() int {
	if pid := r.PID(); pid != 0 {
		return pid
	}
	return r.status.Process.PID
}

// switched is the JSON of one instance's answer.
type switched struct {
	Table  string `json:"table,omitempty"`
	PID    int    `json:"pid,omitempty"`
	Socket string `json:"socket,omitempty"`
	State  string `json:"state,omitempty"`
	Error  string `json:"error,omitempty"`
}

func switchRules(ctx context.Context, node rulesNode, o rulesSwitchOptions, out io.Writer) error {
	// Tables tell of instances that no socket leads to. Reading them needs a
	// privilege that asking does not.
	instances, err := node.Instances()
	var unsupported *iptables.UnsupportedError
	if err != nil && !errors.Is(err, iptables.ErrPermission) && !errors.As(err, &unsupported) {
		return rulesError(o.verb, err)
	}
	found, quiet := reach(ctx, node, o.socket, localPIDs(instances))
	unreached := beyondReach(instances, found, o)
	found = slices.DeleteFunc(found, func(r reached) bool { return o.pid != 0 && r.pid() != o.pid })

	results := make([]switched, len(found))
	ctx, cancel := context.WithTimeoutCause(ctx, o.timeout, fmt.Errorf("no answer within %s; it goes on by itself", o.timeout))
	defer cancel()
	var wg sync.WaitGroup
	for i, f := range found {
		wg.Go(func() { results[i] = switchOne(ctx, f, o.verb) })
	}
	wg.Wait()
	results = append(results, unreached...)
	if o.socket != "" || o.pid == 0 && len(unreached) == 0 {
		// Whom a silent socket belongs to is not known.
		for _, s := range quiet {
			results = append(results, switched{Socket: s.socket, Error: s.err.Error()})
		}
	}
	if len(results) == 0 {
		return rulesError(o.verb, nobody(o))
	}
	if err := writeSwitched(out, o.output, results); err != nil {
		return rulesError(o.verb, err)
	}
	var failed []string
	for _, r := range results {
		if r.Error != "" {
			failed = append(failed, r.Error)
		}
	}
	if len(failed) > 0 {
		return rulesError(o.verb, errors.New(strings.Join(failed, "; ")))
	}
	return nil
}

func switchOne(ctx context.Context, f reached, verb string) switched {
	do := f.Detach
	if verb == "attach" {
		do = f.Attach
	}
	r := switched{Table: f.status.Table, PID: f.pid(), Socket: f.Socket()}
	status, err := do(ctx)
	var refused *control.RefusedError
	switch {
	case errors.As(err, &refused):
		r.Error = fmt.Sprintf("pid %d refused: %s", r.PID, refused.Reason)
	case err != nil:
		r.Error = fmt.Sprintf("pid %d: %v", r.PID, err)
		if ctx.Err() != nil {
			// Why it takes so long, it can say.
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), statusTimeout)
			defer cancel()
			if status, err := f.Status(ctx); err == nil && status.Reason != "" {
				r.Error += ": " + status.Reason
			}
		}
	default:
		r.State = status.State
	}
	return r
}

// beyondReach are the tables of living processes that answer on no socket.
func beyondReach(instances []iptables.Instance, found []reached, o rulesSwitchOptions) []switched {
	if o.socket != "" {
		return nil
	}
	var out []switched
	for _, i := range instances {
		pid := i.Owner.LocalPID
		if pid == 0 {
			pid = i.Owner.PID
		}
		answers := slices.ContainsFunc(found, func(r reached) bool { return r.status.Table == i.Table })
		if answers || i.Owner.Life == owner.Dead || o.pid != 0 && o.pid != pid {
			continue
		}
		what := fmt.Sprintf("table inet %s can be changed by its owner alone, %s, which answers on no control socket: name its socket with --socket if `trackless serve` was given another -control",
			i.Table, ownerName(i.Owner))
		if i.Owner.LocalPID != 0 {
			what += fmt.Sprintf("; or end it with `kill %d`, which takes its rules away", i.Owner.LocalPID)
		}
		out = append(out, switched{Table: i.Table, PID: pid, Error: what})
	}
	return out
}

func nobody(o rulesSwitchOptions) error {
	if o.pid != 0 {
		return fmt.Errorf("no instance with pid %d answers on this node; `trackless rules show` lists the instances", o.pid)
	}
	return fmt.Errorf("no instance answers on this node: is `trackless serve` running? In a container, run this inside it or as root on its host, or name the socket with --socket")
}

func writeSwitched(out io.Writer, output string, results []switched) error {
	if output == "json" {
		return cli.WriteJSON(out, struct {
			Instances []switched `json:"instances"`
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
