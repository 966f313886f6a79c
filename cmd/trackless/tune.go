package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
	"github.com/trackless-dns/trackless/internal/figure"
	"github.com/trackless-dns/trackless/node/advice"
	"github.com/trackless-dns/trackless/node/measure"
)

const tuneHelp = `Recommend settings that fit the load of this node, each with its reason, its cost
in memory and its risk, and print them as files: a drop-in for sysctl.d, one for
modules-load.d (settings of a module that is not loaded yet are lost at boot), one
for modprobe.d with the size of the hash, and a fragment for what kube-proxy would
override: of KubeProxyConfiguration, or of the file in which k3s, RKE2 or MicroK8s
give kube-proxy its flags.

The table is sized so that the entries seen now fill it to half; look at the busy
hour, or say with --entries what to plan for. It never gets smaller than it is,
and never takes more than a sixteenth of the memory.

--apply writes the files and sets the settings at once; what was before is kept
under /var/lib/trackless, and --revert restores it. In a container --apply refuses
and says what to do on the host.

--nodes says instead how many nodes would bring the entries of a cluster under
60 % of the limit, from the files that "trackless conntrack stats -o json" wrote on
each.

Exit status: 0 done, 1 not everything could be done and what was done is undone,
3 it could not look, or refused; also for a wrong command line.`

type tuneOptions struct {
	measure.Options
	output  string
	forWhat string
	apply   bool
	revert  bool
	nodes   bool
	entries uint64
}

func tuneCommand() *cobra.Command {
	o := tuneOptions{Options: measure.Options{Rules: nodeRules, Metrics: "off"}}
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
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			return tune(ctx, o, args, cmd.OutOrStdout(), cmd.ErrOrStderr())
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

func tune(ctx context.Context, o tuneOptions, args []string, out, errs io.Writer) error {
	if err := cli.CheckOutput("tune", o.output); err != nil {
		return cli.Exit(cli.ExitCannotLook, err)
	}
	if err := o.oneOf(); err != nil {
		return cli.Exit(cli.ExitCannotLook, err)
	}
	if err := cli.CheckRoot(o.Root); err != nil {
		return err
	}
	switch {
	case o.nodes:
		return tuneNodes(args, o.output, out)
	case len(args) > 0:
		return cli.Exit(cli.ExitCannotLook, fmt.Errorf("tune: unexpected argument %q; snapshots go with --nodes", args[0]))
	case o.revert:
		return revertTuning(o.Root, os.Getenv, out)
	}
	o.Progress = cli.Progress(errs)
	m, err := measure.Take(ctx, o.Options)
	if err != nil {
		return cli.CannotLook(err)
	}
	if o.entries > 0 {
		m.Entries = o.entries
	}
	plan := newTuning(m)
	switch {
	case o.apply:
		return plan.apply(o.Root, os.Getenv, out)
	case o.forWhat != "":
		return plan.writeOne(o.forWhat, out)
	case o.output == "json":
		return cli.WriteJSON(out, plan)
	}
	return plan.write(out)
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

// A tuning is a recommendation with the files that carry it; its JSON names do
// not change.
type tuning struct {
	advice.Recommendation
	Files []tuningFile `json:"files"`
	// KubeProxy is a fragment of KubeProxyFile: of a KubeProxyConfiguration, or
	// of the file in which a distribution gives kube-proxy its flags.
	KubeProxy     string `json:"kube_proxy"`
	KubeProxyFile string `json:"kube_proxy_file"`
	// Overridden names the settings that kube-proxy of this node would set
	// otherwise when it starts.
	Overridden []string `json:"kube_proxy_overrides,omitempty"`
	Missing    []string `json:"missing,omitempty"`

	buckets uint64 // present
}

type tuningFile struct {
	For     string `json:"for"`
	Path    string `json:"path"`
	Content string `json:"content"`
}

func (t *tuning) write(out io.Writer) error {
	var b bytes.Buffer
	width := cli.TextWidth(out)
	if len(t.Settings) == 0 && t.Size.Buckets == t.buckets {
		b.WriteString("Nothing to change: the settings fit the load seen now.\n")
	} else {
		tw := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
		_, _ = fmt.Fprintln(tw, "SETTING\tNOW\tRECOMMENDED")
		for _, s := range t.Settings {
			_, _ = fmt.Fprintf(tw, "%s\t%d\t%d\n", s.Name, s.Current, s.Value)
		}
		if t.Size.Buckets != t.buckets {
			_, _ = fmt.Fprintf(tw, "hash buckets\t%d\t%d\n", t.buckets, t.Size.Buckets)
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

func (t *tuning) writeOne(name string, out io.Writer) error {
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
		return cli.Exit(cli.ExitCannotLook, fmt.Errorf("--for %q: there are sysctl, modules-load, modprobe and kube-proxy", name))
	}
	_, err := io.WriteString(out, content)
	return err
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
		return cli.Exit(cli.ExitCannotLook, errors.New("--nodes: name the files that `trackless snapshot` or `trackless conntrack stats -o json` wrote, one for each node"))
	}
	nodes := make([]advice.Node, 0, len(paths))
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			return cli.Exit(cli.ExitCannotLook, fmt.Errorf("--nodes: %w; name files that `trackless snapshot` or `trackless conntrack stats -o json` wrote", err))
		}
		var s tableCount
		if err := json.Unmarshal(b, &s); err != nil {
			return cli.Exit(cli.ExitCannotLook, fmt.Errorf("--nodes %s: it is not JSON as `trackless snapshot` or `trackless conntrack stats -o json` write it: %w", path, err))
		}
		if s.Table != nil {
			s = *s.Table
		}
		if s.Entries == nil || s.Limit == nil {
			return cli.Exit(cli.ExitCannotLook, fmt.Errorf("--nodes %s: no entries and limit in it; it is neither what `trackless snapshot` nor what `trackless conntrack stats -o json` writes", path))
		}
		if *s.Limit == 0 {
			return cli.Exit(cli.ExitCannotLook, fmt.Errorf("--nodes %s: this node has no limit (nf_conntrack_max is 0), so its table is never full; leave the file out", path))
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
