// Command trackless is a node-local DNS cache that keeps DNS out of the
// kernel's connection tracking table, and the tool that shows it.
//
// Each verb has a file or a package of its own; directives.go is the plugin list of
// `trackless serve`.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
	"github.com/trackless-dns/trackless/cmd/trackless/node"
	"github.com/trackless-dns/trackless/cmd/trackless/probe"
	"github.com/trackless-dns/trackless/cmd/trackless/queries"
	"github.com/trackless-dns/trackless/cmd/trackless/rules"
	"github.com/trackless-dns/trackless/cmd/trackless/table"
)

func main() {
	args := os.Args[1:]
	if filepath.Base(os.Args[0]) == nodeCacheName {
		args = append([]string{nodeCacheName}, args...)
	}
	os.Exit(run(args))
}

func run(args []string) int {
	root := rootCommand()
	root.SetArgs(args)
	err := root.Execute()
	if err == nil {
		return 0
	}
	fmt.Fprintf(os.Stderr, "trackless: %v\n", err)
	return cli.ExitStatus(err)
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "trackless",
		Short: "A node-local DNS cache that leaves no conntrack entry",
		Long: `Trackless is a DNS cache for every node, built on CoreDNS. It keeps the DNS of
pods and of the node itself out of the kernel's connection tracking table and
shows with numbers what that saves.`,
		Version:       versionString(),
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cli.UnknownVerb,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.AddCommand(serveCommand(), nodeCacheCommand(), rules.Command(readPlan), cacheCommand(), queries.Command(), probe.Command(), labCommand(), table.Command(), node.Doctor(nodeRules), node.Tune(nodeRules),
		node.Snapshot(newSnapshotSource()), node.Compare(), supportCommand(), versionCommand())
	root.SetVersionTemplate("{{.Version}}\n")
	root.SetFlagErrorFunc(cli.FlagError)
	root.SetHelpCommand(cli.HelpCommand())
	cli.StrictCompletion(root)
	return root
}
