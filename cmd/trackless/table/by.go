package table

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
	"github.com/trackless-dns/trackless/cmd/trackless/top"
	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/conntrack/groups"
	"github.com/trackless-dns/trackless/internal/figure"
	"github.com/trackless-dns/trackless/node/who"
)

// A groupReport is a table by groups, in the JSON of `stats --by` and `top --once`. Its
// names do not change.
type groupReport struct {
	Time    time.Time `json:"time"`
	By      string    `json:"by"`
	Entries uint64    `json:"entries"` // the kernel's count
	Limit   uint64    `json:"limit"`
	// Seconds are between the two readings of which New is the difference.
	Seconds float64 `json:"seconds,omitempty"`
	// Avoided are the entries that the instances of Trackless here keep out of the table,
	// nil where there are none.
	Avoided *uint64       `json:"dns_entries_avoided,omitempty"`
	Total   groups.Counts `json:"total"`
	Groups  []groups.Row  `json:"groups"`

	PodsFrom     string   `json:"pods_from"`
	ServicesFrom string   `json:"services_from"`
	Notes        []string `json:"notes,omitempty"`
}

func newGroupReport(by groups.By, entries, limit uint64, c *groups.Collector, found *who.Found, length int) *groupReport {
	return &groupReport{
		Time: time.Now().UTC().Truncate(time.Millisecond), By: by.String(), Entries: entries, Limit: limit,
		Total: c.Total(), Groups: groups.Top(c.Rows(by), length),
		PodsFrom: found.Pods, ServicesFrom: found.Services, Notes: found.Notes,
	}
}

// statsBy shows the table by groups.
func statsBy(ctx context.Context, f conntrack.Filter, o statsOptions, out, errs io.Writer) error {
	by, err := groups.Parse(o.by)
	if err != nil {
		return fmt.Errorf("--by %w", err)
	}
	if o.perCPU {
		return errors.New("--per-cpu and --by exclude each other: the kernel's counters are those of the whole table")
	}
	if err := cli.CheckRoot(o.names.Root); err != nil {
		return err
	}
	return o.netns.Do(func() error {
		c, err := conntrack.Dial(nil)
		if err != nil {
			return cli.CannotMeasure(err)
		}
		defer func() { _ = c.Close() }()
		entries, limit, err := c.Count()
		if err != nil {
			return cli.CannotMeasure(err)
		}
		found := o.names.Find(ctx)
		reading := groups.Reading{Book: found.Book, By: []groups.By{by}, Filter: f, Expected: uint64(entries), Progress: cli.Progress(errs)}
		collector, err := reading.Do(ctx, c)
		err = cli.CannotMeasure(err)
		if collector == nil {
			return err
		}
		r := newGroupReport(by, uint64(entries), uint64(limit), collector, found, o.top)
		if o.output == "json" {
			return errors.Join(cli.WriteJSON(out, r), err)
		}
		return errors.Join(writeGroups(out, errs, r, by), err)
	})
}

// writeGroups writes a report for people.
func writeGroups(out, errs io.Writer, r *groupReport, by groups.By) error {
	width := cli.TerminalWidth(out)
	var b bytes.Buffer
	fill := ""
	if r.Limit > 0 {
		fill = " (" + figure.Fill(r.Entries, r.Limit) + ")"
	}
	line := fmt.Sprintf("%s%s, %s read", figure.Entries(r.Entries, r.Limit), fill, figure.Thousands(r.Total.Entries))
	if r.Avoided != nil {
		line += fmt.Sprintf("; %s DNS entries avoided", figure.Thousands(*r.Avoided))
	}
	cli.WriteLine(&b, width, line)
	if by != groups.Protocol && by != groups.State {
		cli.WriteLine(&b, width, namesFrom(r.PodsFrom, r.ServicesFrom))
		if r.PodsFrom == "" && by != groups.Service {
			cli.WriteNotes(errs, r.Notes)
		}
	}
	b.WriteByte('\n')
	t := top.Table{By: by, Rows: r.Groups, Limit: r.Limit, Per: time.Duration(r.Seconds * float64(time.Second))}
	for _, line := range t.Lines(width) {
		b.WriteString(line + "\n")
	}
	_, err := out.Write(b.Bytes())
	return err
}
