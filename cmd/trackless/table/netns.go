package table

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/conntrack/summary"
	"github.com/trackless-dns/trackless/internal/figure"
	"github.com/trackless-dns/trackless/node/netns"
)

// A namespaceReport is one namespace of the host in the JSON of stats --netns all.
type namespaceReport struct {
	netns.Namespace

	Entries     uint64  `json:"entries"`
	Limit       uint64  `json:"limit"`
	FillPercent float64 `json:"fill_percent"`
	Selected    uint64  `json:"selected"`
	DNS         uint64  `json:"dns"`
	Unreplied   uint64  `json:"unreplied"`
	Error       string  `json:"error,omitempty"`
}

// statsOfAllNamespaces counts the table of every namespace that a process is in
// or that has a name.
func statsOfAllNamespaces(f conntrack.Filter, o statsOptions, out, errs io.Writer) error {
	found, err := netns.Find("/")
	if err != nil {
		return cli.CannotMeasure(err)
	}
	list := make([]namespaceReport, len(found))
	p := cli.Progress(errs).Begin("namespaces counted", uint64(len(list)))
	failed := 0
	var reason error
	for i := range list {
		list[i].Namespace = found[i]
		if err := countNamespace(&list[i], f); err != nil {
			list[i].Error = err.Error()
			reason = err
			failed++
		}
		p.Step()
	}
	p.Stop()
	if failed == len(list) {
		return cli.CannotMeasure(reason)
	}
	slices.SortStableFunc(list, func(a, b namespaceReport) int { return int(b.Entries) - int(a.Entries) })
	if o.output == "json" {
		return cli.WriteJSON(out, list)
	}
	return writeNamespaces(out, list)
}

func countNamespace(r *namespaceReport, f conntrack.Filter) error {
	ns, err := r.Open()
	if err != nil {
		return err
	}
	defer ns.Close()
	return cli.Inside(ns, func() error {
		c, err := conntrack.Dial(nil)
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		entries, limit, err := c.Count()
		if err != nil {
			return err
		}
		r.Entries, r.Limit = uint64(entries), uint64(limit)
		r.FillPercent = figure.Percent(r.Entries, r.Limit)
		if entries == 0 {
			return nil
		}
		collector := summary.New(0)
		if err := c.Dump(f, collector.Add); err != nil && !errors.Is(err, conntrack.ErrInterrupted) {
			return err
		}
		s := collector.Summary(1)
		r.Selected, r.DNS, r.Unreplied = s.Entries, s.DNS.Entries, s.Unreplied
		return nil
	})
}

func writeNamespaces(out io.Writer, list []namespaceReport) error {
	var b bytes.Buffer
	table := cli.TextTable{Header: []string{"NAMESPACE", "ENTRIES", "FILL", "DNS", "UNREPLIED", "PROCESS", "POD"}, Text: 2}
	for _, r := range list {
		who := r.Path
		if r.PID > 0 {
			who = fmt.Sprintf("%s (%d)", r.Process, r.PID)
		}
		if r.Error != "" {
			table.Add(fmt.Sprintf("net:[%d]", r.Inode), "-", "-", "-", "-", who, r.Error)
			continue
		}
		pod := r.PodUID
		if pod == "" {
			pod = "-"
		}
		table.Add(fmt.Sprintf("net:[%d]", r.Inode), figure.Thousands(r.Entries), figure.Fill(r.Entries, r.Limit), figure.Thousands(r.DNS), figure.Thousands(r.Unreplied), who, pod)
	}
	table.Write(&b, cli.TerminalWidth(out))
	_, err := out.Write(b.Bytes())
	return err
}
