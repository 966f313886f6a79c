package rules

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
	"github.com/trackless-dns/trackless/iptables/hostaddr"
	"github.com/trackless-dns/trackless/node/advice"
	"github.com/trackless-dns/trackless/node/rules"
)

const showHelp = `Show what is in place on this node: the table of every instance with its owner,
age and packet counts, the failover table, our accept rules in filter chains
that would drop untracked DNS, the link and its addresses (as "left over" those
that "rules remove" would take away), and the rules of others that meet DNS to the listen addresses, or to other DNS servers of this
node, before conntrack sees it, with what they do to it.

Rules of others are found in nf_tables, which holds those of nft and of
iptables-nft, and in the tables of iptables-legacy; a rule is "possible" where
it depends on the client or on the interface. BPF programs cannot be seen.

The table of a running instance belongs to its process. A file that "nft list
ruleset" wrote holds it, too, and cannot be loaded then: nft -f says "Operation not
permitted" and loads nothing of it. Save the rules of others alone:

  ` + advice.SaveOthers + `

Reading nf_tables needs CAP_NET_ADMIN. Nothing is changed.

Exit status: 0 shown, 1 it could not be read, or no instance answers on the socket
that was named, 2 wrong command line.`

const showExample = `  trackless rules show
  trackless rules show --output json | jq '.instances[].state'
  kubectl -n kube-system exec ds/trackless -- trackless rules show`

type showOptions struct {
	output string
	link   string
	socket string
}

func showCommand(node func() rules.Node) *cobra.Command {
	var o showOptions
	cmd := &cobra.Command{
		Use:     "show",
		Short:   "Show the rules in place, ours and others'",
		Long:    showHelp,
		Example: showExample,
		Args:    cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cli.CheckOutput("rules show", o.output); err != nil {
				return err
			}
			if err := checkInterface("show", o.link); err != nil {
				return err
			}
			report, err := rules.Read(cmd.Context(), node(), rules.Options{Link: o.link, Socket: o.socket})
			if err != nil {
				return failure("show", err)
			}
			out := cmd.OutOrStdout()
			if o.output == "json" {
				err = cli.WriteJSON(out, report)
			} else {
				err = Text(out, report, cli.Coloured(out))
			}
			if err == nil && report.Unreached() != nil {
				return failure("show", report.Unreached())
			}
			return err
		},
	}
	cli.OutputFlag(cmd, &o.output)
	interfaceFlag(cmd, &o.link)
	cli.SocketFlag(cmd, &o.socket)
	return cmd
}

// interfaceFlag adds --interface, as `interface` of the notrack directive.
func interfaceFlag(cmd *cobra.Command, link *string) {
	cmd.Flags().StringVar(link, "interface", hostaddr.DefaultLink, "the link that was made for the listen addresses")
}

// checkInterface refuses a name that no link can have (dev_valid_name in
// net/core/dev.c).
func checkInterface(verb, name string) error {
	const longest = 15 // IFNAMSIZ, less the terminating zero
	if name == "" || len(name) > longest || name == "." || name == ".." || strings.ContainsAny(name, "/: \t\n") {
		return cli.Exit(cli.ExitUsage, fmt.Errorf("rules %s: --interface %q: it takes the name of a link, of 1 to %d characters without / and :, such as %s", verb, name, longest, hostaddr.DefaultLink))
	}
	return nil
}
