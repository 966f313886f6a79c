package node

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
	"github.com/trackless-dns/trackless/internal/figure"
	"github.com/trackless-dns/trackless/iptables/control"
	"github.com/trackless-dns/trackless/node/snapshot"
	"github.com/trackless-dns/trackless/node/snapshot/take"
)

const snapshotHelp = `Write down what is in the connection tracking table of this node, how much of it
is DNS, what the kernel dropped, the limits, the rules that untrack DNS, and what
a Trackless on this node saves, as one JSON file. Two of them, before and after a
change, are compared by "trackless compare".

The node is watched for --window, so that the snapshot has rates and a course:
the table's fill is read up to four times a second, and its entries are counted
as often as costs a tenth of a CPU. New entries are counted by the kernel's events
(--events=false: not at all).

Trackless need not run, nor be installed: take the snapshot "before" with the same
program. Savings are asked of the instances of this node over their control
sockets. No packet is sent and nothing is changed.

The file names addresses of pods, Services and servers, and no domain names;
docs/snapshot.md describes every field.

Entries, rules and events need CAP_NET_ADMIN. What cannot be read is left out and
named in the field missing.

Exit status: 0 taken, 1 it could not be written, 2 wrong command line, 3 the table
cannot be read; where only its entries cannot, the rest is written all the same.`

const snapshotExample = `  trackless snapshot -o before.json
  trackless snapshot --window 1m -o after.json
  trackless compare before.json after.json --html report.html
  kubectl -n kube-system exec ds/trackless -- trackless snapshot > node.json`

// A SnapshotSource has what a snapshot is made with besides the table.
type SnapshotSource struct {
	Versions snapshot.Versions
	// Rules fills in the rules of the node, and returns the control sockets of its
	// instances, or the one that is named.
	Rules func(ctx context.Context, s *snapshot.Snapshot, socket string) []*control.Client
}

// SnapshotOptions say what is measured, for how long, and where the file goes.
type SnapshotOptions struct {
	Source SnapshotSource
	Output string
	Node   string
	Socket string
	Window time.Duration
	events bool
	top    int
	netns  cli.NetNS
}

// Snapshot makes the verb snapshot.
func Snapshot(source SnapshotSource) *cobra.Command {
	o := SnapshotOptions{Source: source}
	cmd := &cobra.Command{
		Use:     "snapshot [-o FILE]",
		Short:   "Write the state of the table and of DNS to a file, to compare later",
		Long:    snapshotHelp,
		Example: snapshotExample,
		Args:    cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := cli.UntilInterrupted(cmd.Context())
			defer stop()
			return writeSnapshot(ctx, o, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	fs := cmd.Flags()
	fs.StringVarP(&o.Output, "output", "o", "-", "`file` to write; - for the standard output")
	o.Register(cmd)
	o.netns.Register(cmd, "")
	return cmd
}

// Register adds the flags that say what is measured, and for how long.
func (o *SnapshotOptions) Register(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.DurationVar(&o.Window, "window", 10*time.Second, "how `long` to watch; 0 to read once, without rates")
	fs.BoolVar(&o.events, "events", true, "count new entries by the kernel's events")
	fs.StringVar(&o.Node, "node", "", "`name` of this node (default: the environment's NODE_NAME, else the host's name)")
	fs.IntVar(&o.top, "top", 10, "`length` of the lists of addresses and ports")
	cli.SocketFlag(cmd, &o.Socket)
}

// maxWindow bounds the number of samples: they are at most some hundred.
const maxWindow = time.Hour

// Check refuses flags that make no snapshot.
func (o *SnapshotOptions) Check() error {
	if o.Window < 0 || o.Window > maxWindow {
		return fmt.Errorf("--window %s: from 0 to %s is possible", o.Window, maxWindow)
	}
	if o.Window > 0 && o.Window < 100*time.Millisecond {
		return fmt.Errorf("--window %s: it is too short to measure rates; use 10s or more, or 0 to read once", o.Window)
	}
	if o.top < 1 {
		return fmt.Errorf("--top %d: the lists have at least one line", o.top)
	}
	return nil
}

func writeSnapshot(ctx context.Context, o SnapshotOptions, out, errs io.Writer) error {
	if err := o.Check(); err != nil {
		return err
	}
	toFile := o.Output != "-" && o.Output != ""
	if toFile {
		if err := cli.CanWrite(o.Output); err != nil {
			return cli.Exit(cli.ExitFailure, cli.OrToStandardOutput("snapshot", fmt.Errorf("--output: %w", err)))
		}
	}
	return o.netns.Do(func() error {
		s, err := o.Take(ctx, errs)
		if s == nil {
			return err
		}
		write := func(w io.Writer) error { return cli.WriteJSON(w, s) }
		var writeErr error
		if toFile {
			writeErr = cli.WriteFile(o.Output, 0o644, write)
		} else {
			writeErr = write(out)
		}
		if writeErr != nil {
			return cli.Exit(cli.ExitFailure, cli.OrToStandardOutput("snapshot", writeErr))
		}
		if toFile {
			_, _ = fmt.Fprintf(errs, "%s: %s\n", o.Output, inBrief(s))
		}
		return err
	})
}

// Take takes a snapshot from the calling thread's namespace. It is nil if there is
// no table to read; an error beside it says that the entries could not be read.
func (o *SnapshotOptions) Take(ctx context.Context, errs io.Writer) (*snapshot.Snapshot, error) {
	s, err := take.Snapshot(ctx, take.Options{
		Node: o.Node, Window: o.Window, Events: o.events, Top: o.top,
		Versions: o.Source.Versions,
		Rules: func(ctx context.Context, s *snapshot.Snapshot) []*control.Client {
			return o.Source.Rules(ctx, s, o.Socket)
		},
		Progress: cli.Progress(errs),
	})
	return s, cli.CannotMeasure(err)
}

// inBrief says in a line what a snapshot found.
func inBrief(s *snapshot.Snapshot) string {
	text := figure.Entries(s.Table.Entries, s.Table.Limit)
	if s.Table.DNSPercent != nil {
		text += fmt.Sprintf(", %.1f %% DNS", *s.Table.DNSPercent)
	}
	if s.NewFlows != nil {
		text += fmt.Sprintf(", %.0f new a second", s.NewFlows.PerSecond)
	}
	switch {
	case s.Ledger != nil:
		text += fmt.Sprintf("; Trackless keeps %s out", figure.Thousands(s.Ledger.EntriesAvoided))
	case len(s.Attached()) > 0:
		text += "; Trackless is attached"
	default:
		text += "; no Trackless attached"
	}
	if n := len(s.Missing); n > 0 {
		text += fmt.Sprintf("; %d things could not be read (field missing)", n)
	}
	return text
}
