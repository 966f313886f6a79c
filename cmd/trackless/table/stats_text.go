package table

import (
	"bytes"
	"fmt"
	"io"
	"net/netip"
	"text/tabwriter"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
	"github.com/trackless-dns/trackless/conntrack/summary"
	"github.com/trackless-dns/trackless/internal/figure"
)

// writeTable writes a report for people.
func writeTable(out io.Writer, r *summary.Table) error {
	var b bytes.Buffer
	fill, perBucket, whenFull := "", fmt.Sprintf("%.1f entries per bucket now", figure.Ratio(r.Entries, r.Buckets)), ""
	if r.Limit > 0 {
		fill = fmt.Sprintf(" (%.1f %%)", r.FillPercent)
		perBucket = fmt.Sprintf("%.1f entries per bucket at the limit", figure.Ratio(r.Limit, r.Buckets))
		whenFull = fmt.Sprintf(", %s at the limit", figure.Bytes(r.Memory.LimitBytes))
	}
	width := cli.TerminalWidth(out)
	cli.WriteLine(&b, width, fmt.Sprintf("%s%s, %s buckets (%s)", figure.Entries(r.Entries, r.Limit), fill, figure.Thousands(r.Buckets), perBucket))
	cli.WriteLine(&b, width, fmt.Sprintf("memory: %s now%s (%d + about %d bytes an entry, %s)",
		figure.Bytes(r.Memory.NowBytes), whenFull, r.Memory.EntryBytes, r.Memory.ExtensionBytes, memorySource(r.Memory.Source)))
	if s := r.Summary; s != nil {
		writeShares(&b, r, s, width)
		writeCounts(&b, s)
	}
	writeCounters(&b, r, width)
	for _, m := range r.Missing {
		fmt.Fprintf(&b, "\nnot shown: %s\n", m)
	}
	_, err := out.Write(b.Bytes())
	return err
}

func memorySource(source string) string {
	switch source {
	case "slabinfo":
		return "measured by /proc/slabinfo"
	case "sysfs":
		return "measured by /sys/kernel/slab"
	}
	return "typical: /proc/slabinfo may be read by root alone"
}

func writeShares(b *bytes.Buffer, r *summary.Table, s *summary.Summary, width int) {
	whose := ""
	if r.Filtered {
		whose = " of those selected"
	}
	fmt.Fprintf(b, "\n%s entries read%s: %s IPv4, %s IPv6\n", figure.Thousands(s.Entries), whose, figure.Thousands(s.IPv4), figure.Thousands(s.IPv6))
	table := cli.TextTable{Text: 1}
	line := func(name string, n uint64, note string) {
		table.Add(name, figure.Thousands(n), fmt.Sprintf("%5.1f %%", figure.Percent(n, s.Entries)), note)
	}
	line("DNS", s.DNS.Entries, fmt.Sprintf("%s UDP, %s TCP; %s without an answer", figure.Thousands(s.DNS.UDP), figure.Thousands(s.DNS.TCP), figure.Thousands(s.DNS.Unreplied)))
	if s.DNS.Reversed > 0 {
		line("DNS, answers first", s.DNS.Reversed, "the query was not tracked and the answer was: NOTRACK is one-sided")
	}
	line("unreplied", s.Unreplied, "evicted first when the table is full")
	line("assured", s.Assured, "never evicted")
	line("source NAT", s.NAT.SNAT+s.NAT.Both, "")
	line("destination NAT", s.NAT.DNAT+s.NAT.Both, "")
	if s.Established.Entries > 0 {
		line("TCP idle > 1 hour", s.Established.IdleHour, "")
		line("TCP idle > 1 day", s.Established.IdleDay, "")
	}
	if s.Helpers > 0 {
		line("with a helper", s.Helpers, fmt.Sprintf("%d expectations", r.Expectations))
	}
	if s.Offloaded > 0 {
		line("offloaded", s.Offloaded, "")
	}
	table.Write(b, width)
}

func writeCounts(b *bytes.Buffer, s *summary.Summary) {
	if s.Entries == 0 {
		return
	}
	section := func(title string, rows func(add func(n uint64, cells ...any))) {
		fmt.Fprintf(b, "\n%s\n", title)
		rows(func(n uint64, cells ...any) {
			fmt.Fprintf(b, "%12s  %5.1f %%  %s", figure.Thousands(n), figure.Percent(n, s.Entries), fmt.Sprintln(cells...))
		})
	}
	section("PROTOCOL AND STATE", func(add func(uint64, ...any)) {
		for _, c := range s.States {
			add(c.Entries, c.Protocol, c.State)
		}
	})
	section("DESTINATION PORT", func(add func(uint64, ...any)) {
		for _, c := range s.DestinationPorts {
			add(c.Entries, fmt.Sprintf("%s/%d", c.Protocol, c.Port))
		}
	})
	for _, list := range []struct {
		title string
		list  []summary.Counted
	}{{"SOURCE", s.Sources}, {"DESTINATION", s.Destinations}} {
		section(list.title, func(add func(uint64, ...any)) {
			for _, c := range list.list {
				add(c.Entries, c.Address)
			}
		})
	}
	if len(s.Services) > 0 {
		section("SERVICE (destination NAT)", func(add func(uint64, ...any)) {
			for _, c := range s.Services {
				add(c.Entries, c.Protocol, c.Address)
			}
		})
	}
	if len(s.DNS.Servers) > 0 {
		section("DNS SERVER", func(add func(uint64, ...any)) {
			for _, c := range s.DNS.Servers {
				add(c.Entries, dnsServer(c.Asked, c.Address), fmt.Sprintf("(%s unreplied)", figure.Thousands(c.Unreplied)))
			}
		})
	}
	if s.Uncertainty > 0 {
		fmt.Fprintf(b, "\nThere are too many addresses to count each: counts by address may be up to %s too low.\n", figure.Thousands(s.Uncertainty))
	}
}

func dnsServer(asked, server netip.Addr) string {
	if asked == server {
		return asked.String()
	}
	return asked.String() + " -> " + server.String()
}

func writeCounters(b *bytes.Buffer, r *summary.Table, width int) {
	if len(r.Counters) == 0 {
		return
	}
	fmt.Fprintf(b, "\nKERNEL COUNTERS since this namespace was made (32 bits on each CPU)\n")
	table := cli.TextTable{Text: 1, Indent: "  "}
	for _, c := range r.Counters {
		table.Add(c.Name, figure.Thousands(c.Value), c.Meaning)
	}
	table.Write(b, width)
	if len(r.PerCPU) == 0 {
		return
	}
	fmt.Fprintln(b)
	tw := tabwriter.NewWriter(b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(tw, "  CPU\t")
	for _, c := range r.Counters {
		fmt.Fprintf(tw, "%s\t", c.Name)
	}
	fmt.Fprintln(tw)
	for i := range r.PerCPU {
		fmt.Fprintf(tw, "  %d\t", r.PerCPU[i].CPU)
		for _, c := range r.PerCPU[i].Counters() {
			fmt.Fprintf(tw, "%d\t", c.Value)
		}
		fmt.Fprintln(tw)
	}
	_ = tw.Flush()
}
