package cli

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/trackless-dns/trackless/node/netns"
)

// A NetNS is the network namespace that a verb reads; "" is our own.
type NetNS string

// Register adds --netns. More is added to its help.
func (n *NetNS) Register(cmd *cobra.Command, more string) {
	cmd.Flags().StringVar((*string)(n), "netns", "", "network `namespace`: a name of ip-netns(8), a process id or a path (default: this one)"+more)
}

// Do runs fn on a thread inside the namespace and returns its error.
func (n NetNS) Do(fn func() error) error {
	if n == "" {
		return fn()
	}
	ns, err := netns.Open(string(n))
	if err != nil {
		return Exit(ExitCannotMeasure, err)
	}
	defer ns.Close()
	return Inside(ns, fn)
}

// Inside runs fn on a thread inside an open namespace and returns its error.
func Inside(ns netns.Handle, fn func() error) error {
	err := ns.Do(fn)
	var enter *netns.EnterError
	if errors.As(err, &enter) {
		return Exit(ExitCannotMeasure, err)
	}
	return err
}
