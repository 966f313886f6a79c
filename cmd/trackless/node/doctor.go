package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
	"github.com/trackless-dns/trackless/internal/figure"
	"github.com/trackless-dns/trackless/node/advice"
	"github.com/trackless-dns/trackless/node/measure"
	"github.com/trackless-dns/trackless/node/probe"
)

const doctorHelp = `Look at the connection tracking table of this node, twice within --interval, and
at what bears on it: the kernel's counters and log, limits and timeouts, the DNS
cache of this node, kube-proxy and the datapath. Say what is wrong or soon will
be, on what evidence, what to do, and what that costs in memory and risk.

It sends one datagram from this program to itself over the loopback device, to see
whether packets are tracked at all. With CAP_SYS_ADMIN and the host's PID namespace it
also asks the DNS servers of a pod, from the pod's network namespace: a name of the
cluster, and the name of --ask. It then judges the answers: lost, slow, over TCP,
redirected past the cache.

What people report when the table is at fault, and the findings that explain it:
%s
Exit status: 0 nothing is wrong, 1 warnings, 2 critical findings, 3 it could not
measure, or could not read the entries and found nothing without them; also for a
wrong command line, and for findings that could not be written.`

type doctorOptions struct {
	measure.Options
	output string
	netns  cli.NetNS
}

// Doctor makes the verb doctor for a node with these rules.
func Doctor(rules measure.Rules) *cobra.Command {
	o := doctorOptions{Options: measure.Options{Rules: rules}}
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Find what is wrong with the connection tracking table",
		Long:  fmt.Sprintf(doctorHelp, symptomsHelp()),
		Args:  cli.JudgeNoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := cli.UntilInterrupted(cmd.Context())
			defer stop()
			return doctor(ctx, o, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	cmd.SetFlagErrorFunc(cli.JudgeFlagError)
	cli.OutputFlag(cmd, &o.output)
	fs := cmd.Flags()
	o.netns.Register(cmd, "")
	fs.DurationVar(&o.Interval, "interval", 2*time.Second, "`time` between the two readings; a longer one shows slower growth")
	fs.StringVar(&o.Metrics, "metrics", "auto", "`URL` of the metrics of this node's Trackless; auto: port 9253 where a DNS cache listens; off")
	fs.StringVar(&o.Ask, "ask", "example.org", "`name` outside of the cluster to ask a pod's DNS servers; off: ask no server anything")
	fs.StringVar(&o.Root, "root", "/", "`directory` under which the host's proc, sys, dev and etc are")
	return cmd
}

func symptomsHelp() string {
	var b bytes.Buffer
	for _, s := range advice.Symptoms {
		fmt.Fprintf(&b, "  %s: %s\n", s.Symptom, s.Description)
		cli.WriteWrapped(&b, cli.ReadableWidth, "    ", strings.Join(advice.Explaining(s.Symptom), " "))
	}
	return b.String()
}

func doctor(ctx context.Context, o doctorOptions, out, errs io.Writer) error {
	if err := cli.CheckOutput("doctor", o.output); err != nil {
		return cli.Exit(cli.ExitCannotMeasure, err)
	}
	if o.Interval <= 0 {
		return cli.Exit(cli.ExitCannotMeasure, fmt.Errorf("--interval %s: growth takes time to be seen; 1s or more is useful", o.Interval))
	}
	if err := cli.CheckRoot(o.Root); err != nil {
		return err
	}
	if err := measure.CheckMetrics(o.Metrics); err != nil {
		return cli.Exit(cli.ExitCannotMeasure, err)
	}
	if err := probe.CheckName(o.Ask); err != nil {
		return cli.Exit(cli.ExitCannotMeasure, fmt.Errorf("--ask: %w; it takes a name such as example.org, or off", err))
	}
	o.Progress = cli.Progress(errs)
	return o.netns.Do(func() error {
		r, blind, err := measure.Check(ctx, o.Options)
		if err != nil {
			return cli.CannotMeasure(err)
		}
		if o.output == "json" {
			err = cli.WriteJSON(out, r)
		} else {
			err = writeDoctorReport(out, r)
		}
		if err != nil {
			return cli.Exit(cli.ExitCannotMeasure, fmt.Errorf("write the findings: %w", err))
		}
		return verdict(r, blind)
	})
}

// verdict turns the findings into an exit status.
func verdict(r *measure.Report, blind bool) error {
	count := map[advice.Severity]int{}
	for _, f := range r.Findings {
		count[f.Severity]++
	}
	switch {
	case count[advice.Critical] > 0:
		return cli.Exit(ExitCritical, fmt.Errorf("doctor: %d critical, %d warnings", count[advice.Critical], count[advice.Warning]))
	case count[advice.Warning] > 0:
		return cli.Exit(ExitWarnings, fmt.Errorf("doctor: %d warnings", count[advice.Warning]))
	case blind:
		return cli.Exit(cli.ExitCannotMeasure, errors.New("doctor: the entries could not be read; the rest is healthy"))
	}
	return nil
}

// Exit statuses of verbs that judge.
const (
	ExitWarnings = 1
	ExitCritical = 2
)

func writeDoctorReport(out io.Writer, r *measure.Report) error {
	var b bytes.Buffer
	colour, width := cli.Coloured(out), cli.TextWidth(out)
	for _, f := range r.Findings {
		fmt.Fprintf(&b, "%s  %s: %s\n", cli.Painted(fmt.Sprintf("%-8s", strings.ToUpper(f.Severity.String())), severityColour(f.Severity), colour), f.ID, f.Title)
		section := func(title string, lines ...string) {
			for i, line := range lines {
				if line == "" {
					continue
				}
				if i > 0 {
					title = ""
				}
				cli.WriteWrapped(&b, width, fmt.Sprintf("%-10s%-6s", "", title), line)
			}
		}
		section("seen", f.Evidence...)
		section("do", f.Remedy...)
		section("cost", f.Memory)
		section("risk", f.Risk)
		if len(f.Symptoms) > 0 {
			names := make([]string, len(f.Symptoms))
			for i, s := range f.Symptoms {
				names[i] = string(s)
			}
			section("feels", strings.Join(names, ", "))
		}
		b.WriteByte('\n')
	}
	for _, m := range r.Missing {
		cli.WriteWrapped(&b, width, "not seen  ", m)
	}
	if len(r.Findings) == 0 {
		fmt.Fprintf(&b, "Nothing found: %s.\n", figure.Entries(r.Entries, r.Limit))
	}
	_, err := out.Write(b.Bytes())
	return err
}

// severityColour is the colour in which a severity is written.
func severityColour(s advice.Severity) string {
	return map[advice.Severity]string{advice.Info: cli.Green, advice.Warning: cli.Yellow, advice.Critical: cli.Red}[s]
}
