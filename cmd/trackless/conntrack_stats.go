package main

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/conntrack/summary"
	"github.com/trackless-dns/trackless/conntrack/sysctl"
	"github.com/trackless-dns/trackless/internal/figure"
	"github.com/trackless-dns/trackless/internal/thread"
)

const statsHelp = `Show what is in the connection tracking table: how full it is, protocols and
states, destination ports, NAT, how much of it is DNS and how much never got an
answer, the addresses with the most entries, and the kernel's counters of what it
dropped.

With filters the shares are those of the entries that the filters select; the fill
and the kernel's counters are always those of the whole table.

--netns all counts every network namespace of this host. A sidecar or a pod with
its own rules fills the table of its own pod; the limit is the same for each.`

type statsOptions struct {
	filterFlags
	output string
	netns  cli.NetNS
	top    int
	perCPU bool
}

func conntrackStatsCommand() *cobra.Command {
	var o statsOptions
	cmd := &cobra.Command{
		Use:   "stats",
		Short: "Summarise the table and the kernel's counters",
		Long:  statsHelp,
		Args:  cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return conntrackStats(o, o.set(cmd), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	o.register(cmd)
	cli.OutputFlag(cmd, &o.output)
	o.netns.Register(cmd, "; all counts every one")
	cmd.Flags().IntVar(&o.top, "top", 10, "`length` of the lists")
	cmd.Flags().BoolVar(&o.perCPU, "per-cpu", false, "show the kernel's counters for each CPU too")
	return cmd
}

// tableReport is the JSON of stats; its names do not change.
type tableReport struct {
	Time time.Time `json:"time"`
	// Entries is the kernel's count, expired entries that nobody collected
	// included; Summary.Entries are those that were dumped.
	Entries     uint64  `json:"entries"`
	Limit       uint64  `json:"limit"`
	FillPercent float64 `json:"fill_percent"`
	Buckets     uint64  `json:"buckets"`

	Memory struct {
		sysctl.Memory
		NowBytes   uint64 `json:"now_bytes"`
		LimitBytes uint64 `json:"limit_bytes"`
	} `json:"memory"`

	Filtered     bool                 `json:"filtered"`
	Summary      *summary.Summary     `json:"summary,omitempty"`
	Expectations uint64               `json:"expectations"`
	Counters     []conntrack.Counter  `json:"counters,omitempty"`
	PerCPU       []conntrack.CPUStats `json:"per_cpu,omitempty"`
	// Missing says what could not be read, and why.
	Missing []string `json:"missing,omitempty"`
}

func conntrackStats(o statsOptions, filtered bool, out, errs io.Writer) error {
	f, err := o.filter()
	if err != nil {
		return err
	}
	if err := cli.CheckOutput("conntrack stats", o.output); err != nil {
		return err
	}
	if o.top < 1 {
		return fmt.Errorf("--top %d: the lists have at least one line", o.top)
	}
	if o.netns == "all" {
		return statsOfAllNamespaces(f, o, out, errs)
	}
	return o.netns.Do(func() error {
		r, err := readTable(f, o.top, errs)
		if r == nil {
			return err
		}
		r.Filtered = filtered
		if !o.perCPU {
			r.PerCPU = nil
		}
		if o.output == "json" {
			return errors.Join(cli.WriteJSON(out, r), err)
		}
		return errors.Join(writeTableReport(out, r), err)
	})
}

// readTable reads all there is to know about the table of the calling thread's
// namespace. What cannot be read without privileges is left out and named; then
// the report comes with an error.
func readTable(f conntrack.Filter, top int, errs io.Writer) (*tableReport, error) {
	limits, err := sysctl.ReadLimits("")
	if err != nil {
		return nil, cli.CannotLook(err)
	}
	r := &tableReport{Time: time.Now().UTC(), Entries: limits.Count, Limit: limits.Max, Buckets: limits.Buckets}
	r.FillPercent = figure.Percent(r.Entries, r.Limit)
	r.Memory.Memory = sysctl.ReadMemory("")
	r.Memory.NowBytes = r.Memory.Table(r.Entries, r.Buckets)
	r.Memory.LimitBytes = r.Memory.Table(r.Limit, r.Buckets)

	c, err := conntrack.Dial(nil)
	if err != nil {
		return nil, cli.CannotLook(err)
	}
	defer func() { _ = c.Close() }()

	stats, statsErr := c.Stats()
	if statsErr != nil {
		stats, statsErr = conntrack.ReadStats(thread.Proc)
	}
	if statsErr == nil {
		sum := conntrack.Sum(stats)
		r.Counters, r.PerCPU = sum.Counters(), stats
	} else {
		r.Missing = append(r.Missing, "kernel counters: "+statsErr.Error())
	}

	s, err := summarise(c, f, r.Entries, top, errs)
	if err != nil && s == nil {
		r.Missing = append(r.Missing, "entries: "+err.Error())
		return r, cli.CannotLook(err)
	}
	r.Summary = s
	if err := c.DumpExpectations(func(*conntrack.Expectation) error { r.Expectations++; return nil }); err != nil {
		r.Missing = append(r.Missing, "expectations: "+err.Error())
	}
	return r, err
}

// summarise counts the table, again if it was rebuilt meanwhile. The summary is
// nil if the table could not be read at all.
func summarise(c *conntrack.Conn, f conntrack.Filter, expected uint64, top int, errs io.Writer) (*summary.Summary, error) {
	var established time.Duration
	if settings, err := sysctl.ReadSettings(""); err == nil {
		if v, ok := sysctl.SettingValue(settings, "nf_conntrack_tcp_timeout_established"); ok {
			established = time.Duration(v) * time.Second
		}
	}
	for attempt := 1; ; attempt++ {
		collector := summary.New(established)
		p := cli.StartProgress(errs, "entries read", expected)
		err := c.Dump(f, func(e *conntrack.Entry) error {
			p.Step()
			return collector.Add(e)
		})
		p.Stop()
		switch {
		case err == nil:
			return collector.Summary(top), nil
		case !errors.Is(err, conntrack.ErrInterrupted):
			return nil, err
		case attempt == dumpAttempts:
			return collector.Summary(top), cli.Exit(cli.ExitFailure, fmt.Errorf("gave up after %d attempts, the numbers are near: %w", attempt, err))
		}
		_, _ = fmt.Fprintf(errs, "trackless: %v; reading it again (attempt %d of %d)\n", err, attempt+1, dumpAttempts)
	}
}
