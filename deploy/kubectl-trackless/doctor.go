package main

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
)

const doctorHelp = `Run "trackless doctor" on nodes: the connection tracking table, DNS, and what bears on
them. The summary has the nodes with the worst findings first.

A debug pod may also enter the network namespaces of pods, and asks their DNS servers as
they do; the pod of Trackless may not. So --via pod finds more on nodes that have both.`

// A finding is one of `trackless doctor`.
type finding struct {
	ID       string
	Severity string
	Title    string
	Evidence []string
	Remedy   []string
	Memory   string
	Risk     string
	Symptoms []string
}

// A diagnosis is the report of `trackless doctor`.
type diagnosis struct {
	Worst          string
	Findings       []finding
	Missing        []string
	Entries, Limit uint64
}

func doctorCommand(o *options) *cobra.Command {
	var interval time.Duration
	var ask string
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Find what is wrong with the connection tracking tables and DNS of nodes",
		Long:  doctorHelp,
		Example: `  kubectl trackless doctor --all-nodes
  kubectl trackless doctor --node n1 --node n2 -o json
  kubectl trackless doctor -l pool=web --via pod`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.fits("--interval", interval); err != nil {
				return err
			}
			return o.run(cmd, doctorQuestion(interval, ask), diagnoses)
		},
	}
	cmd.Flags().DurationVar(&interval, "interval", 2*time.Second, "`time` between the two readings of a table")
	cmd.Flags().StringVar(&ask, "ask", "example.org", "`name` outside of the cluster to ask a pod's DNS servers; off: ask no server anything")
	return cmd
}

func doctorQuestion(interval time.Duration, ask string) question {
	q := question{
		args:         []string{"doctor", "-o", "json", "--interval", interval.String(), "--ask", ask},
		capabilities: []corev1.Capability{"NET_ADMIN", "SYS_PTRACE"}, // the table; the configuration of kube-proxy
		hostPID:      true,
	}
	if ask != "off" {
		q.capabilities = append(q.capabilities, "SYS_ADMIN") // to enter a pod's network namespace
	}
	return q
}

// diagnoses is the view of doctor.
func diagnoses(answers []answer) (table, func(b *bytes.Buffer)) {
	t := table{header: []string{"NODE", "WORST", "CRITICAL", "WARNINGS", "ENTRIES", "OF LIMIT", "THROUGH", "FINDINGS"}}
	reports := decodeAll[diagnosis](answers)
	order := worstFirst(answers, reports)
	for _, i := range order {
		a, r := answers[i], reports[i]
		if a.Report == nil {
			t.rows = append(t.rows, []string{a.Node, "not measured", "-", "-", "-", "-", a.via(), "-"})
			continue
		}
		count := map[string]int{}
		var ids []string
		for _, f := range r.Findings {
			count[f.Severity]++
			ids = append(ids, f.ID)
		}
		t.rows = append(t.rows, []string{
			a.Node, r.Worst, strconv.Itoa(count["critical"]), strconv.Itoa(count["warning"]),
			thousands(r.Entries), share(r.Entries, r.Limit), a.via(), cmp.Or(strings.Join(ids, " "), "-"),
		})
	}
	return t, func(b *bytes.Buffer) {
		for _, i := range order {
			if answers[i].Report != nil {
				reports[i].writeTo(b, answers[i].Node)
			}
		}
	}
}

// worstFirst orders nodes by their worst finding. Nodes without an answer follow the
// critical ones, since nobody knows what is wrong there.
func worstFirst(answers []answer, reports []diagnosis) []int {
	rank := func(i int) int {
		if answers[i].Report == nil {
			return 1
		}
		return map[string]int{"critical": 0, "warning": 2, "info": 3, "ok": 4}[reports[i].Worst]
	}
	order := make([]int, len(answers))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(rank(a), rank(b)) })
	return order
}

// writeTo writes the details of a node, as `trackless doctor` writes them.
func (r diagnosis) writeTo(b *bytes.Buffer, node string) {
	fmt.Fprintf(b, "\n== %s\n", node)
	for _, f := range r.Findings {
		fmt.Fprintf(b, "%-8s  %s: %s\n", strings.ToUpper(f.Severity), f.ID, f.Title)
		for _, part := range []struct {
			name  string
			lines []string
		}{
			{"seen", f.Evidence}, {"do", f.Remedy}, {"cost", []string{f.Memory}}, {"risk", []string{f.Risk}},
			{"feels", []string{strings.Join(f.Symptoms, ", ")}},
		} {
			for i, line := range part.lines {
				name := part.name
				if i > 0 {
					name = ""
				}
				if line != "" {
					fmt.Fprintf(b, "%-10s%-6s%s\n", "", name, line)
				}
			}
		}
	}
	if len(r.Findings) == 0 {
		fmt.Fprintf(b, "Nothing found: %s of %s entries.\n", thousands(r.Entries), thousands(r.Limit))
	}
	for _, m := range r.Missing {
		fmt.Fprintf(b, "not seen  %s\n", m)
	}
}
