package cli

import (
	"strconv"

	"github.com/spf13/cobra"

	"github.com/trackless-dns/trackless/node/instance"
)

// PIDFlag adds --pid, which completes to the instances of the node.
func PIDFlag(cmd *cobra.Command, pid *int, node func() instance.Node) {
	cmd.Flags().IntVar(pid, "pid", 0, "process id of the one instance to ask")
	// It fails only if the flag is not there.
	_ = cmd.RegisterFlagCompletionFunc("pid", func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		var pids []string
		found, _ := instance.Reach(cmd.Context(), node(), "", nil)
		for _, f := range found {
			pids = append(pids, strconv.Itoa(f.PID()))
		}
		return pids, cobra.ShellCompDirectiveNoFileComp
	})
}
