package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
	"github.com/trackless-dns/trackless/internal/figure"
	"github.com/trackless-dns/trackless/node/advice"
	"github.com/trackless-dns/trackless/node/measure"
	"github.com/trackless-dns/trackless/node/tune"
)

const tuneHelp = `Recommend settings that fit the load of this node, each with its reason, its cost
in memory and its risk, and print them as files: a drop-in for sysctl.d, one for
modules-load.d (settings of a module that is not loaded yet are lost at boot), one
for modprobe.d with the size of the hash, and a fragment for what kube-proxy would
override: of KubeProxyConfiguration, or of the file in which k3s, RKE2 or MicroK8s
give kube-proxy its flags.

The table is sized so that the entries seen now fill it to half; measure the busy
hour, or say with --entries what to plan for. It never gets smaller than it is,
and never takes more than a sixteenth of the memory.

--apply writes the files and sets the settings at once; what was before is kept
under /var/lib/trackless, and --revert restores it. In a container --apply refuses
and says what to do on the host.

--nodes says instead how many nodes would bring the entries of a cluster under
60 % of the limit, from the files that "trackless conntrack stats -o json" wrote on
each.

Exit status: 0 done, 1 not everything could be done and what was done is undone,
3 it could not measure, or refused; also for a wrong command line.`

type tuneOptions struct {
	measure.Options
	output  string
	forWhat string
	apply   bool
	revert  bool
	nodes   bool
	entries uint64
}

// Tune makes the verb tune for a node with these rules.
func Tune(rules measure.Rules) *cobra.Command {
	o := tuneOptions{Options: measure.Options{Rules: rules, Metrics: "off"}}
	cmd := &cobra.Command{
		Use:   "tune [--apply | --revert | --nodes SNAPSHOT...]",
		Short: "Recommend settings with their cost and risk, and set them",
		Long:  tuneHelp,
		Example: `  trackless tune
  trackless tune --for sysctl > 90-conntrack.conf
  trackless tune --for kube-proxy
  trackless tune --apply; trackless tune --revert
  trackless tune --nodes node-*.json`,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, stop := cli.UntilInterrupted(cmd.Context())
			defer stop()
			return runTune(ctx, o, args, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	cmd.SetFlagErrorFunc(cli.JudgeFlagError)
	cli.OutputFlag(cmd, &o.output)
	fs := cmd.Flags()
	fs.StringVar(&o.forWhat, "for", "", "print one `file` only: sysctl, modules-load, modprobe or kube-proxy")
	fs.BoolVar(&o.apply, "apply", false, "write the files and set the settings")
	fs.BoolVar(&o.revert, "revert", false, "restore what was before --apply")
	fs.BoolVar(&o.nodes, "nodes", false, "say how many nodes it takes, from the snapshots given")
	fs.Uint64Var(&o.entries, "entries", 0, "plan for so `many` entries instead of those seen now")
	fs.StringVar(&o.Root, "root", "/", "`directory` under which the host's proc, sys and etc are")
	return cmd
}

func runTune(ctx context.Context, o tuneOptions, args []string, out, errs io.Writer) error {
	if err := cli.CheckOutput("tune", o.output); err != nil {
		return cli.Exit(cli.ExitCannotMeasure, err)
	}
	if err := o.oneOf(); err != nil {
		return cli.Exit(cli.ExitCannotMeasure, err)
	}
	if err := cli.CheckRoot(o.Root); err != nil {
		return err
	}
	switch {
	case o.nodes:
		return tuneNodes(args, o.output, out)
	case len(args) > 0:
		return cli.Exit(cli.ExitCannotMeasure, fmt.Errorf("tune: unexpected argument %q; snapshots go with --nodes", args[0]))
	case o.revert:
		return tuned(tune.Revert(o.Root, os.Getenv, sayStep(out)))
	}
	o.Progress = cli.Progress(errs)
	m, err := measure.Take(ctx, o.Options)
	if err != nil {
		return cli.CannotMeasure(err)
	}
	if o.entries > 0 {
		m.Entries = o.entries
	}
	plan := tune.New(m)
	switch {
	case o.apply:
		return applyPlan(plan, o.Root, out)
	case o.forWhat != "":
		return writeOne(plan, o.forWhat, out)
	case o.output == "json":
		return cli.WriteJSON(out, plan)
	}
	return writePlan(plan, out)
}

// oneOf refuses flags that ask for different things.
func (o *tuneOptions) oneOf() error {
	var asked []string
	for flag, set := range map[string]bool{"--apply": o.apply, "--revert": o.revert, "--nodes": o.nodes, "--for": o.forWhat != ""} {
		if set {
			asked = append(asked, flag)
		}
	}
	if len(asked) > 1 {
		slices.Sort(asked)
		return fmt.Errorf("tune: %s do different things; give one of them", strings.Join(asked, " and "))
	}
	return nil
}

func writePlan(t *tune.Plan, out io.Writer) error {
	var b bytes.Buffer
	width := cli.TextWidth(out)
	if len(t.Settings) == 0 && t.Size.Buckets == t.Buckets {
		b.WriteString("Nothing to change: the settings fit the load seen now.\n")
	} else {
		tw := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
		_, _ = fmt.Fprintln(tw, "SETTING\tNOW\tRECOMMENDED")
		for _, s := range t.Settings {
			_, _ = fmt.Fprintf(tw, "%s\t%d\t%d\n", s.Name, s.Current, s.Value)
		}
		if t.Size.Buckets != t.Buckets {
			_, _ = fmt.Fprintf(tw, "hash buckets\t%d\t%d\n", t.Buckets, t.Size.Buckets)
		}
		_ = tw.Flush()
		for _, s := range t.Settings {
			fmt.Fprintf(&b, "\n%s\n", s.Name)
			cli.WriteWrapped(&b, width, "  why   ", s.Why)
			cli.WriteWrapped(&b, width, "  cost  ", s.Memory)
			cli.WriteWrapped(&b, width, "  risk  ", s.Risk)
		}
	}
	for _, note := range t.Notes {
		b.WriteByte('\n')
		cli.WriteWrapped(&b, width, "", note)
	}
	for _, f := range t.Files {
		fmt.Fprintf(&b, "\n--- %s\n%s", f.Path, f.Content)
	}
	fmt.Fprintf(&b, "\n--- %s\n%s", t.KubeProxyFile, t.KubeProxy)
	for _, name := range t.Overridden {
		fmt.Fprintf(&b, "\nkube-proxy runs on this node and sets %s by itself: without the fragment above the file is overridden when it starts.\n", name)
	}
	for _, m := range t.Missing {
		b.WriteByte('\n')
		cli.WriteWrapped(&b, width, "not seen  ", m)
	}
	_, err := out.Write(b.Bytes())
	return err
}

func writeOne(t *tune.Plan, name string, out io.Writer) error {
	content := ""
	if name == "kube-proxy" {
		content = t.KubeProxy
	}
	for _, f := range t.Files {
		if f.For == name {
			content = f.Content
		}
	}
	if content == "" {
		return cli.Exit(cli.ExitCannotMeasure, fmt.Errorf("--for %q: there are sysctl, modules-load, modprobe and kube-proxy", name))
	}
	_, err := io.WriteString(out, content)
	return err
}

// applyPlan writes the files and sets the settings.
func applyPlan(t *tune.Plan, root string, out io.Writer) error {
	if why := tune.Refusal(root, os.Getenv); why != "" {
		return refuseToTune(t, why, out)
	}
	if err := t.Apply(root, sayStep(out)); err != nil {
		return tuned(err)
	}
	_, err := fmt.Fprintf(out, "previous values are in %s; trackless tune --revert restores them\n", tune.StateFile)
	for _, name := range t.Overridden {
		_, _ = fmt.Fprintf(out, "kube-proxy sets %s again when it starts: give it the output of trackless tune --for kube-proxy\n", name)
	}
	return err
}

// tuned gives an error its exit status.
func tuned(err error) error {
	var unchanged *tune.UnchangedError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &unchanged):
		return cli.Exit(cli.ExitCannotMeasure, err)
	}
	return cli.Exit(cli.ExitFailure, err)
}

// sayStep writes what is done, a line for each step.
func sayStep(out io.Writer) func(tune.Step) {
	return func(s tune.Step) {
		var text string
		switch s.Kind {
		case tune.ValueSet:
			text = fmt.Sprintf("set %s to %s (was %s)", s.Name, s.Value, s.Other)
		case tune.FileWritten:
			text = "wrote " + s.Name
		case tune.ValueRestored:
			text = fmt.Sprintf("set %s back to %s", s.Name, s.Value)
		case tune.ValueLeftAlone:
			text = fmt.Sprintf("left %s at %s: it was set to %s, somebody changed it since", s.Name, s.Value, s.Other)
		case tune.FileRestored:
			text = "restored " + s.Name
		case tune.FileRemoved:
			text = "removed " + s.Name
		}
		_, _ = fmt.Fprintln(out, text)
	}
}

// refuseToTune prints what to do on the host instead.
func refuseToTune(t *tune.Plan, why string, out io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "# %s. As root on the host:\n", why)
	for _, f := range t.Files {
		fmt.Fprintf(&b, "cat > %s <<'EOF'\n%sEOF\n", f.Path, f.Content)
	}
	fmt.Fprintf(&b, "echo %d > %s\nsysctl -p %s\n", t.Size.Buckets, tune.HashsizeFile, tune.SysctlFile)
	if _, err := io.WriteString(out, b.String()); err != nil {
		return err
	}
	return cli.Exit(cli.ExitCannotMeasure, fmt.Errorf("tune --apply: %s; nothing was changed, the commands for the host are printed", why))
}

// tableCount is the part of a file that counts nodes: of what stats wrote, or of
// what `trackless snapshot` wrote, which has it under "table".
type tableCount struct {
	Entries *uint64     `json:"entries"`
	Limit   *uint64     `json:"limit"`
	Table   *tableCount `json:"table"`
}

func tuneNodes(paths []string, output string, out io.Writer) error {
	if len(paths) == 0 {
		return cli.Exit(cli.ExitCannotMeasure, errors.New("--nodes: name the files that `trackless snapshot` or `trackless conntrack stats -o json` wrote, one for each node"))
	}
	nodes := make([]advice.Node, 0, len(paths))
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			return cli.Exit(cli.ExitCannotMeasure, fmt.Errorf("--nodes: %w; name files that `trackless snapshot` or `trackless conntrack stats -o json` wrote", err))
		}
		var s tableCount
		if err := json.Unmarshal(b, &s); err != nil {
			return cli.Exit(cli.ExitCannotMeasure, fmt.Errorf("--nodes %s: it is not JSON as `trackless snapshot` or `trackless conntrack stats -o json` write it: %w", path, err))
		}
		if s.Table != nil {
			s = *s.Table
		}
		if s.Entries == nil || s.Limit == nil {
			return cli.Exit(cli.ExitCannotMeasure, fmt.Errorf("--nodes %s: no entries and limit in it; it is neither what `trackless snapshot` nor what `trackless conntrack stats -o json` writes", path))
		}
		if *s.Limit == 0 {
			return cli.Exit(cli.ExitCannotMeasure, fmt.Errorf("--nodes %s: this node has no limit (nf_conntrack_max is 0), so its table is never full; leave the file out", path))
		}
		nodes = append(nodes, advice.Node{Name: path, Entries: *s.Entries, Limit: *s.Limit})
	}
	c := advice.Nodes(nodes)
	if output == "json" {
		return cli.WriteJSON(out, c)
	}
	_, err := fmt.Fprintf(out, "%d nodes, %s entries, the smallest limit is %s: %.0f %% full on average.\n%d nodes of that limit would be %.0f %% full, if the load spreads evenly.\n",
		c.Nodes, figure.Thousands(c.Entries), figure.Thousands(c.Limit), c.Fill, c.Needed, c.FillThen)
	return err
}
