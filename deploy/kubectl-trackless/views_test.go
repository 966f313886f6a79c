package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
)

// What every verb runs on nodes, with which capabilities where there is no pod of
// ours, and its text. n1 has our pod, n2 is asked by a debug pod, n3 fails.
func TestVerbs(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, report  string
		args, command string
		capabilities  string
		instance      bool // no debug pod has an answer
	}{
		{"stats", "stats.json", "stats", "conntrack stats -o json --top 5", "NET_ADMIN", false},
		{"top", "top.json", "top --top 2", "conntrack top --once -o json --by pod --interval 2s --top 100", "NET_ADMIN SYS_ADMIN SYS_PTRACE", false},
		{"dnstop", "dnstop.json", "dns top --by name", "dns top --once -o json --by name --interval 10s --top 100", "", true},
		{"rules", "rules.json", "rules show", "rules show -o json", "NET_ADMIN", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			text, err := os.ReadFile(filepath.Join("testdata", test.report))
			if err != nil {
				t.Fatal(err)
			}
			s := newServer(t, func(node string, _ []string) output {
				if node == "n3" {
					return output{"", "trackless: refused", 1}
				}
				return output{string(text), "", 0}
			}, "n1", "n2", "n3")
			s.ours = []corev1.Pod{ourPod("kube-system", "trackless-a", "n1"), ourPod("kube-system", "trackless-c", "n3")}
			status, out, errs := s.kubectl(t.Context(), t, append(strings.Fields(test.args), "--all-nodes")...)
			if status != exitCannotMeasure || !strings.Contains(errs, "not measured") {
				t.Errorf("status %d, %s", status, errs)
			}
			golden(t, test.name+".txt", out)
			if len(s.execs) != 2 || strings.Join(s.execs[0], " ") != "/trackless "+test.command {
				t.Errorf("ran %q, want %q twice", s.execs, test.command)
			}
			if test.instance {
				s.empty(t, 0)
				return
			}
			s.empty(t, 1)
			var added []string
			for _, c := range s.made[0].Spec.Containers[0].SecurityContext.Capabilities.Add {
				added = append(added, string(c))
			}
			if got := strings.Join(added, " "); got != test.capabilities {
				t.Errorf("capabilities %q, want %q", got, test.capabilities)
			}
		})
	}
}

// A snapshot is a file for each node. Two folders of them are compared in pods that
// have nothing but the two files.
func TestSnapshotAndCompare(t *testing.T) {
	read := func(name string) string {
		text, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	snapshot, compared := read("snapshot.json"), read("compare.json")
	s := newServer(t, func(_ string, command []string) output {
		if command[1] == "compare" {
			return output{compared, "", 0}
		}
		return output{snapshot, "", 0}
	}, "n1", "n2")
	s.ours = []corev1.Pod{ourPod("kube-system", "trackless-a", "n1")}
	t.Chdir(t.TempDir())
	for _, dir := range []string{"before", "after"} {
		status, out, errs := s.kubectl(t.Context(), t, "snapshot", dir, "--all-nodes", "--window", "1s")
		if status != 0 {
			t.Fatalf("status %d\n%s%s", status, out, errs)
		}
		for _, node := range []string{"n1", "n2"} {
			if text, err := os.ReadFile(filepath.Join(dir, node+".json")); err != nil || string(text) != snapshot {
				t.Errorf("%s of %s: %v\n%s", dir, node, err, text)
			}
		}
	}
	if err := os.Remove(filepath.Join("after", "n2.json")); err != nil {
		t.Fatal(err)
	}
	if status, _, errs := s.kubectl(t.Context(), t, "snapshot", "before", "--all-nodes"); status != exitCannotMeasure || !strings.Contains(errs, "the directory before already has snapshots") {
		t.Errorf("status %d, %s", status, errs)
	}
	status, out, errs := s.kubectl(t.Context(), t, "compare", "before", "after")
	if status != 0 || !strings.Contains(out, "n1    improved  DNS entries fell from 900 to 20.") || !strings.Contains(out, "warning  the limits differ") || strings.Contains(out, "n2") {
		t.Errorf("status %d\n%s%s", status, out, errs)
	}
	s.empty(t, 3)
	p := s.made[2]
	if p.Spec.HostNetwork || p.Spec.HostPID || len(p.Spec.Containers[0].SecurityContext.Capabilities.Add) != 0 {
		t.Errorf("%+v", p.Spec)
	}
	if !slices.Equal(p.Spec.Containers[0].Command, []string{"/trackless", "compare", "/files/before", "/files/after", "-o", "json"}) {
		t.Errorf("ran %q", p.Spec.Containers[0].Command)
	}
	if !strings.Contains(p.Annotations["kubectl-trackless/before"], `"schema":"trackless.snapshot/v1"`) || len(p.Spec.Volumes[0].DownwardAPI.Items) != 2 {
		t.Errorf("annotations %v, volumes %+v", p.Annotations, p.Spec.Volumes)
	}
	status, out, errs = s.kubectl(t.Context(), t, "compare", "before", "nowhere")
	if status != exitCannotMeasure || !strings.Contains(errs, "no node has a file NODE.json in both before and nowhere") {
		t.Errorf("status %d\n%s%s", status, out, errs)
	}
}

// Groups of nodes are added up; those that are not shown become one.
func TestMerge(t *testing.T) {
	t.Parallel()
	answers := []answer{{Node: "n1"}, {Node: "n2"}}
	reports := []groupReport{
		{Seconds: 2, Groups: []group{{Name: "a", Entries: 10, New: 4}, {Name: "b", Entries: 9}, {Name: restGroup, Entries: 100}}},
		{Seconds: 1, Groups: []group{{Name: "b", Entries: 5, New: 1}, {Name: "c", Entries: 1}}},
	}
	var got []string
	for _, g := range merge(answers, reports, 2, func(g group) uint64 { return g.Entries }) {
		got = append(got, g.Name+" "+thousands(g.Entries)+" "+g.where())
	}
	if want := []string{"b 14 2 nodes", "a 10 n1", "(rest) 101 2 nodes"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// The page knows every verb and every flag of ours.
func TestPageIsComplete(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/kubectl.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(text)
	kube := pflag.NewFlagSet("", pflag.ContinueOnError)
	newOptions().kube.register(kube)
	root := rootCommand()
	root.PersistentFlags().VisitAll(func(f *pflag.Flag) {
		if kube.Lookup(f.Name) == nil && !strings.Contains(page, "`--"+f.Name) && (f.Shorthand == "" || !strings.Contains(page, "`-"+f.Shorthand)) {
			t.Errorf("--%s is not on the page", f.Name)
		}
	})
	verbs := 0
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		if !c.HasSubCommands() {
			verbs++
			_, use, _ := strings.Cut(c.UseLine(), " trackless ")
			use, _, _ = strings.Cut(use, " [flags]")
			if !strings.Contains(page, "\n| `"+use+"` |") {
				t.Errorf("%q is not among the commands", use)
			}
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(root)
	if verbs != 7 {
		t.Errorf("%d verbs, want 7", verbs)
	}
}
