package main

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
)

// A ruleReport is what `trackless rules show` says.
type ruleReport struct {
	Instances []struct {
		Table, Backend, State, Reason string
		Endpoints                     []struct {
			Address, Protocol string
			Port              uint16
			Untracked         bool
		}
	}
	Failover *struct{ Intact bool }
	Foreign  []struct{ Family, Table, Chain, Rule, Meaning string }
	Notes    []string
}

func rulesCommand(o *options) *cobra.Command {
	rules := &cobra.Command{
		Use: "rules", Short: "Show the rules of Trackless on nodes", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	rules.AddCommand(&cobra.Command{
		Use:     "show",
		Short:   "Show the rules of Trackless on nodes, and whose rules contradict them",
		Example: `  kubectl trackless rules show --all-nodes`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.run(cmd, question{
				args:         []string{"rules", "show", "-o", "json"},
				capabilities: []corev1.Capability{"NET_ADMIN"},
			}, ruleViews)
		},
	})
	return rules
}

// ruleViews is the view of rules show.
func ruleViews(answers []answer) (table, func(b *bytes.Buffer)) {
	t := table{header: []string{"NODE", "INSTANCES", "STATE", "BACKEND", "UNTRACKED", "FAILOVER", "CONFLICTS", "THROUGH"}}
	reports, order := read(answers, func(r ruleReport) float64 { return float64(len(r.Foreign)) })
	for _, i := range order {
		a, r := answers[i], reports[i]
		if a.Report == nil {
			t.rows = append(t.rows, []string{a.Node, "-", "-", "-", "-", "-", "-", a.via()})
			continue
		}
		var states, backends []string
		untracked := 0
		for _, instance := range r.Instances {
			states, backends = append(states, instance.State), append(backends, instance.Backend)
			for _, e := range instance.Endpoints {
				if e.Untracked {
					untracked++
				}
			}
		}
		failover := "-"
		if r.Failover != nil {
			failover = map[bool]string{true: "intact", false: "changed"}[r.Failover.Intact]
		}
		t.rows = append(t.rows, []string{
			a.Node, strconv.Itoa(len(r.Instances)), listed(states), listed(backends), strconv.Itoa(untracked), failover, strconv.Itoa(len(r.Foreign)), a.via(),
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

// listed joins words, each once.
func listed(words []string) string {
	return cmp.Or(strings.Join(slices.Compact(slices.Sorted(slices.Values(words))), ","), "-")
}

func (r ruleReport) writeTo(b *bytes.Buffer, node string) {
	fmt.Fprintf(b, "\n== %s\n", node)
	if len(r.Instances) == 0 {
		b.WriteString("No rules of Trackless.\n")
	}
	for _, instance := range r.Instances {
		fmt.Fprintf(b, "table %s (%s): %s", instance.Table, instance.Backend, instance.State)
		if instance.Reason != "" {
			fmt.Fprintf(b, ": %s", instance.Reason)
		}
		b.WriteByte('\n')
		for _, e := range instance.Endpoints {
			fmt.Fprintf(b, "  %s port %d %s: %s\n", e.Address, e.Port, e.Protocol, map[bool]string{true: "untracked", false: "tracked"}[e.Untracked])
		}
	}
	for _, f := range r.Foreign {
		fmt.Fprintf(b, "conflict  %s %s %s: %s: %s\n", f.Family, f.Table, f.Chain, f.Rule, f.Meaning)
	}
	for _, note := range r.Notes {
		fmt.Fprintf(b, "note      %s\n", note)
	}
}
