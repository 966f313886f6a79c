package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/trackless-dns/trackless/lab"
)

const (
	metricsAddress = "127.0.0.1:9253"

	// starting is how long a server may take until it answers.
	starting = 2 * time.Minute
)

// addresses are those that servers listen at, in the order in which they are added.
// The first two are those of node-cache's manifest.
var addresses = []netip.Addr{
	lab.ClusterDNS4,
	netip.MustParseAddr("169.254.20.10"),
	lab.ClusterDNS6,
	netip.MustParseAddr("fd00:20::10"),
}

// kind is a program and how it is configured.
type kind string

const (
	trackless kind = "trackless" // with notrack
	bare      kind = "without notrack"
	coredns   kind = "coredns"
	nodeCache kind = "node-cache"
)

// configuration is a server to be measured.
type configuration struct {
	kind      kind
	program   string
	backend   string // of trackless
	addresses int
	other     bool // it is the other binary, which has no bars
	asked     bool // it is also measured under load
}

// row names the configuration.
func (c configuration) row() string {
	name := string(c.kind)
	if c.kind == trackless {
		name += ", " + c.backend
	}
	if c.other {
		name += " (other)"
	}
	return fmt.Sprintf("%s, %d", name, c.addresses)
}

// configurations are all that the flags ask for. The peers listen at two addresses.
func (o options) configurations() []configuration {
	var list []configuration
	if o.coredns != "" {
		list = append(list, configuration{kind: coredns, program: o.coredns, addresses: 2, asked: true})
	}
	if o.nodeCache != "" {
		list = append(list, configuration{kind: nodeCache, program: o.nodeCache, addresses: 2, asked: true})
	}
	list = append(list, configuration{kind: bare, program: o.program, addresses: 2, asked: true})
	for _, backend := range []string{"nftables", "iptables"} {
		for _, n := range []int{1, 2, 4} {
			list = append(list, configuration{kind: trackless, program: o.program, backend: backend, addresses: n, asked: n == 2})
		}
		if o.other != "" {
			list = append(list, configuration{kind: trackless, program: o.other, backend: backend, addresses: 2, other: true, asked: true})
		}
	}
	return list
}

// server is a running one, alone on its node.
type server struct {
	configuration
	lab string // the trackless that serves kube-dns

	node      *lab.Node
	running   *lab.Server
	directory string
}

// open builds the node, starts the server and returns when it answers.
func (s *server) open(ctx context.Context) (err error) {
	if s.directory, err = os.MkdirTemp("", "trackless-bench-"); err != nil {
		return err
	}
	if s.node, err = lab.NewNode(ctx, lab.Options{Program: s.lab, Pods: 1}); err != nil {
		return err
	}
	if s.kind == bare || s.kind == coredns {
		if err := s.untrack(); err != nil {
			return err
		}
	}
	// The script becomes the program. It is started as: serve -conf FILE -control SOCKET.
	script := filepath.Join(s.directory, "start")
	text := fmt.Sprintf("#!/bin/sh\nexec %s %s >%s 2>&1\n", s.program, s.arguments(), filepath.Join(s.directory, "log"))
	if err := os.WriteFile(script, []byte(text), 0o700); err != nil {
		return err
	}
	if s.running, err = s.node.Namespace.StartServer(s.row(), script, s.corefile()); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, starting)
	defer cancel()
	if s.kind == trackless {
		err = s.running.AwaitAttached(ctx, metricsAddress)
	}
	for _, a := range s.listen() {
		if err == nil {
			err = s.running.AwaitAnswer(ctx, s.node.Namespace, lab.UDP, a, lab.Trackless)
		}
	}
	if err != nil {
		text, _ := os.ReadFile(filepath.Join(s.directory, "log"))
		return fmt.Errorf("%w\n%s", err, text)
	}
	return nil
}

// close ends what open started, which may be a part of it.
func (s *server) close() error {
	var errs []error
	if s.running != nil {
		errs = append(errs, s.running.Close())
	}
	if s.node != nil {
		errs = append(errs, s.node.Close())
	}
	if s.directory != "" {
		errs = append(errs, os.RemoveAll(s.directory))
	}
	return errors.Join(errs...)
}

func (s *server) listen() []netip.Addr { return addresses[:s.addresses] }

// listed are the listen addresses with a separator.
func (s *server) listed(separator string) string {
	var texts []string
	for _, a := range s.listen() {
		texts = append(texts, a.String())
	}
	return strings.Join(texts, separator)
}

// arguments are those of the program, in a shell.
func (s *server) arguments() string {
	switch s.kind {
	case coredns:
		return `-conf "$3"`
	case nodeCache:
		// It writes the Corefile that it runs from the base.
		return fmt.Sprintf(`-basecorefile "$3" -conf %s -localip %s -metrics-listen-address 127.0.0.1:9353`,
			filepath.Join(s.directory, "Corefile"), s.listed(","))
	}
	return `"$@"`
}

func (s *server) corefile() string {
	directive := ""
	if s.kind == trackless {
		directive = fmt.Sprintf("    notrack {\n        backend %s\n    }\n", s.backend)
	}
	return fmt.Sprintf(`.:53 {
    errors
    bind %s
%s    cache 30
    forward . %s
    prometheus %s
}
`, s.listed(" "), directive, lab.UpstreamDNS4, metricsAddress)
}

// untrack does for a server without notrack what the directive does: its addresses are
// on the node, and queries to them are untracked.
func (s *server) untrack() error {
	rules := "table inet untrack {\n"
	for _, hook := range []string{"prerouting", "output"} {
		rules += fmt.Sprintf("chain %[1]s { type filter hook %[1]s priority raw; udp dport 53 fib daddr type local notrack; udp sport 53 fib saddr type local notrack; }\n", hook)
	}
	return s.node.Namespace.Do(func() error {
		for _, a := range s.listen() {
			command := exec.Command("ip", "address", "add", a.String(), "dev", "lo")
			if out, err := command.CombinedOutput(); err != nil {
				return fmt.Errorf("add %s to the loopback device: %w: %s", a, err, out)
			}
		}
		return nft(rules + "}\n")
	})
}
