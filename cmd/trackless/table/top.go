package table

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
	"github.com/trackless-dns/trackless/cmd/trackless/top"
	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/conntrack/groups"
	"github.com/trackless-dns/trackless/conntrack/reread"
	"github.com/trackless-dns/trackless/kubeapi"
	"github.com/trackless-dns/trackless/node/instance"
	"github.com/trackless-dns/trackless/node/who"
)

const topHelp = `Show live who has the entries of the connection tracking table: by pod, namespace,
Service, destination, protocol or state, with their share of the limit, new entries per
second, and how many are unreplied or DNS. Where Trackless runs, the first lines show the
DNS entries that it keeps out of the table.

The table is read whole every --interval, and more seldom where that takes long: reading
takes at most a fifth of one CPU. New entries are those that were not there at the reading
before; nothing listens for events, which would cost each packet of a new flow.

Keys: tab or 1-6 the group, s the order, / a filter on names (esc ends it), space freezes
the screen, up and down scroll, q ends.

--once reads twice, --interval apart, and writes the groups for scripts: json is one
document, jsonl has a line for each group.

` + namesHelp

type topOptions struct {
	filterFlags
	podFlags
	netns    cli.NetNS
	by       string
	interval time.Duration
	once     bool
	output   string
	top      int
}

func topCommand() *cobra.Command {
	var o topOptions
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Show live which pods have the entries",
		Long:  topHelp,
		Example: `  trackless conntrack top
  trackless conntrack top --by destination --dns
  trackless conntrack top --once -o json`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := cli.UntilInterrupted(cmd.Context())
			defer stop()
			return runTop(ctx, o, cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	o.filterFlags.register(cmd)
	o.podFlags.register(cmd)
	o.netns.Register(cmd, "")
	cli.OutputFlag(cmd, &o.output, "table", "json", "jsonl")
	fs := cmd.Flags()
	fs.StringVar(&o.by, "by", groups.Pod.String(), "the `group` to begin with")
	_ = cmd.RegisterFlagCompletionFunc("by", cobra.FixedCompletions(groups.Words(), cobra.ShellCompDirectiveNoFileComp))
	fs.DurationVar(&o.interval, "interval", 2*time.Second, "`time` between two readings")
	fs.BoolVar(&o.once, "once", false, "write the groups once, and end")
	fs.IntVar(&o.top, "top", 20, "with --once, `number` of groups")
	return cmd
}

// shortestInterval is that of --interval.
const shortestInterval = 100 * time.Millisecond

func (o *topOptions) check() (conntrack.Filter, groups.By, error) {
	f, err := o.filter()
	if err != nil {
		return f, 0, err
	}
	by, err := groups.Parse(o.by)
	if err != nil {
		return f, 0, fmt.Errorf("--by %w", err)
	}
	if err := cli.CheckOutput("conntrack top", o.output, "table", "json", "jsonl"); err != nil {
		return f, 0, err
	}
	switch {
	case o.interval < shortestInterval:
		return f, 0, fmt.Errorf("--interval %s: the shortest is %s", o.interval, shortestInterval)
	case o.top < 1:
		return f, 0, fmt.Errorf("--top %d: there is at least one group", o.top)
	case !o.once && o.output != "table":
		return f, 0, fmt.Errorf("--output %s is for --once", o.output)
	}
	return f, by, cli.CheckRoot(o.node.Root)
}

func runTop(ctx context.Context, o topOptions, in io.Reader, out, errs io.Writer) error {
	f, by, err := o.check()
	if err != nil {
		return err
	}
	if !o.once && (!cli.IsTerminal(out) || cli.DumbTerminal()) {
		return errors.New("the screen needs a terminal that knows escape sequences; --once writes the groups without one")
	}
	return o.netns.Do(func() error {
		if err := o.find(ctx, &f, errs); err != nil {
			return err
		}
		c, err := conntrack.Dial(nil)
		if err != nil {
			return cli.CannotMeasure(err)
		}
		defer func() { _ = c.Close() }()
		if _, _, err := c.Count(); err != nil {
			return cli.CannotMeasure(err)
		}
		r := &tableReader{conn: c, filter: f, interval: o.interval, names: o.node.Follow(ctx)}
		if o.once {
			return r.once(ctx, o, by, out, errs)
		}
		screen := top.OfTable(by)
		screen.Node, screen.Interval, screen.Colour = kubeapi.NodeName(o.node.Name), o.interval, cli.Coloured(out)
		return top.Run(ctx, screen, in, out, r.run)
	})
}

// A tableReader reads a table again and again.
type tableReader struct {
	conn     *conntrack.Conn
	filter   conntrack.Filter
	interval time.Duration
	names    *who.Follower

	before *reread.Set // entries of the last reading
	at     time.Time
}

// busyShare is how many times as long as a reading took the next one is not begun.
const busyShare = 4

// run hands over pages until the context ends.
func (r *tableReader) run(ctx context.Context, show func(top.Page)) error {
	for {
		began := time.Now()
		collector, reading, err := r.read(ctx)
		if collector == nil && ctx.Err() == nil {
			return cli.CannotMeasure(err)
		}
		if collector != nil {
			show(reading.Page())
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(max(r.interval-time.Since(began), busyShare*time.Since(began))):
		}
	}
}

// read reads the table by all groups. Without a collector nothing could be read.
func (r *tableReader) read(ctx context.Context) (*groups.Collector, top.Reading, error) {
	found := r.names.Current(ctx)
	entries, limit, err := r.conn.Count()
	if err != nil {
		return nil, top.Reading{}, err
	}
	now := time.Now()
	collector, err := groups.Reading{
		Book: found.Book, By: groups.All(), Filter: r.filter, Distinct: true, Before: r.before,
		Expected: uint64(entries), Progress: cli.Progress(io.Discard),
	}.Do(ctx, r.conn)
	if collector == nil {
		return nil, top.Reading{}, err
	}
	reading := top.Reading{
		At: now, Entries: uint64(entries), Limit: uint64(limit), Total: collector.Total(), Rows: map[groups.By][]groups.Row{},
		Avoided: avoidedHere(ctx), Names: namesFrom(found.Pods, found.Services),
	}
	for _, by := range groups.All() {
		reading.Rows[by] = collector.Rows(by)
	}
	if r.before != nil {
		reading.Per = now.Sub(r.at)
	}
	if err != nil {
		reading.Problem = err.Error()
	}
	r.before, r.at = collector.Seen(), now
	return collector, reading, nil
}

// once writes the second of two readings.
func (r *tableReader) once(ctx context.Context, o topOptions, by groups.By, out, errs io.Writer) error {
	if _, _, err := r.read(ctx); err != nil {
		return cli.CannotMeasure(err)
	}
	select {
	case <-ctx.Done():
		return cli.Exit(cli.ExitInterrupted, errors.New("interrupted between the two readings"))
	case <-time.After(o.interval):
	}
	collector, reading, err := r.read(ctx)
	if collector == nil {
		return cli.CannotMeasure(err)
	}
	report := newGroupReport(by, reading.Entries, reading.Limit, collector, r.names.Current(ctx), o.top)
	report.Seconds, report.Avoided = reading.Per.Seconds(), reading.Avoided
	if reading.Problem != "" {
		report.Notes = append(report.Notes, reading.Problem)
	}
	switch o.output {
	case "json":
		return cli.WriteJSON(out, report)
	case "jsonl":
		return writeGroupLines(out, report)
	}
	return writeGroups(out, errs, report, by)
}

// writeGroupLines writes a line for each group.
func writeGroupLines(out io.Writer, r *groupReport) error {
	encoder := json.NewEncoder(out)
	encoder.SetEscapeHTML(false)
	for _, g := range r.Groups {
		line := struct {
			Time    time.Time `json:"time"`
			By      string    `json:"by"`
			Limit   uint64    `json:"limit"`
			Seconds float64   `json:"seconds"`
			groups.Row
		}{r.Time, r.By, r.Limit, r.Seconds, g}
		if err := encoder.Encode(line); err != nil {
			return err
		}
	}
	return nil
}

// avoidedTimeout bounds the wait for the instances' figures, which are not worth a pause.
const avoidedTimeout = 500 * time.Millisecond

// avoidedHere adds up what the instances of Trackless on this node keep out of the table. It
// returns nil if none answers.
func avoidedHere(ctx context.Context) *uint64 {
	ctx, cancel := context.WithTimeout(ctx, avoidedTimeout)
	defer cancel()
	found, _ := instance.Reach(ctx, instance.Kernel{}, "", nil)
	var sum *uint64
	for _, i := range found {
		figures, err := i.Figures(ctx)
		if err != nil {
			continue
		}
		if sum == nil {
			sum = new(uint64)
		}
		for _, class := range figures.Classes {
			*sum += class.EntriesAvoided
		}
	}
	return sum
}
