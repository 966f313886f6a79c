// Command trackless is a node-local DNS cache that keeps DNS out of the
// kernel's connection tracking table, and the tool that shows it.
//
// Each verb has a file of its own; directives.go is the plugin list of
// `trackless serve`.
package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
)

// Exit statuses shared by the verbs. A verb with more of them documents them
// in its help text.
const (
	exitFailure = 1 // what was asked for did not work, or a promise did not hold
	exitUsage   = 2 // the command line is wrong, or this machine cannot run it
)

// exitError carries an exit status through cobra.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

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
	return exitStatus(err)
}

// exitStatus is that of an error. What carries none is a wrong command line,
// unless the output could not be written, as on a full disk.
func exitStatus(err error) int {
	var exit *exitError
	var file *fs.PathError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.code
	case errors.As(err, &file) && file.Op == "write":
		return exitFailure
	}
	return exitUsage
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
		Args:          unknownVerb,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.AddCommand(serveCommand(), nodeCacheCommand(), rulesCommand(), cacheCommand(), probeCommand(), labCommand(), conntrackCommand(), doctorCommand(), tuneCommand(),
		snapshotCommand(), compareCommand(), supportCommand(), versionCommand())
	root.SetVersionTemplate("{{.Version}}\n")
	root.SetFlagErrorFunc(flagError)
	root.SetHelpCommand(helpCommand())
	strictCompletion(root)
	return root
}
