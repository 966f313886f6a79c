package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

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
		Args:  unknownVerb,
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

// outputFlag adds --output table|json.
func outputFlag(cmd *cobra.Command, output *string) {
	cmd.Flags().StringVarP(output, "output", "o", "table", "table or json")
	// It fails only if the flag is not there.
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json"}, cobra.ShellCompDirectiveNoFileComp))
}

// checkOutput refuses what outputFlag does not offer.
func checkOutput(command, output string) error {
	return oneOf(command, "--output", output, "table", "json")
}

func oneOf(command, flag, value string, allowed ...string) error {
	if slices.Contains(allowed, value) {
		return nil
	}
	return &exitError{exitUsage, fmt.Errorf("%s: %s is %s, not %q", command, flag, strings.Join(allowed, " or "), value)}
}

// rulesError gives a failure of the node its exit status, and the verb whose
// failure it is.
func rulesError(verb string, err error) error {
	if errors.Is(err, iptables.ErrPermission) {
		err = fmt.Errorf("%w: run it as root, or in the container of trackless", err)
	}
	return &exitError{exitFailure, fmt.Errorf("rules %s: %w", verb, err)}
}

func writeJSON(out io.Writer, value any) error {
	encoder := json.NewEncoder(out)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(value)
}

// Colours of ANSI X3.64.
const (
	green  = "32"
	yellow = "33"
	red    = "31"
	bold   = "1"
)

func painted(text, code string, colour bool) string {
	if !colour || code == "" {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}
