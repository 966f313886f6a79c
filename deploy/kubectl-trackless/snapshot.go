package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
)

// A brief is what the summary needs of a snapshot.
type brief struct {
	Table struct {
		Entries, Limit uint64
		DNSPercent     *float64 `json:"dns_percent"`
	}
	NewFlows *struct {
		PerSecond float64 `json:"per_second"`
	} `json:"new_flows"`
	Missing []string
}

func snapshotCommand(o *options) *cobra.Command {
	var window time.Duration
	cmd := &cobra.Command{
		Use:   "snapshot DIRECTORY",
		Short: "Write a snapshot of each node to a directory, to compare later",
		Long: `Run "trackless snapshot" on nodes, at the same time on as many as --parallel allows, and
write DIRECTORY/NODE.json for each. "kubectl trackless compare" compares two directories.`,
		Example: `  kubectl trackless snapshot --all-nodes before
  kubectl trackless snapshot --all-nodes after
  kubectl trackless compare before after`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			q := question{
				args:         []string{"snapshot", "--window", window.String(), "-o", "-"},
				capabilities: []corev1.Capability{"NET_ADMIN"},
			}
			if err := o.fits("--window", window); err != nil {
				return err
			}
			if err := newDirectory(args[0]); err != nil {
				return err
			}
			answers, err := o.collect(cmd, func(string) question { return q })
			if err != nil {
				return err
			}
			if err := save(args[0], answers); err != nil {
				return err
			}
			return o.write(cmd, q.verb(), answers, briefs(args[0]))
		},
	}
	cmd.Flags().DurationVar(&window, "window", 10*time.Second, "how `long` each node is watched")
	return cmd
}

// newDirectory makes the directory. One with snapshots is refused: where a node does
// not answer, its old one would pass for a new one.
func newDirectory(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make the directory for the snapshots: %w", err)
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("read the directory for the snapshots: %w", err)
	}
	for _, f := range files {
		if filepath.Ext(f.Name()) == ".json" {
			return fmt.Errorf("the directory %s already has snapshots, such as %s: name a new one", dir, f.Name())
		}
	}
	return nil
}

// save writes the snapshots that there are.
func save(dir string, answers []answer) error {
	for _, a := range answers {
		if a.Report == nil {
			continue
		}
		var b bytes.Buffer
		if err := json.Indent(&b, a.Report, "", "  "); err != nil {
			return fmt.Errorf("snapshot of node %s: %w", a.Node, err)
		}
		b.WriteByte('\n')
		if err := os.WriteFile(snapshotFile(dir, a.Node), b.Bytes(), 0o644); err != nil {
			return fmt.Errorf("save the snapshot of node %s: %w", a.Node, err)
		}
	}
	return nil
}

func snapshotFile(dir, node string) string { return filepath.Join(dir, node+".json") }

// briefs is the view of snapshot.
func briefs(dir string) view {
	return func(answers []answer) (table, func(b *bytes.Buffer)) {
		t := table{header: []string{"NODE", "ENTRIES", "FULL", "DNS", "NEW/S", "NOT READ", "FILE", "THROUGH"}}
		reports, order := read(answers, func(r brief) float64 { return fill(r.Table.Entries, r.Table.Limit) })
		for _, i := range order {
			a, r := answers[i], reports[i]
			row := []string{a.Node, "-", "-", "-", "-", "-", "-", a.via()}
			if a.Report != nil {
				row[1], row[2], row[5], row[6] = thousands(r.Table.Entries), share(r.Table.Entries, r.Table.Limit), fmt.Sprint(len(r.Missing)), snapshotFile(dir, a.Node)
				if p := r.Table.DNSPercent; p != nil {
					row[3] = fmt.Sprintf("%.1f %%", *p)
				}
				if r.NewFlows != nil {
					row[4] = fmt.Sprintf("%.0f", r.NewFlows.PerSecond)
				}
			}
			t.rows = append(t.rows, row)
		}
		return t, func(*bytes.Buffer) {}
	}
}

// A comparison is what `trackless compare` says.
type comparison struct {
	Verdict  struct{ Outcome, Sentence string }
	Warnings []struct{ Text string }
}

// maxFiles is what fits into the annotations of a pod, with room for the rest.
const maxFiles = 240 << 10

func compareCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "compare BEFORE AFTER",
		Short: "Say what changed on nodes between two directories of snapshots",
		Long: `Compare the snapshots of nodes in two directories of "kubectl trackless snapshot". Nodes
are those with a file in both; --node names some of them. "trackless compare" runs in a
pod on each node, which has no capability and not the node's network.

On Linux "trackless compare before/NODE.json after/NODE.json --html report.html" does it
without a pod, and draws a page.`,
		Example: `  kubectl trackless compare before after`,
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.allNodes || o.selector != "" {
				return errors.New("compare takes the nodes that both directories have; --node names some of them")
			}
			o.via = viaPod // exec cannot hand over two files
			if len(o.nodes) == 0 {
				var err error
				if o.nodes, err = inBoth(args[0], args[1]); err != nil {
					return err
				}
			}
			questions := map[string]question{}
			for _, node := range o.nodes {
				q, err := compareQuestion(args[0], args[1], node)
				if err != nil {
					return err
				}
				questions[node] = q
			}
			answers, err := o.collect(cmd, func(node string) question { return questions[node] })
			if err != nil {
				return err
			}
			return o.write(cmd, "trackless compare", answers, comparisons)
		},
	}
}

// inBoth lists the nodes with a snapshot in both directories.
func inBoth(before, after string) ([]string, error) {
	files, err := os.ReadDir(before)
	if err != nil {
		return nil, fmt.Errorf("read the snapshots from before: %w", err)
	}
	var nodes []string
	for _, f := range files {
		node, isSnapshot := strings.CutSuffix(f.Name(), ".json")
		if _, err := os.Stat(snapshotFile(after, node)); isSnapshot && err == nil {
			nodes = append(nodes, node)
		} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("read the snapshots from after: %w", err)
		}
	}
	if len(nodes) == 0 {
		return nil, fmt.Errorf("no node has a file NODE.json in both %s and %s: `kubectl trackless snapshot` writes them", before, after)
	}
	slices.Sort(nodes)
	return nodes, nil
}

func compareQuestion(before, after, node string) (question, error) {
	q := question{args: []string{"compare", filesDir + "/before", filesDir + "/after", "-o", "json"}, files: map[string][]byte{}}
	size := 0
	for name, dir := range map[string]string{"before": before, "after": after} {
		text, err := os.ReadFile(snapshotFile(dir, node))
		if err != nil {
			return q, fmt.Errorf("read the snapshot of node %s: %w", node, err)
		}
		var short bytes.Buffer
		if err := json.Compact(&short, text); err != nil {
			return q, fmt.Errorf("%s is no snapshot: %w", snapshotFile(dir, node), err)
		}
		q.files[name] = short.Bytes()
		size += short.Len()
	}
	if size > maxFiles {
		return q, fmt.Errorf("the snapshots of node %s have %d KiB, and a pod can be given %d: take them with a shorter --window, or compare them on Linux by `trackless compare`", node, size>>10, maxFiles>>10)
	}
	return q, nil
}

// comparisons is the view of compare.
func comparisons(answers []answer) (table, func(b *bytes.Buffer)) {
	t := table{header: []string{"NODE", "OUTCOME", "SENTENCE"}}
	reports, order := read(answers, func(comparison) float64 { return 0 })
	for _, i := range order {
		row := []string{answers[i].Node, "-", "-"}
		if answers[i].Report != nil {
			row[1], row[2] = reports[i].Verdict.Outcome, reports[i].Verdict.Sentence
		}
		t.rows = append(t.rows, row)
	}
	return t, func(b *bytes.Buffer) {
		for _, i := range order {
			for n, w := range reports[i].Warnings {
				if n == 0 {
					fmt.Fprintf(b, "\n== %s\n", answers[i].Node)
				}
				fmt.Fprintf(b, "warning  %s\n", w.Text)
			}
		}
	}
}
