package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
)

// A tableReport is what `trackless conntrack stats` says of a table.
type tableReport struct {
	Entries, Limit uint64
	Summary        *struct {
		Entries, Unreplied uint64
		DNS                struct{ Entries, Unreplied uint64 }
		States             []struct {
			Protocol, State string
			Entries         uint64
		}
		Ports []struct {
			Protocol string
			Port     uint16
			Entries  uint64
		} `json:"destination_ports"`
	}
	Counters []struct {
		Name, Meaning string
		Value         uint64
		Loss          bool
	}
	Missing []string
}

func statsCommand(o *options) *cobra.Command {
	var top int
	cmd := &cobra.Command{
		Use:     "stats",
		Short:   "Show how full the tables of nodes are, and of what",
		Example: `  kubectl trackless stats --all-nodes`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.run(cmd, question{
				args:         []string{"conntrack", "stats", "-o", "json", "--top", strconv.Itoa(top)},
				capabilities: []corev1.Capability{"NET_ADMIN"},
			}, tables)
		},
	}
	cmd.Flags().IntVar(&top, "top", 5, "`length` of the lists")
	return cmd
}

// tables is the view of stats, the fullest table first.
func tables(answers []answer) (table, func(b *bytes.Buffer)) {
	t := table{header: []string{"NODE", "ENTRIES", "LIMIT", "FULL", "DNS", "UNREPLIED", "LOST", "THROUGH"}}
	reports, order := read(answers, func(r tableReport) float64 { return fill(r.Entries, r.Limit) })
	for _, i := range order {
		a, r := answers[i], reports[i]
		row := []string{a.Node, "-", "-", "-", "-", "-", "-", a.via()}
		if a.Report != nil {
			row[1], row[2], row[3] = thousands(r.Entries), thousands(r.Limit), share(r.Entries, r.Limit)
			if s := r.Summary; s != nil {
				row[4], row[5] = share(s.DNS.Entries, s.Entries), share(s.Unreplied, s.Entries)
			}
			row[6] = thousands(r.lost())
		}
		t.rows = append(t.rows, row)
	}
	return t, func(b *bytes.Buffer) {
		for _, i := range order {
			if answers[i].Report != nil {
				reports[i].writeTo(b, answers[i].Node)
			}
		}
	}
}

// lost is what the kernel dropped. `drop` includes `insert_failed`, so the largest of
// the counters is taken instead of their sum.
func (r tableReport) lost() uint64 {
	var most uint64
	for _, c := range r.Counters {
		if c.Loss {
			most = max(most, c.Value)
		}
	}
	return most
}

func (r tableReport) writeTo(b *bytes.Buffer, node string) {
	fmt.Fprintf(b, "\n== %s\n", node)
	if s := r.Summary; s != nil {
		for _, one := range s.States {
			fmt.Fprintf(b, "%10s  %s %s\n", thousands(one.Entries), one.Protocol, one.State)
		}
		for _, one := range s.Ports {
			fmt.Fprintf(b, "%10s  to port %d %s\n", thousands(one.Entries), one.Port, one.Protocol)
		}
	}
	for _, c := range r.Counters {
		if c.Loss && c.Value > 0 {
			fmt.Fprintf(b, "%10s  %s: %s\n", thousands(c.Value), c.Name, c.Meaning)
		}
	}
	for _, m := range r.Missing {
		fmt.Fprintf(b, "not seen  %s\n", m)
	}
}

// A groupReport is what `conntrack top --once` and `dns top --once` say.
type groupReport struct {
	Entries, Limit uint64
	Seconds        float64
	Avoided        *uint64 `json:"dns_entries_avoided"`
	Total          group
	Groups         []group
	Notes          []string
}

// A group is a pod, a Service, a name and so on. The first four are of entries, the
// others of queries.
type group struct {
	Name                         string
	Entries, Unreplied, DNS, New uint64
	Queries                      uint64
	Cached                       *uint64
}

func topCommand(o *options) *cobra.Command {
	var by string
	var interval time.Duration
	var top int
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Show who has the entries in the tables of nodes",
		Long: `Run "trackless conntrack top --once" on nodes, and add the groups up. A debug pod also
reads the names of the folders in the node's /var/log/pods, which are those of pods.`,
		Example: `  kubectl trackless top --all-nodes
  kubectl trackless top -l pool=web --by service`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.fits("--interval", interval); err != nil {
				return err
			}
			return o.run(cmd, question{
				args:         []string{"conntrack", "top", "--once", "-o", "json", "--by", by, "--interval", interval.String(), "--top", rowsFor(top)},
				capabilities: []corev1.Capability{"NET_ADMIN", "SYS_ADMIN", "SYS_PTRACE"}, // network namespaces are whose addresses are whose
				hostPID:      true, podLogs: true,
			}, holders(top))
		},
	}
	cmd.Flags().StringVar(&by, "by", "pod", "`group`: pod, namespace, service, destination, protocol or state")
	cmd.Flags().DurationVar(&interval, "interval", 2*time.Second, "`time` between the two readings of a table")
	cmd.Flags().IntVar(&top, "top", 20, "`number` of groups")
	return cmd
}

// rowsFor is how many groups a node is asked for. It is more than are shown, since a
// group that is large on one node may be small on another.
func rowsFor(top int) string { return strconv.Itoa(max(top, 100)) }

// holders is the view of top.
func holders(top int) view {
	return func(answers []answer) (table, func(b *bytes.Buffer)) {
		t := table{header: []string{"NODE", "ENTRIES", "FULL", "DNS", "NEW/S", "DNS AVOIDED", "MOST", "THROUGH"}}
		reports, order := read(answers, func(r groupReport) float64 { return fill(r.Entries, r.Limit) })
		for _, i := range order {
			a, r := answers[i], reports[i]
			row := []string{a.Node, "-", "-", "-", "-", "-", "-", a.via()}
			if a.Report != nil {
				row[1], row[2], row[3], row[4] = thousands(r.Entries), share(r.Entries, r.Limit), share(r.Total.DNS, r.Total.Entries), rate(r.Total.New, r.Seconds)
				if r.Avoided != nil {
					row[5] = thousands(*r.Avoided)
				}
				row[6] = r.most()
			}
			t.rows = append(t.rows, row)
		}
		return t, func(b *bytes.Buffer) {
			details := table{header: []string{"NAME", "ENTRIES", "NEW/S", "UNREPLIED", "DNS", "NODE"}}
			for _, g := range merge(answers, reports, top, func(g group) uint64 { return g.Entries }) {
				details.rows = append(details.rows, []string{
					g.Name, thousands(g.Entries), fmt.Sprintf("%.0f", g.newPerSecond), thousands(g.Unreplied), thousands(g.DNS), g.where(),
				})
			}
			writeDetails(b, details, answers, reports)
		}
	}
}

func dnsCommand(o *options) *cobra.Command {
	var by string
	var interval time.Duration
	var top int
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Count the queries that Trackless is asked on nodes",
		Long: `Run "trackless dns top --once" on nodes, and add the groups up. A running Trackless
counts; nodes without one have no answer, and no debug pod is made there.`,
		Example: `  kubectl trackless dns top --all-nodes
  kubectl trackless dns top --node n1 --by name --interval 1m`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.fits("--interval", interval); err != nil {
				return err
			}
			return o.run(cmd, question{
				args:       []string{"dns", "top", "--once", "-o", "json", "--by", by, "--interval", interval.String(), "--top", rowsFor(top)},
				ofInstance: true,
			}, askers(top))
		},
	}
	cmd.Flags().StringVar(&by, "by", "pod", "`group`: pod, namespace, name, zone, type, rcode, transport or tier")
	cmd.Flags().DurationVar(&interval, "interval", 10*time.Second, "`time` for which queries are counted")
	cmd.Flags().IntVar(&top, "top", 20, "`number` of groups")
	dns := &cobra.Command{
		Use: "dns", Short: "Show what the pods of nodes ask", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	dns.AddCommand(cmd)
	return dns
}

// askers is the view of dns top.
func askers(top int) view {
	return func(answers []answer) (table, func(b *bytes.Buffer)) {
		t := table{header: []string{"NODE", "QUERIES", "QUERIES/S", "CACHED", "MOST", "THROUGH"}}
		reports, order := read(answers, func(r groupReport) float64 { return float64(r.Total.Queries) })
		for _, i := range order {
			a, r := answers[i], reports[i]
			row := []string{a.Node, "-", "-", "-", "-", a.via()}
			if a.Report != nil {
				row[1], row[2], row[3], row[4] = thousands(r.Total.Queries), rate(r.Total.Queries, r.Seconds), r.Total.cached(), r.most()
			}
			t.rows = append(t.rows, row)
		}
		return t, func(b *bytes.Buffer) {
			details := table{header: []string{"NAME", "QUERIES", "CACHED", "NODE"}}
			for _, g := range merge(answers, reports, top, func(g group) uint64 { return g.Queries }) {
				details.rows = append(details.rows, []string{g.Name, thousands(g.Queries), g.cached(), g.where()})
			}
			writeDetails(b, details, answers, reports)
		}
	}
}

func (g group) cached() string {
	if g.Cached == nil {
		return "-"
	}
	return share(*g.Cached, g.Queries)
}

// most is the largest group that has a name.
func (r groupReport) most() string {
	for _, g := range r.Groups {
		if g.Name != restGroup {
			return g.Name
		}
	}
	return "-"
}

// restGroup is the group of those that are not listed.
const restGroup = "(rest)"

// A sum is a group over all nodes.
type sum struct {
	group
	newPerSecond float64
	nodes        []string
}

// where names the node, or says how many there are.
func (s sum) where() string {
	if len(s.nodes) == 1 {
		return s.nodes[0]
	}
	return nodeCount(len(s.nodes))
}

// merge adds the groups of nodes up, and returns the largest; what is not listed
// comes last, in one group.
func merge(answers []answer, reports []groupReport, top int, size func(group) uint64) []*sum {
	byName := map[string]*sum{}
	var list []*sum
	for i, r := range reports {
		for _, g := range r.Groups {
			s := byName[g.Name]
			if s == nil {
				s = &sum{group: group{Name: g.Name}}
				byName[g.Name] = s
				list = append(list, s)
			}
			s.add(g)
			if r.Seconds > 0 {
				s.newPerSecond += float64(g.New) / r.Seconds
			}
			s.nodes = append(s.nodes, answers[i].Node)
		}
	}
	slices.SortFunc(list, func(a, b *sum) int {
		return cmp.Or(boolCompare(a.Name == restGroup, b.Name == restGroup), cmp.Compare(size(b.group), size(a.group)), cmp.Compare(a.Name, b.Name))
	})
	listed := len(list)
	if byName[restGroup] != nil {
		listed--
	}
	if listed <= top {
		return list
	}
	last := byName[restGroup]
	if last == nil {
		last = &sum{group: group{Name: restGroup}}
	}
	for _, s := range list[top:listed] {
		last.add(s.group)
		last.newPerSecond += s.newPerSecond
		last.nodes = append(last.nodes, s.nodes...)
	}
	slices.Sort(last.nodes)
	last.nodes = slices.Compact(last.nodes)
	return append(list[:top], last)
}

func boolCompare(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

func (s *sum) add(g group) {
	s.Entries += g.Entries
	s.Unreplied += g.Unreplied
	s.DNS += g.DNS
	s.New += g.New
	s.Queries += g.Queries
	if g.Cached != nil {
		cached := *g.Cached
		if s.Cached != nil {
			cached += *s.Cached
		}
		s.Cached = &cached
	}
}

func writeDetails(b *bytes.Buffer, details table, answers []answer, reports []groupReport) {
	if len(details.rows) > 0 {
		b.WriteByte('\n')
		var text bytes.Buffer
		details.writeTo(&text)
		b.Write(text.Bytes())
	}
	for i, r := range reports {
		for _, note := range r.Notes {
			fmt.Fprintf(b, "%s: %s\n", answers[i].Node, note)
		}
	}
}

func fill(entries, limit uint64) float64 {
	if limit == 0 {
		return 0
	}
	return float64(entries) / float64(limit)
}

func rate(n uint64, seconds float64) string {
	if seconds <= 0 {
		return "-"
	}
	return fmt.Sprintf("%.0f", float64(n)/seconds)
}

// read decodes the reports, and orders nodes by size, the largest first.
func read[R any](answers []answer, size func(R) float64) (reports []R, order []int) {
	reports = decodeAll[R](answers)
	for i := range answers {
		order = append(order, i)
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(size(reports[b]), size(reports[a])) })
	return reports, order
}

// decodeAll reads the reports. A node whose report is another one becomes a node that
// was not measured, and the others stay.
func decodeAll[R any](answers []answer) []R {
	reports := make([]R, len(answers))
	for i := range answers {
		a := &answers[i]
		if a.Report == nil {
			continue
		}
		if err := json.Unmarshal(a.Report, &reports[i]); err != nil {
			var none R
			reports[i], a.Report, a.Status = none, nil, exitCannotMeasure
			a.Error = fmt.Sprintf("its report has another form: %v; is its Trackless of another version? --via pod asks with version %s", err, version)
		}
	}
	return reports
}
