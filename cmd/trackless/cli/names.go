package cli

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/trackless-dns/trackless/node/who"
)

// NameFlags adds --root and --node, which say where names of pods come from.
func NameFlags(cmd *cobra.Command, n *who.Node) {
	fs := cmd.Flags()
	fs.StringVar(&n.Root, "root", "/", "`directory` under which the host's proc, run and var are: names of pods where the Kubernetes API gives none")
	fs.StringVar(&n.Name, "node", "", "`name` of this node in the Kubernetes API (default: the environment's NODE_NAME, else the host's name)")
}

// WriteNotes says why there are no better names.
func WriteNotes(errs io.Writer, notes []string) {
	for _, note := range notes {
		_, _ = fmt.Fprintf(errs, "trackless: %s\n", note)
	}
}
