// Package probe has the verbs below `trackless probe`.
package probe

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
	"github.com/trackless-dns/trackless/cmd/trackless/early"
	"github.com/trackless-dns/trackless/iptables/control"
	"github.com/trackless-dns/trackless/node/instance"
)

const help = `Ask the instance of this container how it is, for the exec probes of kubelet. The
instance is asked over its control socket; among several, as with an abstract
socket on a shared network namespace, the one in our own pid namespace.

Exit status: 0 it is, 1 it is not or nobody answers, 2 wrong command line.`

const readyHelp = `Ask whether the instance is ready: it answers a name through its own listeners
at every listen address, and its rules are in force. Any answer to the name will
do, also that it does not exist; no answer, or SERVFAIL, will not.

An instance that knowingly untracks nothing is ready too: one that was detached
by hand, in a dry run, or whose Corefile has no notrack block. Otherwise a
rollout would wait for ever.

With --wait one probe sees a pod through its start: the next one may come late.

Exit status: 0 ready, 1 not ready or nobody answers, 2 wrong command line.`

const liveHelp = `Ask whether the instance is alive: its process answers, and a query that needs no
upstream comes back from the plugins of each server block. Neither upstreams nor
rules nor anything outside of the process matter, so that kubelet restarts what
a restart mends.

Exit status: 0 alive, 1 not alive or nobody answers, 2 wrong command line.`

const example = `  trackless probe ready
  trackless probe ready --wait
  trackless probe ready --name kubernetes.default.svc.example.org. --timeout 3s
  trackless probe live --socket /run/trackless/control.sock`

type options struct {
	verb    string
	output  string
	socket  string
	name    string
	wait    bool
	timeout time.Duration
}

// Command makes the verb.
func Command() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "probe",
		Short:   "Whether the instance of this container is ready, or alive",
		Long:    help,
		Example: example,
		Args:    cli.UnknownVerb,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		verbCommand("ready", "Whether it answers and its rules are in force", readyHelp),
		verbCommand("live", "Whether it answers at all", liveHelp),
		dnsCommand(),
	)
	return cmd
}

func verbCommand(verb, short, long string) *cobra.Command {
	o := options{verb: verb}
	cmd := &cobra.Command{
		Use:   verb,
		Short: short,
		Long:  long,
		Args:  cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cli.CheckOutput("probe "+verb, o.output); err != nil {
				return err
			}
			if o.timeout <= 0 {
				return cli.Exit(cli.ExitUsage, fmt.Errorf("probe %s: --timeout is more than 0, not %s", verb, o.timeout))
			}
			return run(cmd.Context(), o, cmd.OutOrStdout())
		},
	}
	cli.OutputFlag(cmd, &o.output)
	cmd.Flags().StringVar(&o.socket, "socket", "", "control socket of the instance (default: the one of this container)")
	cmd.Flags().DurationVar(&o.timeout, "timeout", 4*time.Second, "how long to wait; less than the probe's timeoutSeconds")
	if verb == "ready" {
		cmd.Flags().StringVar(&o.name, "name", early.Name, "name that has to be answered")
		cmd.Flags().BoolVar(&o.wait, "wait", false, "ask again until it is ready or the timeout is over")
	}
	return cmd
}

// report is the JSON of a probe.
type report struct {
	Probe  string `json:"probe"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`
	Socket string `json:"socket,omitempty"`
	PID    int    `json:"pid,omitempty"`
}

// askAgain is how long --wait waits between two questions.
const askAgain = 250 * time.Millisecond

func run(ctx context.Context, o options, out io.Writer) error {
	ctx, cancel := context.WithTimeoutCause(ctx, o.timeout, fmt.Errorf("no answer within %s", o.timeout))
	defer cancel()
	r := o.ask(ctx)
	for again := time.NewTicker(askAgain); o.wait && !r.OK && ctx.Err() == nil; {
		select {
		case <-again.C:
			if next := o.ask(ctx); next.OK || ctx.Err() == nil {
				r = next // otherwise the one before says more
			}
		case <-ctx.Done():
		}
	}
	if o.output == "json" {
		if err := cli.WriteJSON(out, r); err != nil {
			return cli.Exit(cli.ExitFailure, err)
		}
	}
	if !r.OK {
		return cli.Exit(cli.ExitFailure, fmt.Errorf("not %s: %s", o.verb, r.Detail))
	}
	if o.output == "table" {
		if _, err := fmt.Fprintf(out, "%s: %s\n", o.verb, r.Detail); err != nil {
			return cli.Exit(cli.ExitFailure, err)
		}
	}
	return nil
}

// ask asks once.
func (o options) ask(ctx context.Context) report {
	r := report{Probe: o.verb}
	client, err := instance.Own(ctx, o.socket)
	if err == nil {
		r.Socket = client.Socket()
		var h control.Health
		if o.verb == "ready" {
			h, err = client.Ready(ctx, o.name)
		} else {
			h, err = client.Live(ctx)
		}
		r.OK, r.Detail, r.PID = h.OK, h.Detail, h.Process.PID
	}
	if err != nil {
		r.OK, r.Detail = false, err.Error()
	}
	return r
}
