package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/trackless-dns/trackless/internal/testcgroup"
	"github.com/trackless-dns/trackless/lab"
)

// server is a program under test.
type server struct {
	name, program string
	notrack       bool   // it has the directive
	backend       string // of the directive
}

// contained is a server on a node of a lab, in a container with limits.
type contained struct {
	server
	lab    string // the trackless that serves kube-dns
	limits testcgroup.Limits

	node      *lab.Node
	group     *testcgroup.Group
	running   *lab.Server
	directory string
	log       string
}

// open builds the node and starts the server. close is for what it returned nil
// for.
func (c *contained) open(ctx context.Context) (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, c.close())
		}
	}()
	if c.directory, err = os.MkdirTemp("", "trackless-flood-"); err != nil {
		return err
	}
	if c.group, err = testcgroup.New(c.limits); err != nil {
		return err
	}
	if c.node, err = lab.NewNode(ctx, lab.Options{Program: c.lab, WithoutIPv6: true}); err != nil {
		return err
	}
	return c.serve(ctx)
}

// close ends the server and takes down what open built of it.
func (c *contained) close() error {
	var errs []error
	if c.running != nil {
		errs = append(errs, c.running.Kill())
	}
	if c.node != nil {
		errs = append(errs, c.node.Close())
	}
	if c.group != nil {
		errs = append(errs, c.group.Close())
	}
	return errors.Join(append(errs, os.RemoveAll(c.directory))...)
}

// serve starts the program inside the cgroup, from its first page on.
func (c *contained) serve(ctx context.Context) (err error) {
	c.log = filepath.Join(c.directory, "log")
	arguments := `"$@"`
	if c.program != c.lab {
		arguments = `-conf "$3"` // of: serve -conf FILE -control SOCKET
	}
	script := filepath.Join(c.directory, "start")
	if err := c.group.Script(script, fmt.Sprintf("exec %s %s >%s 2>&1", c.program, arguments, c.log)); err != nil {
		return err
	}
	if !c.notrack {
		if err := c.untrack(); err != nil {
			return err
		}
	}
	if c.running, err = c.node.Namespace.StartServer(c.name, script, c.corefile()); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if c.notrack {
		err = c.running.AwaitAttached(ctx, metricsAddress)
	} else {
		err = c.running.AwaitAnswer(ctx, c.node.Namespace, lab.UDP, lab.ClusterDNS4, lab.Trackless)
	}
	if err != nil {
		text, _ := os.ReadFile(c.log)
		return fmt.Errorf("%w\n%s", err, text)
	}
	return nil
}

// corefile is that of our manifests, for one address. CoreDNS lacks a directive.
func (c *contained) corefile() string {
	notrack := ""
	if c.notrack {
		notrack = fmt.Sprintf("    notrack {\n        backend %s\n    }\n", c.backend)
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
    forward . %s
    prometheus %s
}
`, lab.ClusterDNS4, notrack, lab.UpstreamDNS4, metricsAddress)
}

// untrack does for a program without the directive what its absence leaves out,
// for good.
func (c *contained) untrack() error {
	const hook = "chain %[2]s { type filter hook %[2]s priority raw; ip daddr %[1]s udp dport 53 notrack; ip saddr %[1]s udp sport 53 notrack; }\n"
	rules := "table ip untrack {\n"
	for _, name := range []string{"prerouting", "output"} {
		rules += fmt.Sprintf(hook, lab.ClusterDNS4, name)
	}
	return c.node.Namespace.Do(func() error {
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

// lapses is how often the lease of a server with the directive ran out.
func (c *contained) lapses(ctx context.Context) (int, error) {
	metrics, err := c.running.Metrics(ctx, metricsAddress)
	if err != nil {
		return 0, err
	}
	lapses, there := metrics.Sum("coredns_notrack_lease_lapses_total")
	if !there {
		return 0, errors.New("there is no metric coredns_notrack_lease_lapses_total")
	}
	return int(lapses), nil
}
