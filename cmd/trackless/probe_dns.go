package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
	"github.com/spf13/cobra"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
)

const probeDNSHelp = `Ask a name as a pod does, and fail without an answer: each server over UDP and over
TCP. Without --server the servers are those of /etc/resolv.conf. It needs no
instance, no capability and no file to write; ` + "`helm test`" + ` runs it in a pod.

An answer is NOERROR with at least one record of the type. The name is taken as it
is: no search domain is added.

Exit status: 0 every server answered, 1 one did not, 2 wrong command line.`

const probeDNSExample = `  trackless probe dns kubernetes.default.svc.cluster.local
  trackless probe dns example.org --server 169.254.20.10 --type AAAA`

// resolvConf has the servers of a pod.
const resolvConf = "/etc/resolv.conf"

type probeDNSOptions struct {
	name    string
	servers []string
	qtype   string
	output  string
	timeout time.Duration
	resolv  string // the file with the servers, where none is named
}

func probeDNSCommand() *cobra.Command {
	o := probeDNSOptions{resolv: resolvConf}
	cmd := &cobra.Command{
		Use:     "dns NAME",
		Short:   "Whether a name is answered, over UDP and over TCP",
		Long:    probeDNSHelp,
		Example: probeDNSExample,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return fmt.Errorf("it takes one name, not %d; `%s --help` has examples", len(args), cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			o.name = args[0]
			return runProbeDNS(cmd.Context(), o, cmd.OutOrStdout())
		},
	}
	cli.OutputFlag(cmd, &o.output)
	cmd.Flags().StringSliceVar(&o.servers, "server", nil, "address to ask, with a port if it is not 53; several times for several (default: those of "+resolvConf+")")
	cmd.Flags().StringVar(&o.qtype, "type", "A", "record type")
	cmd.Flags().DurationVar(&o.timeout, "timeout", 5*time.Second, "how long to wait for each answer")
	return cmd
}

// dnsReport is the JSON of `probe dns`.
type dnsReport struct {
	Name    string        `json:"name"`
	Type    string        `json:"type"`
	OK      bool          `json:"ok"`
	Answers []dnsExchange `json:"answers"`
}

// dnsExchange is one query and what became of it.
type dnsExchange struct {
	Server    string   `json:"server"`
	Transport string   `json:"transport"`
	OK        bool     `json:"ok"`
	Rcode     string   `json:"rcode,omitempty"`
	Records   []string `json:"records,omitempty"`
	Micros    int64    `json:"microseconds"`
	Error     string   `json:"error,omitempty"`
}

func runProbeDNS(ctx context.Context, o probeDNSOptions, out io.Writer) error {
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
		server, err := serverAddress(s)
		if err != nil {
			return usage("--server %q: it takes an IP address, or one with a port such as 192.0.2.1:53 or [2001:db8::1]:53", s)
		}
		servers = append(servers, server)
	}
	if len(servers) == 0 {
		var err error
		if servers, err = serversOf(o.resolv); err != nil {
			return cli.Exit(cli.ExitFailure, fmt.Errorf("probe dns: %w; name a server with --server", err))
		}
	}

	report := dnsReport{Name: dns.Fqdn(o.name), Type: dns.TypeToString[qtype], OK: true}
	var failed []string
	for _, server := range servers {
		for _, transport := range []string{"udp", "tcp"} {
			e := askServer(ctx, server, transport, report.Name, qtype, o.timeout)
			report.Answers = append(report.Answers, e)
			if !e.OK {
				report.OK = false
				failed = append(failed, fmt.Sprintf("%s over %s: %s", e.Server, e.Transport, e.Error))
			}
		}
	}
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
	if len(failed) > 0 {
		return cli.Exit(cli.ExitFailure, fmt.Errorf("%s %s is not answered: %s", report.Name, report.Type, strings.Join(failed, "; ")))
	}
	return nil
}

// askServer asks once; the error in the result says what was wrong.
func askServer(ctx context.Context, server netip.AddrPort, transport, name string, qtype uint16, timeout time.Duration) dnsExchange {
	e := dnsExchange{Server: server.String(), Transport: transport}
	query := new(dns.Msg).SetQuestion(name, qtype)
	query.SetEdns0(1232, false) // RFC 9715, section 3.1
	client := dns.Client{Net: transport, Timeout: timeout}
	response, took, err := client.ExchangeContext(ctx, query, e.Server)
	e.Micros = took.Microseconds()
	if err != nil {
		e.Error = err.Error()
		if netErr := net.Error(nil); errors.As(err, &netErr) && netErr.Timeout() {
			e.Error = fmt.Sprintf("no answer within %s", timeout)
		}
		return e
	}
	e.Rcode = dns.RcodeToString[response.Rcode]
	for _, rr := range response.Answer {
		if rr.Header().Rrtype == qtype {
			e.Records = append(e.Records, strings.TrimPrefix(rr.String(), rr.Header().String()))
		}
	}
	switch {
	case response.Rcode != dns.RcodeSuccess:
		e.Error = "the answer is " + e.Rcode
	case len(e.Records) == 0:
		e.Error = "the answer has no record of the type"
	default:
		e.OK = true
	}
	return e
}

// serverAddress reads an address, with port 53 if it names none.
func serverAddress(s string) (netip.AddrPort, error) {
	if addr, err := netip.ParseAddr(s); err == nil {
		return netip.AddrPortFrom(addr, 53), nil
	}
	return netip.ParseAddrPort(s)
}

// serversOf returns the name servers of a resolv.conf(5).
func serversOf(file string) ([]netip.AddrPort, error) {
	config, err := dns.ClientConfigFromFile(file)
	if err != nil {
		return nil, fmt.Errorf("read the name servers: %w", err)
	}
	var servers []netip.AddrPort
	for _, s := range config.Servers {
		server, err := serverAddress(s)
		if err != nil {
			return nil, fmt.Errorf("read the name servers: %s has %q, which is no address", file, s)
		}
		servers = append(servers, server)
	}
	if len(servers) == 0 {
		return nil, fmt.Errorf("%s names no server", file)
	}
	return servers, nil
}
