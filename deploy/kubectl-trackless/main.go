// Command kubectl-trackless asks the nodes of a cluster what `trackless` says of
// them: through exec into the pods of Trackless, or, on nodes without one, through
// a pod that is made for the question and removed afterwards.
//
// It is a module of its own, so that the libraries of Kubernetes stay out of the
// product's dependencies.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"k8s.io/klog/v2"
)

// version is that of the release, and of the image that debug pods run.
var version = "0.1.0"

// imageName is that of the image without its tag.
const imageName = "ghcr.io/trackless-dns/trackless"

// Exit statuses, which are those of `trackless doctor`.
const (
	exitWarnings      = 1
	exitCritical      = 2
	exitCannotMeasure = 3
)

// A statusError ends the program with a status.
type statusError struct {
	status int
	err    error
}

func (e *statusError) Error() string { return e.err.Error() }

func (e *statusError) Unwrap() error { return e.err }

func main() {
	// The libraries of Kubernetes log what they also return, amid our text.
	klog.LogToStderr(false)
	klog.SetOutput(io.Discard)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	status := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(status)
}

// run returns the exit status. Debug pods are gone when it returns, also where ctx
// ended before.
func run(ctx context.Context, args []string, out, errs io.Writer) int {
	root := rootCommand()
	root.SetArgs(args)
	root.SetOut(out)
	root.SetErr(errs)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	fmt.Fprintf(errs, "kubectl trackless: %v\n", err)
	var has *statusError
	if errors.As(err, &has) {
		return has.status
	}
	return exitCannotMeasure
}

const rootHelp = `Ask the nodes of a cluster what is wrong with DNS and connection tracking.

Nodes are named by --node, by -l, or are all of them with --all-nodes. On each, the
command runs in the pod of Trackless. On nodes without one it runs in a debug pod,
which is removed afterwards, also after Ctrl-C, a timeout or an error. A debug pod has
the network of the node, and the capabilities that the command needs.

A summary of the nodes comes first, the details of each follow.

Exit status: 0 nothing is wrong, 1 warnings, 2 critical findings, 3 a node could not be
measured and nothing was found elsewhere; also for a wrong command line.`

func rootCommand() *cobra.Command {
	o := newOptions()
	root := &cobra.Command{
		Use:           "kubectl-trackless",
		Annotations:   map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl trackless"},
		Short:         "Ask nodes what is wrong with DNS and connection tracking",
		Long:          rootHelp,
		Version:       version,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	o.register(root.PersistentFlags())
	root.AddCommand(doctorCommand(o), statsCommand(o), topCommand(o), dnsCommand(o), snapshotCommand(o), compareCommand(o), rulesCommand(o))
	return root
}
