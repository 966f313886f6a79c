package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
	"github.com/trackless-dns/trackless/cmd/trackless/node"
	"github.com/trackless-dns/trackless/cmd/trackless/rules"
	"github.com/trackless-dns/trackless/conntrack/summary"
	"github.com/trackless-dns/trackless/node/measure"
	noderules "github.com/trackless-dns/trackless/node/rules"
	"github.com/trackless-dns/trackless/node/snapshot"
	"github.com/trackless-dns/trackless/node/snapshot/take"
	"github.com/trackless-dns/trackless/node/support"
)

const supportHelp = `Collect in one file what somebody needs who is to find out what is wrong: a
snapshot of the connection tracking table, the findings of doctor, the limits, the
rules, and of every instance of Trackless on this node its state, savings, Corefile
and the end of its log, with the versions of everything.

What is asked of an instance comes over its control socket. The log is the end of
what the instance wrote, some thousand lines, which it keeps in memory; what a
container wrote before it ended is not in it.

Secrets are left out: keys, tokens and passwords in the Corefile and the log, what
follows such a name, user names in URLs, whatever looks like a key. Files that the
Corefile names, such as TLS keys, and the environment are not read in. Look at the
files before you give them away all the same: they name addresses of pods and
Services, and with the directive log the domain names that were asked for.

The file manifest.json in it lists what is there, and what is not, and why.

Exit status: 0 written, also if parts could not be had; 1 it could not be written;
2 wrong command line.`

const supportExample = `  trackless support-bundle
  trackless support-bundle --without log -o /tmp/bundle.tar.gz
  kubectl -n kube-system exec POD -- trackless support-bundle -o - > bundle.tar.gz`

type supportOptions struct {
	node.SnapshotOptions
	conf    string
	without []string
}

func supportCommand() *cobra.Command {
	o := supportOptions{SnapshotOptions: node.SnapshotOptions{Source: newSnapshotSource()}}
	cmd := &cobra.Command{
		Use:     "support-bundle [-o FILE]",
		Short:   "Collect what is needed to find a fault, without secrets",
		Long:    supportHelp,
		Example: supportExample,
		Args:    cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := cli.UntilInterrupted(cmd.Context())
			defer stop()
			return supportBundle(ctx, o, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	fs := cmd.Flags()
	fs.StringVarP(&o.Output, "output", "o", "", "`file` to write, .tar or .tar.gz; - for the standard output (default: trackless-support-NODE-TIME.tar.gz)")
	o.Register(cmd)
	fs.Lookup("window").DefValue = "5s"
	o.Window = 5 * time.Second
	fs.StringVar(&o.conf, "conf", "", "Corefile to take where no instance tells its own")
	fs.StringSliceVar(&o.without, "without", nil, "`parts` to leave out: "+strings.Join(supportParts, ", "))
	_ = cmd.RegisterFlagCompletionFunc("without", cobra.FixedCompletions(supportParts, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// supportParts are the names that --without takes.
var supportParts = []string{"snapshot", "doctor", "limits", "rules", "corefile", "log"}

func (o *supportOptions) check() error {
	if err := o.Check(); err != nil {
		return err
	}
	for _, part := range o.without {
		if err := checkPart(part); err != nil {
			return err
		}
	}
	return nil
}

func checkPart(part string) error {
	for _, known := range supportParts {
		if part == known {
			return nil
		}
	}
	return fmt.Errorf("--without %q: there are %s", part, strings.Join(supportParts, ", "))
}

func supportBundle(ctx context.Context, o supportOptions, out, errs io.Writer) error {
	if err := o.check(); err != nil {
		return err
	}
	if o.Output == "-" && cli.IsTerminal(out) {
		return errors.New("support-bundle: the standard output is a terminal; name a file with -o")
	}
	if o.Output != "-" {
		// The name that it will have is not known yet; its folder is.
		if err := cli.CanWrite(cmp.Or(o.Output, "trackless-support")); err != nil {
			return cli.Exit(cli.ExitFailure, cli.OrToStandardOutput("support-bundle", fmt.Errorf("--output: %w", err)))
		}
	}
	b := collect(ctx, o, errs)
	if ctx.Err() != nil {
		return cli.Exit(cli.ExitInterrupted, errors.New("interrupted; nothing was written"))
	}
	name := o.Output
	if name == "" {
		name = b.FileName()
	}
	write := func(w io.Writer) error { return b.Write(w, !strings.HasSuffix(name, ".tar")) }
	var err error
	if name == "-" {
		err = write(out)
	} else {
		err = cli.WriteFile(name, 0o600, write)
	}
	if err != nil {
		return cli.Exit(cli.ExitFailure, cli.OrToStandardOutput("support-bundle", err))
	}
	for _, m := range b.Manifest().Missing {
		_, _ = fmt.Fprintf(errs, "not in it: %s: %s\n", m.Name, m.Reason)
	}
	if name != "-" {
		_, _ = fmt.Fprintf(errs, "%s: %d parts, %d secrets left out. Look at it before you give it away.\n", name, len(b.Manifest().Parts), b.Manifest().SecretsLeftOut)
	}
	return nil
}

// collect asks for everything. The Corefile comes first: secrets that are found
// in it are taken out of all the rest.
func collect(ctx context.Context, o supportOptions, errs io.Writer) *support.Bundle {
	var host snapshot.Snapshot
	nodeErr := take.ReadNode(&host, o.Node)
	b := support.New(host.Node, version, time.Now().UTC(), o.without...)
	b.RememberEnvironment(os.Environ())
	b.Add("", "versions.txt", "of trackless, CoreDNS, Go and the kernel", func() ([]byte, error) {
		return fmt.Appendf(nil, "%s\nLinux %s\n", versionString(), host.Node.Kernel), nodeErr
	})

	report, rulesErr := noderules.Read(ctx, noderules.Kernel{}, noderules.Options{Socket: o.Socket})
	b.AddInstances(ctx, report, o.conf)
	b.Add("rules", "rules.json", "`trackless rules show -o json`", func() ([]byte, error) {
		if rulesErr != nil {
			return nil, rulesErr
		}
		return support.Indented(report)
	})
	b.Add("rules", "rules.txt", "`trackless rules show`", func() ([]byte, error) {
		if rulesErr != nil {
			return nil, rulesErr
		}
		var text bytes.Buffer
		err := rules.Text(&text, report, false)
		return text.Bytes(), err
	})
	b.Add("snapshot", "snapshot.json", "`trackless snapshot`", func() ([]byte, error) {
		s, err := o.Take(ctx, errs)
		if s == nil {
			return nil, err
		}
		return support.Indented(s) // what is missing in it, it says itself
	})
	b.Add("doctor", "doctor.json", "`trackless doctor -o json`", func() ([]byte, error) {
		r, _, err := measure.Check(ctx, measure.Options{Root: "/", Interval: 2 * time.Second, Metrics: "auto", Rules: nodeRules, Progress: cli.Progress(errs)})
		if err != nil {
			return nil, cli.CannotMeasure(err)
		}
		return support.Indented(r)
	})
	b.Add("limits", "limits.json", "`trackless conntrack limits -o json`", func() ([]byte, error) {
		r, err := summary.ReadLimits("/")
		if err != nil {
			return nil, err
		}
		return support.Indented(r)
	})
	return b
}
