package main

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
	"github.com/trackless-dns/trackless/conntrack"

	"github.com/trackless-dns/trackless/internal/testgolden"
)

// trackless runs the program in this process and returns what it wrote and its
// exit status.
func trackless(args ...string) (stdout, stderr string, code int) {
	var out, errs bytes.Buffer
	root := rootCommand()
	root.SetArgs(args)
	root.SetOut(&out)
	root.SetErr(&errs)
	err := root.Execute()
	if err != nil {
		fmt.Fprintf(&errs, "trackless: %v\n", err)
	}
	return out.String(), errs.String(), cli.ExitStatus(err)
}

func backend(addr string) func(*conntrack.Entry) {
	return func(e *conntrack.Entry) { e.Reply.Src = netip.MustParseAddr(addr) }
}

func TestConntrackWrongCommandLine(t *testing.T) {
	golden := testgolden.NewRows(t, "usage-conntrack.golden")
	for _, test := range []struct {
		args string
	}{
		{"list --proto icmp --dport 53"},
		{"list --proto quic"},
		{"list --src 10.0.0.300"},
		{"list --dst 10.0.0.0/33"},
		{"list --sport 70000"},
		{"list --dport 53-x"},
		{"list --dport 54-53"},
		{"list --state OPENED"},
		{"list --status OPENED"},
		{"list --status ASSURED,!ASSURED"},
		{"list --family ipx"},
		{"list --zone 70000"},
		{"list --mark x"},
		{"list --mark 1/0"},
		{"list --nat full-cone"},
		{"list -o xml"},
		{"list everything"},
		{"stats -o yaml"},
		{"stats --top 0"},
		{"stats --by node"},
		{"stats --by pod --per-cpu"},
		{"stats --by pod --netns all"},
		{"top"},
		{"top --once --by colour"},
		{"top --once -o yaml"},
		{"top -o json"},
		{"top --once --interval 1ms"},
		{"top --once --top 0"},
		{"watch --events born"},
		{"watch --rate -o yaml"},
		{"limits -o wide"},
		{"drop"},
		{"help me"},
	} {
		t.Run(test.args, func(t *testing.T) {
			out, errs, code := trackless(append([]string{"conntrack"}, strings.Fields(test.args)...)...)
			if code != cli.ExitUsage || out != "" {
				t.Errorf("exit status %d, want %d:\n%s%s", code, cli.ExitUsage, out, errs)
			}
			golden.Compare(t, test.args, errs)
		})
	}
}

func TestConntrackHelp(t *testing.T) {
	out, _, code := trackless("conntrack", "help", "states")
	if code != 0 {
		t.Fatalf("exit status %d", code)
	}
	for _, state := range []string{"NEW", "ESTABLISHED", "RELATED", "INVALID", "UNTRACKED", "TIME_WAIT", "ASSURED", "UNREPLIED", "STREAM"} {
		if !strings.Contains(out, "\n  "+state+" ") {
			t.Errorf("%s is not explained", state)
		}
	}
	for s := conntrack.TCPNone; s <= conntrack.TCPSynSent2; s++ {
		if !strings.Contains(out, s.String()) {
			t.Errorf("%s is not explained", s)
		}
	}
	for _, name := range conntrack.Status(1<<16 - 1).Names() {
		if !strings.Contains(out, name) {
			t.Errorf("%s is not explained", name)
		}
	}
}

func TestConntrackLimits(t *testing.T) {
	root := t.TempDir()
	for name, content := range map[string]string{
		"proc/sys/net/netfilter/nf_conntrack_max":         "1000000\n",
		"proc/sys/net/netfilter/nf_conntrack_buckets":     "250000\n",
		"proc/sys/net/netfilter/nf_conntrack_count":       "7\n",
		"proc/sys/net/netfilter/nf_conntrack_udp_timeout": "10\n",
		"proc/slabinfo":                  "nf_conntrack 1 1 320 12 1\n",
		"proc/meminfo":                   "MemTotal: 8000000 kB\n",
		"etc/sysctl.d/90-conntrack.conf": "net.netfilter.nf_conntrack_max=1000000\n",
		"etc/modprobe.d/conntrack.conf":  "# sizes\noptions nf_conntrack hashsize=250000\n",
	} {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	out, errs, code := trackless("conntrack", "limits", "--root", root)
	if code != 0 {
		t.Fatalf("exit status %d: %s", code, errs)
	}
	for _, want := range []string{
		"7 entries.", "/etc/sysctl.d/90-conntrack.conf:1", "/etc/modprobe.d/conntrack.conf:2", "kube-proxy conntrack.udpTimeout",
		"1000000", "262144", "10 s", "30 s", "*", "[447.3 MiB when reached]", "measured by /proc/slabinfo",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if _, errs, code := trackless("conntrack", "limits", "--root", t.TempDir()); code != cli.ExitCannotMeasure || !strings.Contains(errs, "not loaded") {
		t.Errorf("without connection tracking: exit status %d, %s", code, errs)
	}
}
