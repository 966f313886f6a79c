// Package rules has the verbs below `trackless rules`: flags and text of what
// node/rules and node/instance do.
package rules

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/node/rules"
)

const help = `Show, explain and take away what keeps DNS out of the connection tracking table
of this node: the NOTRACK rules of every instance, the failover table, the link
and its addresses.

The rules of a running instance belong to its process: the kernel lets nobody
else change them. So attach and detach ask the instance over its control socket
(-control of "trackless serve"), and remove leaves them alone.`

// Plan is what a Corefile would install, and with which backend.
type Plan struct {
	iptables.Plan
	Backend string
}

// Command makes the verb. readPlan reads a Corefile for `rules plan` as `trackless
// serve` does, with that default port.
func Command(readPlan func(conf, port string) (Plan, error)) *cobra.Command {
	return commandOn(func() rules.Node { return rules.Kernel{} }, readPlan)
}

// commandOn makes the verb for a node, which tests replace.
func commandOn(node func() rules.Node, readPlan func(conf, port string) (Plan, error)) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rules",
		Short: "Show, plan, remove, attach and detach the NOTRACK rules",
		Long:  help,
		Args:  cli.UnknownVerb,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		showCommand(node),
		planCommand(readPlan),
		removeCommand(node),
		attachCommand(node),
		detachCommand(node),
	)
	return cmd
}

// failure gives a failure of the node its exit status, and the verb whose
// failure it is.
func failure(verb string, err error) error {
	if errors.Is(err, iptables.ErrPermission) {
		err = fmt.Errorf("%w: run it as root, or in the container of trackless", err)
	}
	return cli.Exit(cli.ExitFailure, fmt.Errorf("rules %s: %w", verb, err))
}
