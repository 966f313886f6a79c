package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/control"
	"github.com/trackless-dns/trackless/iptables/owner"
	"github.com/trackless-dns/trackless/node/instance"
	"github.com/trackless-dns/trackless/plugin/cache/contents"
)

const cacheHelp = `Show and remove what running instances have cached. They are asked over their
control socket (-control of "trackless serve").

Without --pid or --socket all instances of this node are asked.`

const cacheShowHelp = `Show the answers that are cached for a name: what they hold, how old they are and
how long they live, how often they were used, and which upstream they came from.
With TYPE, such as AAAA, only the answers to questions for that type are shown.

An answer to another name is shown too if it has records of this one, as the
answer to an alias has: it is what clients of the alias get.

There is an answer for each combination of bits that queries have set: do for
DNSSEC OK, cd for Checking Disabled. An answer is positive, nxdomain, nodata (the
name exists, the type does not), failure, or retained (an older positive answer
that serve_stale_policy keeps). An expired one is shown while serve_stale serves
it. The upstream is not known of answers that no forward or upstream directive
brought.

Exit status: 0 all instances told, also if nothing is cached; 1 one did not or
there is none, 2 wrong command line.`

const cacheShowExample = `  trackless cache show www.example.org
  trackless cache show www.example.org AAAA
  trackless cache show www.example.org --output json`

const cacheFlushHelp = `Remove answers from the cache: those of a name, those of a zone (the name and all
names below it), or, without either, all of them. The next query asks upstream.
What was removed is counted.

With a name or zone go also the answers to other names that have records of it,
as the answer to an alias has. An answer that is on its way from the upstream at
that moment reaches the client who asked, and is not stored.

Exit status: 0 all instances did it, also if there was nothing to remove; 1 one
did not or there is none, 2 wrong command line.`

const cacheFlushExample = `  trackless cache flush www.example.org
  trackless cache flush --zone example.org
  trackless cache flush
  trackless cache flush --output json --pid 4711`

func cacheCommand() *cobra.Command {
	return cacheCommandOn(func() instance.Node { return instance.Kernel{} })
}

// cacheCommandOn makes the verb for a node, which tests replace.
func cacheCommandOn(node func() instance.Node) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cache",
		Short: "Show and flush what instances have cached",
		Long:  cacheHelp,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("cache: unknown verb %q; `%s --help` lists them", args[0], cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(cacheShowCommand(node), cacheFlushCommand(node))
	return cmd
}

type cacheOptions struct {
	verb    string
	output  string
	socket  string
	pid     int
	timeout time.Duration

	name, qtype, zone string
}

func (o *cacheOptions) register(cmd *cobra.Command, node func() instance.Node) {
	cli.OutputFlag(cmd, &o.output)
	cli.SocketFlag(cmd, &o.socket)
	cli.PIDFlag(cmd, &o.pid, node)
	cmd.Flags().DurationVar(&o.timeout, "timeout", 10*time.Second, "how long to wait for an instance")
}

// check returns what is wrong with the command line.
func (o *cacheOptions) check() error {
	if err := cli.CheckOutput("cache "+o.verb, o.output); err != nil {
		return err
	}
	problem := func() error {
		switch {
		case o.pid < 0:
			return fmt.Errorf("--pid is a process id, not %d", o.pid)
		case o.timeout <= 0:
			return fmt.Errorf("--timeout is more than 0, not %s", o.timeout)
		}
		return errors.Join(contents.CheckScope(o.scope()), contents.CheckType(o.qtype))
	}()
	if problem != nil {
		return cli.Exit(cli.ExitUsage, fmt.Errorf("cache %s: %w", o.verb, problem))
	}
	return nil
}

func (o *cacheOptions) scope() control.CacheScope {
	return control.CacheScope{Name: o.name, Zone: o.zone}
}

func cacheShowCommand(node func() instance.Node) *cobra.Command {
	o := cacheOptions{verb: "show"}
	cmd := &cobra.Command{
		Use:     "show NAME [TYPE]",
		Short:   "What is cached for a name, how old it is and where it came from",
		Long:    cacheShowHelp,
		Example: cacheShowExample,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 || len(args) > 2 || args[0] == "" {
				return cli.Exit(cli.ExitUsage, fmt.Errorf("cache show: want NAME or NAME TYPE, such as `trackless cache show www.example.org AAAA`"))
			}
			return nil
		},
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) != 1 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return []string{"A", "AAAA", "CNAME", "HTTPS", "MX", "NS", "PTR", "SOA", "SRV", "TXT"}, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			o.name = args[0]
			if len(args) > 1 {
				o.qtype = args[1]
			}
			if err := o.check(); err != nil {
				return err
			}
			return showCache(cmd.Context(), node(), o, cmd.OutOrStdout())
		},
	}
	o.register(cmd, node)
	return cmd
}

func cacheFlushCommand(node func() instance.Node) *cobra.Command {
	o := cacheOptions{verb: "flush"}
	cmd := &cobra.Command{
		Use:     "flush [NAME | --zone ZONE]",
		Short:   "Remove the answers of a name, of a zone, or all",
		Long:    cacheFlushHelp,
		Example: cacheFlushExample,
		Args: func(cmd *cobra.Command, args []string) error {
			switch {
			case len(args) > 1:
				return cli.Exit(cli.ExitUsage, fmt.Errorf("cache flush: want one NAME, not %d; --zone ZONE takes all names of a zone", len(args)))
			case len(args) == 1 && args[0] == "", cmd.Flags().Changed("zone") && o.zone == "":
				// A variable of a script that is not set must not empty the cache.
				return cli.Exit(cli.ExitUsage, errors.New("cache flush: the name is empty; leave it out to flush everything"))
			}
			return nil
		},
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.name = strings.Join(args, "")
			if err := o.check(); err != nil {
				return err
			}
			return flushCache(cmd.Context(), node(), o, cmd.OutOrStdout())
		},
	}
	o.register(cmd, node)
	cmd.Flags().StringVar(&o.zone, "zone", "", "flush this name and all names below it")
	_ = cmd.RegisterFlagCompletionFunc("zone", cobra.NoFileCompletions)
	return cmd
}

// cacheReport is the JSON for an instance. Fields may be added, none renamed.
type cacheReport struct {
	PID    int    `json:"pid,omitempty"`
	Socket string `json:"socket,omitempty"`
	Error  string `json:"error,omitempty"`
	// One of them if there is no error.
	*cacheShown
	*cacheFlushed
}

// cacheShown has the fields that `cache show` adds to a report.
type cacheShown struct {
	Answers []control.CachedAnswer `json:"answers"`
	More    int                    `json:"more"`
}

// cacheFlushed has the fields that `cache flush` adds to a report.
type cacheFlushed struct {
	Removed int                    `json:"removed"`
	Caches  []control.CacheFlushed `json:"caches"`
}

func showCache(ctx context.Context, node instance.Node, o cacheOptions, out io.Writer) error {
	reports := askCaches(ctx, node, o, func(ctx context.Context, s instance.ControlSocket, r *cacheReport) error {
		content, err := s.ShowCache(ctx, o.name, o.qtype)
		if err == nil {
			r.cacheShown = &cacheShown{content.Answers, content.More}
		}
		return err
	})
	return writeCaches(out, o, reports)
}

func flushCache(ctx context.Context, node instance.Node, o cacheOptions, out io.Writer) error {
	reports := askCaches(ctx, node, o, func(ctx context.Context, s instance.ControlSocket, r *cacheReport) error {
		removed, err := s.FlushCache(ctx, o.scope())
		if err == nil {
			r.cacheFlushed = &cacheFlushed{Caches: removed.Caches}
			for _, c := range removed.Caches {
				r.Removed += c.Answers()
			}
		}
		return err
	})
	return writeCaches(out, o, reports)
}

// askCaches asks all instances at once. Those that do not answer are reported
// too.
func askCaches(ctx context.Context, node instance.Node, o cacheOptions, ask func(context.Context, instance.ControlSocket, *cacheReport) error) []cacheReport {
	// Tables tell of instances that no socket leads to. Reading them needs a
	// privilege that asking does not, and an instance may have none.
	tables, _ := node.Instances()
	found, quiet := instance.Reach(ctx, node, o.socket, instance.LocalPIDs(tables))
	unreached := tablesWithout(found, tables)
	if o.pid != 0 {
		found = slices.DeleteFunc(found, func(r instance.Reached) bool { return r.PID() != o.pid })
		unreached = slices.DeleteFunc(unreached, func(pid int) bool { return pid != o.pid })
	}
	reports := make([]cacheReport, len(found))
	ctx, cancel := context.WithTimeoutCause(ctx, o.timeout, fmt.Errorf("no answer within %s", o.timeout))
	defer cancel()
	var wg sync.WaitGroup
	for i, f := range found {
		wg.Go(func() {
			r := &reports[i]
			r.PID, r.Socket = f.PID(), f.Socket()
			err := ask(ctx, f, r)
			var refused *control.RefusedError
			switch {
			case errors.As(err, &refused):
				r.Error = fmt.Sprintf("pid %d refused: %s", r.PID, refused.Reason)
			case err != nil:
				r.Error = fmt.Sprintf("pid %d: %v", r.PID, err)
			}
		})
	}
	wg.Wait()
	switch {
	case o.socket != "":
		unreached = nil
	case o.pid != 0 || len(unreached) > 0:
		quiet = nil // whom a silent socket belongs to is not known
	}
	for _, pid := range unreached {
		reports = append(reports, cacheReport{PID: pid, Error: fmt.Sprintf("pid %d answers on no control socket: name its socket with --socket if `trackless serve` was given another -control", pid)})
	}
	for _, s := range quiet {
		reports = append(reports, cacheReport{Socket: s.Socket, Error: s.Err.Error()})
	}
	return reports
}

// tablesWithout are the processes that live, have a table, and were not reached.
func tablesWithout(found []instance.Reached, tables []iptables.Instance) []int {
	var pids []int
	for _, i := range tables {
		answers := slices.ContainsFunc(found, func(r instance.Reached) bool { return r.Answer.Table == i.Table })
		if pid := cmp.Or(i.Owner.LocalPID, i.Owner.PID); !answers && i.Owner.Life != owner.Dead && pid != 0 {
			pids = append(pids, pid)
		}
	}
	return pids
}

// writeCaches writes what instances told, and returns an error if one of them
// did not or there is none.
func writeCaches(out io.Writer, o cacheOptions, reports []cacheReport) error {
	var problems []string
	if len(reports) == 0 {
		problems = append(problems, instance.NoAnswer(o.pid).Error())
	}
	var text strings.Builder
	for _, r := range reports {
		if r.Error != "" {
			problems = append(problems, r.Error)
			continue
		}
		if len(reports) > 1 {
			fmt.Fprintf(&text, "pid %d:\n", r.PID)
		}
		if r.cacheShown != nil {
			r.cacheShown.write(&text, strings.TrimSpace(o.name+" "+o.qtype))
		} else {
			r.cacheFlushed.write(&text)
		}
	}
	var err error
	if o.output == "json" && len(reports) > 0 {
		err = cli.WriteJSON(out, struct {
			Instances []cacheReport `json:"instances"`
		}{reports})
	} else if o.output == "table" {
		_, err = io.WriteString(out, text.String())
	}
	if err == nil && len(problems) > 0 {
		err = errors.New(strings.Join(problems, "; "))
	}
	if err != nil {
		return cli.Exit(cli.ExitFailure, fmt.Errorf("cache %s: %w", o.verb, err))
	}
	return nil
}

// write writes a paragraph for each answer, with short lines.
func (s *cacheShown) write(b *strings.Builder, asked string) {
	if len(s.Answers) == 0 {
		fmt.Fprintf(b, "nothing is cached for %s\n", asked)
	}
	for i, a := range s.Answers {
		if i > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(b, "%s %s %s", a.Name, a.Class, a.Type)
		if len(a.Flags) > 0 {
			fmt.Fprintf(b, " (%s)", strings.Join(a.Flags, ", "))
		}
		fmt.Fprintf(b, "\n  %s, %s\n", kindOf(a), lifeOf(a))
		fmt.Fprintf(b, "  used %s, from %s\n", usesOf(a), cmp.Or(a.Source, "an unknown source"))
		fmt.Fprintf(b, "  in %s\n", blockName(a.CacheBlock))
		for _, section := range []struct {
			name    string
			records []string
		}{{"answer", a.Answer}, {"authority", a.Authority}, {"additional", a.Additional}} {
			for _, rr := range section.records {
				fmt.Fprintf(b, "  %-10s %s\n", section.name, rr)
			}
		}
	}
	if s.More > 0 {
		fmt.Fprintf(b, "\nand %d more\n", s.More)
	}
}

func seconds(n int64) string { return cli.ShortDuration(time.Duration(n) * time.Second) }

func kindOf(a control.CachedAnswer) string {
	if a.Kind == "failure" {
		return "failure " + a.Rcode
	}
	return a.Kind
}

// lifeOf tells an answer's age and end.
func lifeOf(a control.CachedAnswer) string {
	end := seconds(a.TTLSeconds) + " left"
	if a.TTLSeconds == 0 {
		end = "expired " + seconds(a.StaleSeconds) + " ago"
	}
	return fmt.Sprintf("%s of %s, %s old", end, seconds(a.StoredTTLSeconds), seconds(a.AgeSeconds))
}

func usesOf(a control.CachedAnswer) string {
	switch {
	case a.Uses == 0:
		return "never"
	case a.UsesOrMore:
		return fmt.Sprintf("%d times or more", a.Uses)
	case a.Uses == 1:
		return "once"
	}
	return strconv.Itoa(a.Uses) + " times"
}

func blockName(b control.CacheBlock) string {
	name := b.ServerBlock
	if len(b.Bind) > 0 {
		name += " on " + strings.Join(b.Bind, " ")
	}
	if b.View != "" {
		name += ", view " + b.View
	}
	return name
}

func (f *cacheFlushed) write(b *strings.Builder) {
	fmt.Fprintf(b, "removed %s\n", numberOf(f.Removed, "answer"))
	for _, c := range f.Caches {
		if c.Answers() == 0 {
			continue
		}
		fmt.Fprintf(b, "  %s:\n    %d positive, %s, %s\n", blockName(c.CacheBlock), c.Positive, numberOf(c.Denials, "denial"), numberOf(c.Failures, "failure"))
		if c.OtherNames > 0 {
			fmt.Fprintf(b, "    %d of them for other names, which have records of it\n", c.OtherNames)
		}
	}
}

func numberOf(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}
