package queries

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
	"github.com/trackless-dns/trackless/internal/testgolden"
	"github.com/trackless-dns/trackless/iptables/control"
	"github.com/trackless-dns/trackless/node/instance"
	"github.com/trackless-dns/trackless/node/nodetest"
	"github.com/trackless-dns/trackless/node/who"
)

// twoInstances have counted 100 and 20 queries.
func twoInstances() *nodetest.Node {
	first := nodetest.NewSocket("/run/trackless/control.sock", 7, "trackless-a")
	first.Counted = control.QueryCounts{
		Seconds: 10, Total: control.QueryCount{Queries: 100, Misses: 10},
		Clients:    []control.QueryCount{{Key: "198.51.100.1", Queries: 60, Misses: 9}, {Key: "127.0.0.1", Queries: 25, Misses: 1}, {Queries: 15}},
		Names:      []control.QueryCount{{Key: "a-rather-long-name.of-a-service.shop.svc.cluster.local.", Queries: 90}, {Key: "www.example.org.", Queries: 10, Misses: 10}},
		Zones:      []control.QueryCount{{Key: "shop.svc.cluster.local.", Queries: 90}, {Key: "example.org.", Queries: 10, Misses: 10}},
		Types:      []control.QueryCount{{Key: "A", Queries: 55}, {Key: "AAAA", Queries: 45}},
		Rcodes:     []control.QueryCount{{Key: "NOERROR", Queries: 100}},
		Transports: []control.QueryCount{{Key: "udp", Queries: 99}, {Key: "tcp", Queries: 1}},
	}
	second := nodetest.NewSocket("/run/trackless/control-8.sock", 8, "trackless-b")
	second.Counted = control.QueryCounts{
		Seconds: 10, Total: control.QueryCount{Queries: 20, Misses: 20},
		Clients: []control.QueryCount{{Key: "198.51.100.1", Queries: 20, Misses: 20}}, Names: []control.QueryCount{{Key: "www.example.org.", Queries: 20, Misses: 20}},
		Zones: []control.QueryCount{{Key: "example.org.", Queries: 20, Misses: 20}}, Types: []control.QueryCount{{Key: "A", Queries: 20}},
		Rcodes: []control.QueryCount{{Key: "SERVFAIL", Queries: 20}}, Transports: []control.QueryCount{{Key: "udp", Queries: 20}},
	}
	return &nodetest.Node{Controls: []*nodetest.Socket{first, second}}
}

// run runs the verb in this process.
func run(t *testing.T, node *nodetest.Node, args ...string) (stdout string, err error) {
	t.Helper()
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "proc"), 0o755); err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	cmd := &cobra.Command{Use: "trackless", SilenceErrors: true, SilenceUsage: true}
	cmd.AddCommand(commandOn(func() instance.Node { return node }))
	cmd.SetArgs(append([]string{"dns", "top", "--root", root}, args...))
	cmd.SetOut(&out)
	cmd.SetErr(&errs)
	err = cmd.Execute()
	return out.String(), err
}

// All groups add up to the queries of both instances.
func TestTop(t *testing.T) {
	golden := testgolden.NewRows(t, "top.golden")
	for _, args := range []string{"", "--by namespace", "--by name", "--by zone", "--by type", "--by rcode", "--by transport", "--by name --top 1", "--pid 8"} {
		t.Run(args, func(t *testing.T) {
			node := twoInstances()
			flags := append([]string{"--once"}, strings.Fields(args)...)
			text, err := run(t, node, flags...)
			if err != nil {
				t.Fatal(err)
			}
			golden.Compare(t, "dns top "+args, text)
			document, err := run(t, node, append(flags, "-o", "json")...)
			var r report
			if err := errors.Join(err, json.Unmarshal([]byte(document), &r)); err != nil {
				t.Fatal(err)
			}
			queries, cached := uint64(0), uint64(0)
			for _, g := range r.Groups {
				queries += g.Queries
				if g.Cached != nil {
					cached += *g.Cached
				}
			}
			if queries != r.Total.Queries || cached != 0 && cached != *r.Total.Cached {
				t.Errorf("the groups have %d queries, %d of them cached, of %d and %d", queries, cached, r.Total.Queries, *r.Total.Cached)
			}
			if node.Controls[1].Asked != "queries 10s" {
				t.Errorf("asked %q", node.Controls[1].Asked)
			}
		})
	}
}

func TestTopLines(t *testing.T) {
	out, err := run(t, twoInstances(), "--once", "-o", "jsonl", "--by", "type")
	var got []string
	for line := range strings.Lines(out) {
		var l struct {
			By, Name string
			Queries  int
			Seconds  float64
		}
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprint(l.By, " ", l.Name, " ", l.Queries, " ", l.Seconds))
	}
	if want := "type A 75 10,type AAAA 45 10"; err != nil || strings.Join(got, ",") != want {
		t.Errorf("%q, %v; want %q", got, err, want)
	}
}

// A narrow terminal gets the same columns and shorter names.
func TestNarrowTerminal(t *testing.T) {
	r := &report{By: "name", Seconds: 1, Groups: []row{{Name: strings.Repeat("long.", 20), Queries: 1}}}
	for line := range strings.Lines(r.text(60)) {
		if n := len([]rune(strings.TrimSuffix(line, "\n"))); n > 60 {
			t.Errorf("%d columns: %q", n, line)
		}
	}
}

func TestRefusals(t *testing.T) {
	refusing := twoInstances()
	refusing.Controls[0].SwitchErr = &control.RefusedError{Reason: "somebody else asks"}
	for _, tc := range []struct {
		args string
		node *nodetest.Node
		code int
	}{
		{"--once", &nodetest.Node{}, cli.ExitFailure},
		{"--once --pid 99", twoInstances(), cli.ExitFailure},
		{"--once", refusing, cli.ExitFailure},
		{"--by colour", twoInstances(), cli.ExitUsage},
		{"--interval 1ms", twoInstances(), cli.ExitUsage},
		{"--interval 1h", twoInstances(), cli.ExitUsage},
		{"--top 0", twoInstances(), cli.ExitUsage},
		{"-o json", twoInstances(), cli.ExitUsage},
		{"-o xml", twoInstances(), cli.ExitUsage},
	} {
		if _, err := run(t, tc.node, strings.Fields(tc.args)...); cli.ExitStatus(err) != tc.code {
			t.Errorf("%s: exit status %d, want %d: %v", tc.args, cli.ExitStatus(err), tc.code, err)
		}
	}
}

// withFastPath are counts of an instance whose kernel answers, too.
func withFastPath() *report {
	r := &report{Time: time.Date(2026, 1, 2, 13, 14, 15, 0, time.Local), counts: []control.QueryCounts{twoInstances().Controls[0].Counted}}
	c := &r.counts[0]
	c.Total = c.Total.Plus(control.QueryCount{Queries: 50, Kernel: 50})
	c.Clients[0] = c.Clients[0].Plus(control.QueryCount{Queries: 50, Kernel: 50})
	c.Clients = append(c.Clients[:2:2], control.QueryCount{Key: "10.244.3.17", Queries: 12, Misses: 12}, c.Clients[2])
	c.Names = append(c.Names, control.QueryCount{Key: control.Early, Queries: 50, Kernel: 50})
	return r
}

// The screen by every way, in terminals of several widths, and with the keys.
func TestScreen(t *testing.T) {
	golden := testgolden.NewRows(t, "screens.golden")
	found := who.Node{Root: t.TempDir(), Name: "node-1"}.Find(t.Context())
	found.Pods, found.Notes = "Kubernetes API", nil
	for _, tc := range []struct {
		name          string
		width, height int
		keys          string
		problem       string
	}{
		{"60 columns", 60, 24, "", ""},
		{"100 columns", 100, 24, "", ""},
		{"200 columns", 200, 24, "", ""},
		{"30 columns", 30, 24, "", ""},
		{"by name", 100, 24, "3", ""},
		{"by tier", 100, 24, "8", ""},
		{"by the way before the first", 100, 24, "shift+tab", ""},
		{"by queries to the upstream", 100, 24, "s s", ""},
		{"filtered", 100, 24, "/ 1 0 . enter", ""},
		{"an instance restarts", 100, 24, "", "pid 7: connection refused"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := screen(options{by: "pod", interval: 2 * time.Second, names: who.Node{Name: "node-1"}})
			s = s.Sized(tc.width, tc.height).With(withFastPath().page(found, tc.problem))
			for key := range strings.FieldsSeq(tc.keys) {
				s, _ = s.Press(key)
			}
			lines := s.Lines()
			for _, line := range lines {
				if n := utf8.RuneCountInString(line); n > tc.width {
					t.Errorf("%d columns: %q", n, line)
				}
			}
			golden.Compare(t, tc.name, strings.Join(lines, "\n")+"\n")
		})
	}
}

// Every answer has one tier.
func TestTiersAddUp(t *testing.T) {
	for _, tc := range []struct {
		name  string
		total control.QueryCount
		want  string
	}{
		{"no queries", control.QueryCount{}, ""},
		{"no fast path", control.QueryCount{Queries: 10, Misses: 4}, "cache=6 upstream=4"},
		{"all tiers", control.QueryCount{Queries: 20, Misses: 4, Kernel: 7, Socket: 1}, "kernel=7 socket=1 cache=8 upstream=4"},
		{"more misses than answers yet", control.QueryCount{Queries: 5, Misses: 4, Kernel: 3}, "kernel=3 upstream=2"},
	} {
		var got []string
		for _, c := range tiers(tc.total) {
			got = append(got, fmt.Sprintf("%s=%d", c.Key, c.Queries))
		}
		if strings.Join(got, " ") != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
}
