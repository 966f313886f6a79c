//go:build privileged

package integration

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/internal/testgolden"
	"github.com/trackless-dns/trackless/lab"
)

// start runs the program with a Corefile that it should refuse.
func start(t *testing.T, node *lab.Node, text string, change func(*exec.Cmd)) (status int, output string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "Corefile")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("timeout", "60", program, "serve", "-conf", path, "-control", "@trackless/control.sock")
	if change != nil {
		change(cmd)
	}
	err := node.Namespace.Do(func() error {
		out, err := cmd.CombinedOutput()
		output = string(out)
		return err
	})
	if cmd.ProcessState == nil {
		t.Fatalf("start: %v", err)
	}
	return cmd.ProcessState.ExitCode(), output
}

func TestBadInput(t *testing.T) {
	golden := testgolden.NewRows(t, "badinput.golden")
	// The folder of the Corefile and the number of a device differ from run to run.
	temporary := regexp.MustCompile(`/tmp/\S*/(Corefile)|(veth)[0-9]+`)
	for _, tc := range []struct {
		name    string
		text    string
		prepare func(t *testing.T, node *lab.Node)
		change  func(*exec.Cmd)
		lies    []string // bad advice
	}{
		{
			name: "unknown option",
			text: corefile("notrack {\n nosuch 1\n}", "", lab.ClusterDNS4),
		},
		{
			name: "not an address",
			text: corefile("notrack 10.96.0.300", "", lab.ClusterDNS4),
		},
		{
			name: "forward to an address of its own",
			text: strings.Replace(corefile(steady, "", lab.ClusterDNS4), "forward . "+lab.UpstreamDNS4.String(), "forward . 10.96.0.10", 1),
		},
		{
			name: "a variable that is not set",
			text: strings.Replace(corefile(steady, "", lab.ClusterDNS4), "forward . "+lab.UpstreamDNS4.String(), "forward . {$UPSTREAM_OF_NOBODY}", 1),
		},
		{
			name: "conflicting blocks",
			text: corefile(steady, "", lab.ClusterDNS4) + "example.org:53 {\n bind 10.96.0.10\n notrack {\n interface dns0\n }\n whoami\n}\n",
		},
		{
			name: "an address that another interface holds",
			text: corefile(steady, "", lab.ClusterDNS4),
			prepare: func(t *testing.T, node *lab.Node) {
				run(t, node.Namespace, "ip", "link", "add", "kube-ipvs0", "type", "bridge")
				run(t, node.Namespace, "ip", "address", "add", "10.96.0.10/32", "dev", "kube-ipvs0")
			},
			lies: []string{"ip address del", "interface none"},
		},
		{
			name: "the node's own address",
			text: corefile(steady, "", netip.MustParseAddr("192.0.2.10")),
			lies: []string{"ip address del", "interface none"},
		},
		{
			name: "the gateway of the pods, interface none",
			text: corefile(notrackWith("interface none"), "", netip.MustParseAddr("10.244.0.1")),
			lies: []string{"ip address del"},
		},
		{
			name: "IPv6 disabled",
			text: corefile(steady, "", lab.ClusterDNS6),
			prepare: func(t *testing.T, node *lab.Node) {
				run(t, node.Namespace, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")
			},
		},
		{
			name: "an IPv6 link-local address",
			text: corefile(steady, "", netip.MustParseAddr("fe80::10")),
		},
		{
			name: "no CAP_NET_ADMIN",
			text: corefile(steady, "", lab.ClusterDNS4),
			change: func(cmd *exec.Cmd) {
				cmd.SysProcAttr = &syscall.SysProcAttr{
					Credential:  &syscall.Credential{Uid: 65534, Gid: 65534},
					AmbientCaps: []uintptr{unix.CAP_NET_BIND_SERVICE},
				}
			},
		},
		{
			name: "port taken",
			text: corefile(steady, "", lab.ClusterDNS4),
			prepare: func(t *testing.T, node *lab.Node) {
				run(t, node.Namespace, "ip", "address", "add", "127.9.9.9/32", "dev", "lo")
				// A listener without SO_REUSEPORT on the wildcard address.
				err := node.Namespace.Do(func() error {
					fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
					if err != nil {
						return err
					}
					t.Cleanup(func() { _ = unix.Close(fd) })
					return unix.Bind(fd, &unix.SockaddrInet4{Port: 53})
				})
				if err != nil {
					t.Fatal(err)
				}
			},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			node := newNode(t)
			if tc.prepare != nil {
				tc.prepare(t, node)
			}
			change := tc.change
			if change != nil {
				// Another user must be able to read the files.
				readable(t)
			}
			before := state(t, node)
			status, output := start(t, node, tc.text, change)
			if status != 1 {
				t.Errorf("exit status %d, want 1", status)
			}
			complaint := output[strings.LastIndex(strings.TrimSpace(output), "\n")+1:]
			golden.Compare(t, tc.name, temporary.ReplaceAllString(complaint, "$1$2"))
			for _, lie := range tc.lies {
				if strings.Contains(output, lie) {
					t.Errorf("the output says %q:\n%s", lie, output)
				}
			}
			if diff := before.Diff(state(t, node)); diff != "" {
				t.Errorf("left behind:\n%s", diff)
			}
		})
	}
}

// readable lets other users reach the program and the test's Corefile.
func readable(t *testing.T) {
	t.Helper()
	for _, path := range []string{filepath.Dir(program), filepath.Dir(t.TempDir())} {
		if err := os.Chmod(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

func TestBadReload(t *testing.T) {
	node := newNode(t)
	good := corefile(steady, "", listenAddresses(node)...)
	server := serve(t, node, good)
	for _, tc := range []struct {
		name, text string
		want       string
	}{
		{"unknown option", corefile("notrack {\n nosuch 1\n}", "", listenAddresses(node)...), `unknown option "nosuch"`},
		{"address of another interface", corefile(steady, "", append(listenAddresses(node), netip.MustParseAddr("192.0.2.10"))...), "is held by interface"},
		{"another interface", corefile("notrack {\n interface dns0\n}", "", listenAddresses(node)...), "cannot change from nodelocaldns without a restart"},
		{"listener that cannot be opened", corefile(steady, "health 203.0.113.9:8080", listenAddresses(node)...), "203.0.113.9:8080"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := state(t, node)
			failures := strings.Count(server.Output(), "Restart failed")
			if err := server.Reload(tc.text); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the reload is refused", func() error {
				if strings.Count(server.Output(), "Restart failed") == failures {
					return fmt.Errorf("not yet:\n%s", server.Output())
				}
				return nil
			})
			if !strings.Contains(server.Output(), tc.want) {
				t.Errorf("the log does not say %q:\n%s", tc.want, server.Output())
			}
			eventually(t, "a refused reload leaves the node as it was", func() error {
				if diff := before.Diff(state(t, node)); diff != "" {
					return errors.New(diff)
				}
				return nil
			})
			for _, addr := range listenAddresses(node) {
				if who, err := ask(t, node.Pods[0].Namespace, addr, lab.UDP); who != lab.Trackless || err != nil {
					t.Errorf("%s: answered by %q, %v", addr, who, err)
				}
			}
		})
	}
}

func TestReload(t *testing.T) {
	node := newNode(t)
	before := state(t, node)
	server := serve(t, node, corefile(steady, "", lab.ClusterDNS4))
	untracked := func(addr string) error {
		if !strings.Contains(run(t, node.Namespace, "nft", "list", "ruleset"), addr+" . udp . 53") {
			return fmt.Errorf("no rule for %s:\n%s", addr, server.Output())
		}
		return nil
	}
	if err := untracked("10.96.0.10"); err != nil {
		t.Fatal(err)
	}
	table := tableName(t, node)

	if err := server.Reload(corefile(steady, "", lab.ClusterDNS4, lab.LinkLocalDNS4)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "an address is added", func() error {
		if who, err := ask(t, node.Pods[0].Namespace, lab.LinkLocalDNS4, lab.TCP); err != nil || who != lab.Trackless {
			return fmt.Errorf("answered by %q, %w", who, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		return server.AwaitAttached(ctx, metricsAddress)
	})
	if got := tableName(t, node); got != table {
		t.Errorf("a reload replaced table %s by %s", table, got)
	}

	if err := server.Reload(corefile(steady, "", lab.LinkLocalDNS4)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "an address is taken away", func() error {
		if strings.Contains(run(t, node.Namespace, "ip", "-o", "address"), "10.96.0.10/") {
			return fmt.Errorf("10.96.0.10 is still there:\n%s", server.Output())
		}
		return nil
	})
	if who, err := ask(t, node.Pods[0].Namespace, lab.ClusterDNS4, lab.UDP); who != lab.KubeDNS || err != nil {
		t.Errorf("the address that is ours no more: answered by %q, %v", who, err)
	}

	if err := server.Reload(".:53 {\n bind 127.0.0.1\n whoami\n}\n"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "everything goes with the last notrack block", func() error {
		if diff := before.Diff(state(t, node)); diff != "" {
			return fmt.Errorf("left:\n%s", diff)
		}
		return nil
	})
	if err := server.Reload(corefile(steady, "", lab.ClusterDNS4)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "and comes back", func() error {
		if who, err := ask(t, node.Pods[0].Namespace, lab.ClusterDNS4, lab.UDP); err != nil || who != lab.Trackless {
			return fmt.Errorf("answered by %q, %w\n%s", who, err, server.Output())
		}
		return nil
	})
}

func tableName(t *testing.T, node *lab.Node) string {
	t.Helper()
	for line := range strings.Lines(run(t, node.Namespace, "nft", "list", "tables")) {
		if name := strings.TrimSpace(strings.TrimPrefix(line, "table inet ")); strings.HasPrefix(name, "trackless-") {
			return name
		}
	}
	t.Fatal("no table of ours")
	return ""
}
