package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
	"github.com/trackless-dns/trackless/iptables"
)

const rulesHelp = `Show, explain and take away what keeps DNS out of the connection tracking table
of this node: the NOTRACK rules of every instance, the failover table, the link
and its addresses.

The rules of a running instance belong to its process: the kernel lets nobody
else change them. So attach and detach ask the instance over its control socket
(-control of "trackless serve"), and remove leaves them alone.`

func rulesCommand() *cobra.Command {
	return rulesCommandOn(func() rulesNode { return kernelNode{} })
}

// rulesCommandOn makes the verb for a node, which tests replace.
func rulesCommandOn(node func() rulesNode) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rules",
		Short: "Show, plan, remove, attach and detach the NOTRACK rules",
		Long:  rulesHelp,
		Args:  cli.UnknownVerb,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		rulesShowCommand(node),
		rulesPlanCommand(),
		rulesRemoveCommand(node),
		rulesAttachCommand(node),
		rulesDetachCommand(node),
	)
	return cmd
}

// rulesError gives a failure of the node its exit status, and the verb whose
// failure it is.
func rulesError(verb string, err error) error {
	if errors.Is(err, iptables.ErrPermission) {
		err = fmt.Errorf("%w: run it as root, or in the container of trackless", err)
	}
	return cli.Exit(cli.ExitFailure, fmt.Errorf("rules %s: %w", verb, err))
}
