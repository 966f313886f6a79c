package rules

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/binaries"
	"github.com/trackless-dns/trackless/iptables/nftables"
	"github.com/trackless-dns/trackless/iptables/owner"
	"github.com/trackless-dns/trackless/node/rules"
)

const planHelp = `Print what "trackless serve" would put on this node for a Corefile, while it is
attached: the link, its addresses, and the rules. Nothing is started and nothing
changed, and no privilege is needed. A wrong Corefile gives the error that
"trackless serve" would give.

With --format nft the output is what "nft list table" shows of an
attached instance, whose table is called after a random id, and "nft -f" can
read it. With --format iptables-save it is what backend iptables would install,
as iptables-save and ip6tables-save show the raw tables; the sets that the rules
name are in comments. The backend of the Corefile decides if no format is given.

Exit status: 0 printed, 1 the Corefile is wrong or cannot be read, 2 wrong
command line.`

const planExample = `  trackless rules plan -conf /etc/coredns/Corefile
  trackless rules plan -conf Corefile | nft --check --file -
  trackless rules plan -conf Corefile --output json | jq -r '.listen[].address'`

// planTable stands for the name of an instance's table.
const planTable = owner.TablePrefix + "plan"

// dnsPort is the default of -dns.port.
const dnsPort = "53"

type planOptions struct {
	conf   string
	port   string
	format string
	output string
}

func planCommand(readPlan func(conf, port string) (Plan, error)) *cobra.Command {
	var o planOptions
	cmd := &cobra.Command{
		Use:     "plan [-conf Corefile]",
		Short:   "Print what a Corefile would install",
		Long:    planHelp,
		Example: planExample,
		// -conf and -dns.port are written as those of serve; pflag would read
		// -conf as -c with the value onf.
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := cmd.Flags().Parse(doubleDashes(cmd.Flags(), args)); err != nil {
				if errors.Is(err, pflag.ErrHelp) {
					return cmd.Help()
				}
				return cli.Exit(cli.ExitUsage, fmt.Errorf("rules plan: %w; see `trackless rules plan --help`", err))
			}
			if help, err := cmd.Flags().GetBool("help"); err == nil && help {
				return cmd.Help()
			}
			if rest := cmd.Flags().Args(); len(rest) > 0 {
				return cli.Exit(cli.ExitUsage, fmt.Errorf("rules plan: unexpected argument %q; the Corefile is named with -conf", rest[0]))
			}
			return printPlan(o, readPlan, cmd.OutOrStdout())
		},
		ValidArgsFunction: completePlan,
	}
	flags := cmd.Flags()
	flags.StringVar(&o.conf, "conf", "", "Corefile to read, a file or \"stdin\" (default \"Corefile\" in the working directory)")
	flags.StringVar(&o.port, "dns.port", dnsPort, "default port of server blocks that name none")
	flags.StringVar(&o.format, "format", "", "nft or iptables-save (default: that of the backend in the Corefile)")
	cli.OutputFlag(cmd, &o.output)
	return cmd
}

// doubleDashes turns -name and -name=value into --name where a flag has that
// name, as package flag reads them.
func doubleDashes(flags *pflag.FlagSet, args []string) []string {
	out := make([]string, 0, len(args))
	for i, arg := range args {
		if arg == "--" {
			return append(out, args[i:]...)
		}
		name, _, _ := strings.Cut(strings.TrimPrefix(arg, "-"), "=")
		if strings.HasPrefix(arg, "-") && len(name) > 1 && flags.Lookup(name) != nil {
			arg = "-" + arg
		}
		out = append(out, arg)
	}
	return out
}

// completePlan completes flags and their values; cobra does not where it does
// not parse them.
func completePlan(cmd *cobra.Command, args []string, toComplete string) ([]string, cobra.ShellCompDirective) {
	last := ""
	if len(args) > 0 {
		last = strings.TrimLeft(args[len(args)-1], "-")
	}
	switch {
	case strings.HasPrefix(toComplete, "-"):
		var names []string
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			name := "--" + f.Name
			if !strings.HasPrefix(toComplete, "--") && (f.Name == "conf" || f.Name == "dns.port") {
				name = "-" + f.Name
			}
			if strings.HasPrefix(name, toComplete) {
				names = append(names, name+"\t"+f.Usage)
			}
		})
		return names, cobra.ShellCompDirectiveNoFileComp
	case last == "conf":
		return nil, cobra.ShellCompDirectiveDefault
	case last == "format":
		return []string{"nft", "iptables-save"}, cobra.ShellCompDirectiveNoFileComp
	case last == "output", last == "o":
		return []string{"table", "json"}, cobra.ShellCompDirectiveNoFileComp
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}

func printPlan(o planOptions, readPlan func(conf, port string) (Plan, error), out io.Writer) error {
	if o.format != "" {
		if err := cli.OneOf("rules plan", "--format", o.format, "nft", "iptables-save"); err != nil {
			return err
		}
	}
	if err := cli.CheckOutput("rules plan", o.output); err != nil {
		return err
	}
	plan, err := readPlan(o.conf, o.port)
	if err != nil {
		return cli.Exit(cli.ExitFailure, err)
	}
	if o.format == "" {
		o.format = "nft"
		if plan.Backend == "iptables" {
			o.format = "iptables-save"
		}
	}
	if o.output == "json" {
		return cli.WriteJSON(out, reportPlan(plan.Plan, o.format))
	}
	_, err = io.WriteString(out, planText(plan.Plan, o.format))
	return err
}

// planReport is the JSON of `rules plan`.
type planReport struct {
	// Link is the interface for the addresses, empty for none.
	Link      string           `json:"link"`
	Addresses []netip.Addr     `json:"addresses"`
	Listen    []rules.Endpoint `json:"listen"`
	Untrack   []rules.Endpoint `json:"untrack"`
	Format    string           `json:"format"`
	Rules     string           `json:"rules"`
}

func reportPlan(p iptables.Plan, format string) planReport {
	return planReport{
		Link: p.Link, Addresses: p.Addresses(),
		Listen: rules.Endpoints(p.Listen, p.Listen), Untrack: rules.Endpoints(p.Untrack, p.Untrack),
		Format: format, Rules: planRulesText(p, format),
	}
}

// planText has all that is no rule in comments, which both formats take.
func planText(p iptables.Plan, format string) string {
	if len(p.Listen) == 0 {
		return "# The Corefile has no notrack directive: no rule, no link and no address.\n"
	}
	var b strings.Builder
	switch p.Link {
	case "":
		b.WriteString("# The addresses are somebody else's business (interface none); they must be there:\n")
		for _, a := range p.Addresses() {
			fmt.Fprintf(&b, "#   %s\n", a)
		}
	default:
		fmt.Fprintf(&b, "# The link; where the kernel has no dummy, the addresses go on lo:\n#   ip link add %s type dummy\n", p.Link)
		for _, a := range p.Addresses() {
			if a.IsLoopback() {
				continue
			}
			how := "scope host"
			if a.Is6() {
				how = "nodad preferred_lft 0"
			}
			fmt.Fprintf(&b, "#   ip address add %s dev %s %s\n", netip.PrefixFrom(a, a.BitLen()), p.Link, how)
		}
	}
	if format == "nft" {
		fmt.Fprintf(&b, "# The table; an address joins the live set while it answers. Instead of %q the name has a random id of the instance:\n", strings.TrimPrefix(planTable, owner.TablePrefix))
	} else {
		fmt.Fprintf(&b, "# The raw tables; queries are untracked while an address has answered within a second. Instead of %q the names have a random id of the instance:\n", binaries.PlanID)
	}
	return b.String() + planRulesText(p, format)
}

func planRulesText(p iptables.Plan, format string) string {
	switch {
	case len(p.Listen) == 0:
		return ""
	case format == "nft":
		return nftables.Print(planTable, iptables.Rules{Plan: p})
	}
	return binaries.Print(iptables.Rules{Plan: p})
}
