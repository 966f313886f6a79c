package table

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/node/who"
)

// nameFlags say where names of pods come from.
type nameFlags struct{ root, node string }

func (n *nameFlags) register(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringVar(&n.root, "root", "/", "`directory` under which the host's proc, run and var are: names of pods where the Kubernetes API gives none")
	fs.StringVar(&n.node, "node", "", "`name` of this node in the Kubernetes API (default: the environment's NODE_NAME, else the host's name)")
}

func (n *nameFlags) of() who.Node { return who.Node{Root: n.root, Name: n.node} }

// podFlags select entries by pod.
type podFlags struct {
	nameFlags
	pods []string
}

func (p *podFlags) register(cmd *cobra.Command) {
	p.nameFlags.register(cmd)
	cmd.Flags().StringSliceVar(&p.pods, "pod", nil, "`pods` of this node at either end: NAMESPACE/NAME or NAME, with * for any text")
}

// find puts the addresses of the pods into the filter. The calling thread is in the network
// namespace of the node.
func (p *podFlags) find(ctx context.Context, f *conntrack.Filter, errs io.Writer) error {
	if len(p.pods) == 0 {
		return nil
	}
	if err := cli.CheckRoot(p.root); err != nil {
		return err
	}
	found := p.of().Find(ctx)
	if !found.Book.HasPods() {
		writeNotes(errs, found.Notes)
		return cli.Exit(cli.ExitCannotMeasure, fmt.Errorf("--pod: no names of pods are known here; select by address with --src, or see `trackless conntrack stats --help`, \"Names\""))
	}
	for _, pattern := range p.pods {
		matches, err := found.Book.Pods(pattern)
		if err != nil {
			return fmt.Errorf("--pod %q: %w", pattern, err)
		}
		if len(matches) == 0 {
			return fmt.Errorf("--pod %q: no pod of this node has that name; `trackless conntrack stats --by pod` lists those with entries", pattern)
		}
		for _, m := range matches {
			f.Ends = append(f.Ends, m.Addresses...)
		}
	}
	return nil
}

// writeNotes says why there are no better names.
func writeNotes(errs io.Writer, notes []string) {
	for _, note := range notes {
		_, _ = fmt.Fprintf(errs, "trackless: %s\n", note)
	}
}

const namesHelp = `Names: pods of this node and all Services are asked of the Kubernetes API where the
service account may list them (value "names.fromAPI" of the chart). Otherwise names of
pods come from the container runtime's socket where it is mounted, or from network
namespaces, control groups and /var/log/pods below --root, with CAP_SYS_ADMIN and the
host's PID namespace; those of Services from kube-proxy's rules. What has no name is
shown by its address. Pods in the host's network count as the node.`

// namesFrom says where names are from.
func namesFrom(pods, services string) string {
	switch {
	case pods == "" && services == "":
		return "no names are known"
	case pods == services:
		return "names from the " + pods
	case services == "":
		return "names of pods from the " + pods
	case pods == "":
		return "names of Services from the " + services + ", none of pods"
	}
	return "names of pods from the " + pods + ", of Services from the " + services
}
