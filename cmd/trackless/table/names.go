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

// podFlags select entries by pod.
type podFlags struct {
	node who.Node
	pods []string
}

func (p *podFlags) register(cmd *cobra.Command) {
	cli.NameFlags(cmd, &p.node)
	cmd.Flags().StringSliceVar(&p.pods, "pod", nil, "`pods` of this node at either end: NAMESPACE/NAME or NAME, with * for any text")
}

// find puts the addresses of the pods into the filter. The calling thread is in the network
// namespace of the node.
func (p *podFlags) find(ctx context.Context, f *conntrack.Filter, errs io.Writer) error {
	if len(p.pods) == 0 {
		return nil
	}
	if err := cli.CheckRoot(p.node.Root); err != nil {
		return err
	}
	found := p.node.Find(ctx)
	if !found.Book.HasPods() {
		cli.WriteNotes(errs, found.Notes)
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
