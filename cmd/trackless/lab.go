package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
	"github.com/trackless-dns/trackless/cmd/trackless/node"
	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/lab/experiment"
	"github.com/trackless-dns/trackless/lab/load"
)

const labHelp = `Measure on this machine what Trackless saves: a Kubernetes node is built in
throw-away network namespaces, with pods, a kube-dns and kube-proxy's DNAT, and
the same DNS load is sent through it twice: through kube-proxy to kube-dns, then
with "trackless serve" on the node. The connection tracking table of the node is
watched all the while.

Scenarios:
  steady      an empty table fills with DNS, or does not (the default)
  exhaustion  the node's table is filled to its limit first, with assured flows:
              who still gets answers?
  search      pods look up new external names along their search path: with one
              denial for each question, with NXDOMAIN cuts, and with one pass
              (searchpath). --queries is the number of names; there is no --html

--html writes the two phases as one page with charts as well, that of "trackless
compare": the table over time, what was in it, and what was lost.

Needs root. Touches nothing of this machine: no sysctl, no rule, no link outside
its own namespaces, and those are gone when it ends, however it ends.

Exit status: 0 if every promise held, 1 if one did not or the run failed, 2 for
a wrong command line or a machine that cannot run it, 130 after an interrupt.`

// labOptions are the flags of `trackless lab`.
type labOptions struct {
	scenario string
	queries  int
	rate     int
	pods     int
	seed     uint64
	output   string
	html     string
}

func labCommand() *cobra.Command {
	var o labOptions
	cmd := &cobra.Command{
		Use:   "lab",
		Short: "Show before and after, measured on this machine",
		Long:  labHelp,
		Args:  cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runLab(cmd.Context(), o, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.scenario, "scenario", string(experiment.Steady), "what to measure: steady, exhaustion or search")
	flags.IntVar(&o.queries, "queries", 0, "number of queries in each phase (default 20000; 5000 for exhaustion; 1000 names for search)")
	flags.IntVar(&o.rate, "rate", 2000, "queries sent in a second")
	flags.IntVar(&o.pods, "pods", 2, "number of client pods")
	flags.Uint64Var(&o.seed, "seed", 1, "seed of the load: the same seed sends the same queries")
	cli.OutputFlag(cmd, &o.output)
	cli.HTMLFlag(cmd, &o.html)
	return cmd
}

func (o labOptions) check() error {
	if !slices.Contains(experiment.Scenarios(), experiment.Scenario(o.scenario)) {
		return fmt.Errorf("lab: no scenario is called %q; there are %v", o.scenario, experiment.Scenarios())
	}
	if err := cli.CheckOutput("lab", o.output); err != nil {
		return err
	}
	if o.queries < 0 || o.queries > load.MaxQueries {
		return fmt.Errorf("lab: --queries is from 1 to %d, not %d", load.MaxQueries, o.queries)
	}
	if o.pods < 1 || o.pods > lab.MaxPods {
		return fmt.Errorf("lab: --pods is from 1 to %d, not %d", lab.MaxPods, o.pods)
	}
	if o.rate < 1 {
		return fmt.Errorf("lab: --rate is at least 1, not %d", o.rate)
	}
	if experiment.Scenario(o.scenario) == experiment.SearchPath && o.queries > 0 && o.queries < experiment.MinSearchNames {
		return fmt.Errorf("lab: --queries is at least %d names for the scenario %s, not %d: fewer show only what it costs to learn a cut",
			experiment.MinSearchNames, o.scenario, o.queries)
	}
	if o.html != "" && experiment.Scenario(o.scenario) == experiment.SearchPath {
		return fmt.Errorf("lab: --html shows the conntrack table, which the scenario %s does not measure; leave it out", o.scenario)
	}
	return nil
}

func runLab(ctx context.Context, o labOptions, out, progress io.Writer) error {
	if err := o.check(); err != nil {
		return cli.Exit(cli.ExitUsage, err)
	}
	if o.html != "" {
		if err := cli.CanWrite(o.html); err != nil {
			return cli.Exit(cli.ExitFailure, fmt.Errorf("lab: --html: %w", err))
		}
	}
	ctx, stop := cli.UntilInterrupted(ctx, syscall.SIGHUP)
	defer stop()

	options := lab.Options{Pods: o.pods, WithoutIPv6: !lab.HasIPv6()}
	if err := lab.Missing(options); err != nil {
		return cli.Exit(cli.ExitUsage, fmt.Errorf("this machine cannot run the lab: %w", err))
	}
	var show func(experiment.Progress)
	if cli.IsTerminal(progress) && !cli.DumbTerminal() {
		line := &progressLine{out: progress}
		show = line.show
		defer line.clear()
	}
	if experiment.Scenario(o.scenario) == experiment.SearchPath {
		report, err := experiment.Search{Names: o.queries, Node: options, Progress: show}.Run(ctx)
		if err != nil {
			return labError(ctx, err)
		}
		if err := o.write(report, out); err != nil {
			return err
		}
		return kept(report.Promises)
	}
	report, err := experiment.Experiment{
		Scenario: experiment.Scenario(o.scenario), Node: options, Progress: show,
		Load: load.Load{Queries: o.queries, Seed: o.seed, Rate: o.rate},
	}.Run(ctx)
	switch {
	case errors.Is(err, lab.ErrTableTooLarge):
		return cli.Exit(cli.ExitUsage, err)
	case err != nil:
		return labError(ctx, err)
	}
	if err := o.write(report, out); err != nil {
		return err
	}
	if o.html != "" {
		if err := node.WritePage(o.html, compareLab(report)); err != nil {
			return cli.Exit(cli.ExitFailure, err)
		}
	}
	return kept(report.Promises)
}

// labError gives a failed run its exit status: another one if it failed because
// of an interrupt.
func labError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return cli.Exit(cli.ExitInterrupted, errors.New("interrupted; everything the lab made is removed"))
	}
	return cli.Exit(cli.ExitFailure, err)
}

// tabled is a report for people, and in JSON.
type tabled interface {
	WriteTable(out io.Writer, colour bool) error
}

func (o labOptions) write(report tabled, out io.Writer) error {
	write := func() error { return report.WriteTable(out, cli.Coloured(out)) }
	if o.output == "json" {
		encoder := json.NewEncoder(out)
		encoder.SetIndent("", "  ")
		write = func() error { return encoder.Encode(report) }
	}
	if err := write(); err != nil {
		return cli.Exit(cli.ExitFailure, fmt.Errorf("write the report: %w", err))
	}
	return nil
}

// kept returns an error unless all promises were kept.
func kept(promises []experiment.Promise) error {
	var lines []string
	for _, promise := range promises {
		if !promise.Kept {
			lines = append(lines, fmt.Sprintf("%s (%s: %s)", promise.Name, promise.Text, promise.Found))
		}
	}
	if lines == nil {
		return nil
	}
	return cli.Exit(cli.ExitFailure, fmt.Errorf("lab: Trackless did not do what it must: %s", strings.Join(lines, "; ")))
}

// progressLine keeps one line on a terminal up to date.
type progressLine struct{ out io.Writer }

func (l *progressLine) show(p experiment.Progress) {
	text := p.Phase + ": " + p.Step
	if p.Of > 0 {
		text += fmt.Sprintf(" %d of %d", p.Done, p.Of)
	}
	_, _ = io.WriteString(l.out, cli.ClearLine+text)
}

func (l *progressLine) clear() { _, _ = io.WriteString(l.out, cli.ClearLine) }
