package table

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/conntrack/format"
	"github.com/trackless-dns/trackless/conntrack/summary"
	"github.com/trackless-dns/trackless/conntrack/sysctl"
	"github.com/trackless-dns/trackless/internal/figure"
)

const watchHelp = `Show the entries as they are made, changed and destroyed, until interrupted.

An update carries what changed. A destroy event carries the time that was left, if
some was: the entry was deleted, evicted or replaced before it ran out (older kernels
send none). Filters on parts that an event does not carry do not match it. Since Linux 5.19 entries made before
the watch began send no events unless net.netfilter.nf_conntrack_events is 1.

--rate prints one line per second instead: events of each kind, how many of them
were DNS, and the number of entries in the table.

If events come faster than they are read the kernel drops some; that is said on
the standard error and counted in the column LOST of --rate.

--pod takes the addresses that the pods have when the watch begins. See
` + "`trackless conntrack stats --help`" + ` for where names come from.`

type watchOptions struct {
	filterFlags
	podFlags
	output   string
	netns    cli.NetNS
	events   []string
	rate     bool
	count    int
	duration time.Duration
}

func watchCommand() *cobra.Command {
	var o watchOptions
	cmd := &cobra.Command{
		Use:     "watch",
		Aliases: []string{"events"},
		Short:   "Show entries as they come and go",
		Long:    watchHelp,
		Example: `  trackless conntrack watch --dns
  trackless conntrack watch --pod kube-system/coredns-7d9f --events new
  trackless conntrack watch --events destroy --status UNREPLIED -o jsonl
  trackless conntrack watch --rate`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := cli.UntilInterrupted(cmd.Context())
			defer stop()
			return runWatch(ctx, o, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	o.filterFlags.register(cmd)
	o.podFlags.register(cmd)
	cli.OutputFlag(cmd, &o.output, format.Names...)
	o.netns.Register(cmd, "")
	cmd.Flags().StringSliceVar(&o.events, "events", []string{"new", "update", "destroy"}, "`kinds` of events")
	cmd.Flags().BoolVar(&o.rate, "rate", false, "one line per second with the number of events")
	cmd.Flags().IntVarP(&o.count, "count", "c", 0, "end after so `many` events, or lines of --rate; 0 for none")
	cmd.Flags().DurationVar(&o.duration, "duration", 0, "end after this `time`; 0 for none")
	return cmd
}

func (o *watchOptions) eventTypes() ([]conntrack.EventType, error) {
	all := []conntrack.EventType{conntrack.EventNew, conntrack.EventUpdate, conntrack.EventDestroy}
	types := make([]conntrack.EventType, 0, len(all))
	for _, name := range o.events {
		i := slices.IndexFunc(all, func(t conntrack.EventType) bool { return strings.EqualFold(t.String(), name) })
		if i < 0 {
			return nil, fmt.Errorf("--events %q: there are new, update and destroy", name)
		}
		types = append(types, all[i])
	}
	if len(types) == 0 {
		return nil, errors.New("--events is empty: there are new, update and destroy")
	}
	return types, nil
}

func runWatch(ctx context.Context, o watchOptions, out, errs io.Writer) error {
	f, err := o.filter()
	if err != nil {
		return err
	}
	types, err := o.eventTypes()
	if err != nil {
		return err
	}
	if err := cli.CheckOutput("conntrack watch", o.output, format.Names...); err != nil {
		return err
	}
	if o.rate {
		if err := cli.CheckOutput("conntrack watch --rate", o.output, "table", "jsonl"); err != nil {
			return err
		}
	}
	if o.duration < 0 {
		return fmt.Errorf("--duration %s is negative: give a positive duration, or 0 to run without end", o.duration)
	}
	if o.count < 0 {
		return fmt.Errorf("--count %d is negative: give a positive number, or 0 to run without end", o.count)
	}
	if o.duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.duration)
		defer cancel()
	}
	return o.netns.Do(func() error {
		if err := o.find(ctx, &f, errs); err != nil {
			return err
		}
		l, err := conntrack.Listen(nil, types...)
		if err != nil {
			return cli.CannotMeasure(err)
		}
		defer func() { _ = l.Close() }()
		c, err := conntrack.Dial(nil)
		if err != nil {
			return cli.CannotMeasure(err)
		}
		defer func() { _ = c.Close() }()
		warnAboutEvents(errs)
		// Waking the reader by its deadline leaves the listener usable.
		defer context.AfterFunc(ctx, func() { _ = l.SetReadDeadline(time.Unix(1, 0)) })()
		if o.rate {
			return watchRate(ctx, l, c, &f, o, out)
		}
		return watchEvents(ctx, l, &f, o, out, errs)
	})
}

// warnAboutEvents says why nothing will come, or not everything.
func warnAboutEvents(errs io.Writer) {
	settings, err := sysctl.ReadSettings("")
	if err != nil {
		return
	}
	if v, ok := sysctl.SettingValue(settings, "nf_conntrack_events"); ok && v == 0 {
		_, _ = fmt.Fprintln(errs, "trackless: net.netfilter.nf_conntrack_events is 0: the kernel sends no events; set it to 1 or 2")
	}
}

// errEnough ends a watch that has seen what was asked for.
var errEnough = errors.New("enough")

func watchEvents(ctx context.Context, l *conntrack.Listener, f *conntrack.Filter, o watchOptions, out, errs io.Writer) error {
	w, err := format.New(o.output, out)
	if err != nil {
		return err
	}
	match := f.Matcher()
	for {
		err := l.Receive(func(t conntrack.EventType, e *conntrack.Entry) error {
			if !match(e) {
				return nil
			}
			if err := w.Event(t, e); err != nil {
				return err
			}
			if o.count > 0 && w.Count() >= o.count {
				return errEnough
			}
			return nil
		})
		switch {
		case errors.Is(err, conntrack.ErrOverrun):
			_, _ = fmt.Fprintf(errs, "trackless: %v\n", err)
		case errors.Is(err, errEnough), errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() != nil:
			return w.Close()
		case err != nil:
			return errors.Join(cli.CannotMeasure(err), w.Close())
		}
		if err := w.Flush(); err != nil {
			return err
		}
	}
}

// watchRate prints the number of events every second.
func watchRate(ctx context.Context, l *conntrack.Listener, c *conntrack.Conn, f *conntrack.Filter, o watchOptions, out io.Writer) error {
	lines := 0
	err := summary.Rates(ctx, l, c, f, func(r *summary.Rate) error {
		if err := writeRate(out, r, o.output, lines == 0); err != nil {
			return &writeError{err}
		}
		if lines++; o.count > 0 && lines >= o.count {
			return errEnough
		}
		return nil
	})
	var write *writeError
	switch {
	case errors.Is(err, errEnough):
		return nil
	case errors.As(err, &write):
		return write.error
	}
	return cli.CannotMeasure(err)
}

// A writeError is an error of the output, not of the table.
type writeError struct{ error }

func writeRate(out io.Writer, r *summary.Rate, output string, first bool) error {
	if output == "jsonl" {
		return json.NewEncoder(out).Encode(r)
	}
	if first {
		if _, err := fmt.Fprintln(out, "TIME          NEW/s  UPDATE/s  DESTROY/s  NEW DNS/s  DESTROY DNS/s   ENTRIES    FILL  LOST"); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(out, "%s  %9d %9d  %9d  %9d  %13d  %8d  %6s  %4d\n", r.Time.Format(time.TimeOnly),
		r.New, r.Update, r.Destroy, r.NewDNS, r.DestroyDNS, r.Entries, figure.Fill(r.Entries, r.Limit), r.Lost)
	return err
}
