// Package contained runs a DNS server under test on a node of a lab, in a container with
// limits.
package contained

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/trackless-dns/trackless/internal/testcgroup"
	"github.com/trackless-dns/trackless/lab"
)

const (
	// MetricsAddress is where the metrics of the server are.
	MetricsAddress = "127.0.0.1:9253"
)

// Server is a program under test.
type Server struct {
	Name, Program string
	NoTrack       bool   // it has the directive
	Backend       string // of the directive
	Lines         string // more lines of its Corefile
	MaxConcurrent int    // of forward, 0: no bound
}

// Container is a server on a node of a lab, in a container with limits.
type Container struct {
	Server
	Lab            string // the trackless that serves kube-dns
	Limits         testcgroup.Limits
	WithoutKubeDNS bool // nobody is in its pod until BeforeServe returns

	// BeforeServe, if set, is called when the node is there and the server is not.
	BeforeServe func(*lab.Node) error

	Node    *lab.Node
	Group   *testcgroup.Group
	Running *lab.Server
	Log     string // the path of what the server logs

	directory string
}

// Open builds the node and starts the server. Close is for what it returned nil
// for.
func (c *Container) Open(ctx context.Context) (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	if c.directory, err = os.MkdirTemp("", "trackless-flood-"); err != nil {
		return err
	}
	if c.Group, err = testcgroup.New(c.Limits); err != nil {
		return err
	}
	if c.Node, err = lab.NewNode(ctx, lab.Options{Program: c.Lab, WithoutIPv6: true, WithoutKubeDNS: c.WithoutKubeDNS}); err != nil {
		return err
	}
	if c.BeforeServe != nil {
		if err := c.BeforeServe(c.Node); err != nil {
			return err
		}
	}
	return c.serve(ctx)
}

// Close ends the server and takes down what Open built of it.
func (c *Container) Close() error {
	var errs []error
	if c.Running != nil {
		errs = append(errs, c.Running.Kill())
	}
	if c.Node != nil {
		errs = append(errs, c.Node.Close())
	}
	if c.Group != nil {
		errs = append(errs, c.Group.Close())
	}
	return errors.Join(append(errs, os.RemoveAll(c.directory))...)
}

// serve starts the program inside the cgroup, from its first page on.
func (c *Container) serve(ctx context.Context) (err error) {
	c.Log = filepath.Join(c.directory, "log")
	arguments := `"$@"`
	if c.Program != c.Lab {
		arguments = `-conf "$3"` // of: serve -conf FILE -control SOCKET
	}
	script := filepath.Join(c.directory, "start")
	if err := c.Group.Script(script, fmt.Sprintf("exec %s %s >%s 2>&1", c.Program, arguments, c.Log)); err != nil {
		return err
	}
	if !c.NoTrack {
		if err := c.untrack(); err != nil {
			return err
		}
	}
	if c.Running, err = c.Node.Namespace.StartServer(c.Name, script, c.corefile()); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if c.NoTrack {
		err = c.Running.AwaitAttached(ctx, MetricsAddress)
	} else {
		err = c.Running.AwaitAnswer(ctx, c.Node.Namespace, lab.UDP, lab.ClusterDNS4, lab.Trackless)
	}
	if err != nil {
		text, _ := os.ReadFile(c.Log)
		return fmt.Errorf("%w\n%s", err, text)
	}
	return nil
}

// corefile is that of our manifests, for one address. CoreDNS lacks a directive.
func (c *Container) corefile() string {
	notrack := ""
	if c.NoTrack {
		notrack = fmt.Sprintf("    notrack {\n        backend %s\n    }\n", c.Backend)
	}
	bound := ""
	if c.MaxConcurrent > 0 {
		bound = fmt.Sprintf(" {\n        max_concurrent %d\n    }", c.MaxConcurrent)
	}
	return fmt.Sprintf(`.:53 {
    errors {
        consolidate 10s "timeout" error show_first
        consolidate 10s "refused" error show_first
        consolidate 10s "." error show_first
    }
    bind %s
%s    cache {
        success 9984 60
        denial 9984 5
    }
    forward . %s%s
    prometheus %s
%s}
`, lab.ClusterDNS4, notrack, lab.UpstreamDNS4, bound, MetricsAddress, c.Lines)
}

// untrack does for a program without the directive what its absence leaves out,
// for good.
func (c *Container) untrack() error {
	const hook = "chain %[2]s { type filter hook %[2]s priority raw; ip daddr %[1]s meta l4proto { tcp, udp } th dport 53 notrack; ip saddr %[1]s meta l4proto { tcp, udp } th sport 53 notrack; }\n"
	rules := "table ip untrack {\n"
	for _, name := range []string{"prerouting", "output"} {
		rules += fmt.Sprintf(hook, lab.ClusterDNS4, name)
	}
	return c.Node.Namespace.Do(func() error {
		for _, command := range [][]string{
			{"ip", "address", "add", lab.ClusterDNS4.String() + "/32", "dev", "lo", "scope", "host"},
			{"nft", "-f", "-"},
		} {
			cmd := exec.Command(command[0], command[1:]...)
			cmd.Stdin = strings.NewReader(rules + "}\n")
			if out, err := cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("%s: %w: %s", strings.Join(command, " "), err, out)
			}
		}
		return nil
	})
}

// Lapses is how often the lease of a server with the directive ran out.
func (c *Container) Lapses(ctx context.Context) (int, error) {
	metrics, err := c.Running.Metrics(ctx, MetricsAddress)
	if err != nil {
		return 0, err
	}
	lapses, there := metrics.Sum("coredns_notrack_lease_lapses_total")
	if !there {
		return 0, errors.New("there is no metric coredns_notrack_lease_lapses_total")
	}
	return int(lapses), nil
}

// Memory is a field of proc_pid_status(5) in MiB, such as VmRSS, what is resident of the
// process, or VmHWM, the most that was; 0 if the process has ended.
func Memory(pid int, field string) float64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, field+":"); ok {
			kb, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(rest), " kB"))
			if err == nil {
				return float64(kb) / 1024
			}
		}
	}
	return 0
}
