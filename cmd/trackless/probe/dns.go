package probe

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
	"github.com/spf13/cobra"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
	"github.com/trackless-dns/trackless/node/probe"
)

const dnsHelp = `Ask a name as a pod does, and fail without an answer: each server over UDP and over
TCP. Without --server the servers are those of /etc/resolv.conf. It needs no
instance, no capability and no file to write; ` + "`helm test`" + ` runs it in a pod.

An answer is NOERROR with at least one record of the type. The name is taken as it
is: no search domain is added.

Exit status: 0 every server answered, 1 one did not, 2 wrong command line.`

const dnsExample = `  trackless probe dns kubernetes.default.svc.cluster.local
  trackless probe dns example.org --server 169.254.20.10 --type AAAA`

// resolvConf has the servers of a pod.
const resolvConf = "/etc/resolv.conf"

type dnsOptions struct {
	name    string
	servers []string
	qtype   string
	output  string
	timeout time.Duration
	resolv  string // the file with the servers, where none is named
}

func dnsCommand() *cobra.Command {
	o := dnsOptions{resolv: resolvConf}
	cmd := &cobra.Command{
		Use:     "dns NAME",
		Short:   "Whether a name is answered, over UDP and over TCP",
		Long:    dnsHelp,
		Example: dnsExample,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return fmt.Errorf("it takes one name, not %d; `%s --help` has examples", len(args), cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			o.name = args[0]
			return runDNS(cmd.Context(), o, cmd.OutOrStdout())
		},
	}
	cli.OutputFlag(cmd, &o.output)
	cmd.Flags().StringSliceVar(&o.servers, "server", nil, "address to ask, with a port if it is not 53; several times for several (default: those of "+resolvConf+")")
	cmd.Flags().StringVar(&o.qtype, "type", "A", "record type")
	cmd.Flags().DurationVar(&o.timeout, "timeout", 5*time.Second, "how long to wait for each answer")
	return cmd
}

func runDNS(ctx context.Context, o dnsOptions, out io.Writer) error {
	usage := func(format string, args ...any) error {
		return cli.Exit(cli.ExitUsage, fmt.Errorf("probe dns: "+format, args...))
	}
	if err := cli.CheckOutput("probe dns", o.output); err != nil {
		return err
	}
	if o.timeout <= 0 {
		return usage("--timeout is more than 0, not %s", o.timeout)
	}
	if _, ok := dns.IsDomainName(o.name); !ok {
		return usage("%q is no domain name", o.name)
	}
	qtype, ok := dns.StringToType[strings.ToUpper(o.qtype)]
	if !ok {
		return usage("--type %q: it takes a record type such as A or AAAA", o.qtype)
	}
	var servers []netip.AddrPort
	for _, s := range o.servers {
		server, err := probe.ServerAddress(s)
		if err != nil {
			return usage("--server %q: it takes an IP address, or one with a port such as 192.0.2.1:53 or [2001:db8::1]:53", s)
		}
		servers = append(servers, server)
	}
	if len(servers) == 0 {
		var err error
		if servers, err = probe.ServersOf(o.resolv); err != nil {
			return cli.Exit(cli.ExitFailure, fmt.Errorf("probe dns: %w; name a server with --server", err))
		}
	}

	report := probe.DNS(ctx, servers, o.name, qtype, o.timeout)
	var err error
	if o.output == "json" {
		err = cli.WriteJSON(out, report)
	} else {
		for _, e := range report.Answers {
			if e.OK && err == nil {
				_, err = fmt.Fprintf(out, "%s over %s: %s %s is %s (%s)\n", e.Server, e.Transport, report.Name, report.Type,
					strings.Join(e.Records, ", "), time.Duration(e.Micros)*time.Microsecond)
			}
		}
	}
	if err != nil {
		return cli.Exit(cli.ExitFailure, err)
	}
	if failed := report.Failures(); len(failed) > 0 {
		return cli.Exit(cli.ExitFailure, fmt.Errorf("%s %s is not answered: %s", report.Name, report.Type, strings.Join(failed, "; ")))
	}
	return nil
}
