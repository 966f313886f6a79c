package main

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"github.com/trackless-dns/trackless/lab"
	benched "github.com/trackless-dns/trackless/test/bench/server"
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
	*benched.Server
}

// open starts the server on a node on which program serves kube-dns, and returns when
// it answers.
func (c configuration) open(ctx context.Context, program string) (*server, error) {
	spec := benched.Spec{
		Name:          c.row(),
		Node:          lab.Options{Program: program, Pods: 1},
		Command:       c.program + " " + c.arguments(),
		Configuration: c.corefile(),
		Listen:        c.listen(),
		By:            lab.Trackless,
		Attaches:      c.kind == trackless,
	}
	if c.kind == bare || c.kind == coredns {
		spec.Addressed, spec.Prepare = true, untrack
	}
	s, err := benched.Open(ctx, spec)
	if err != nil {
		return nil, err
	}
	return &server{configuration: c, Server: s}, nil
}

func (c configuration) listen() []netip.Addr { return addresses[:c.addresses] }

// listed are the listen addresses with a separator.
func (c configuration) listed(separator string) string {
	var texts []string
	for _, a := range c.listen() {
		texts = append(texts, a.String())
	}
	return strings.Join(texts, separator)
}

// arguments are those of the program, in a shell.
func (c configuration) arguments() string {
	switch c.kind {
	case coredns:
		return `-conf "$3"`
	case nodeCache:
		// It writes the Corefile that it runs from the base.
		return fmt.Sprintf(`-basecorefile "$3" -conf ${0%%/*}/Corefile -localip %s -metrics-listen-address 127.0.0.1:9353`, c.listed(","))
	}
	return `"$@"`
}

func (c configuration) corefile() string {
	directive := ""
	if c.kind == trackless {
		directive = fmt.Sprintf("    notrack {\n        backend %s\n    }\n", c.backend)
	}
	return fmt.Sprintf(`.:53 {
    errors
    bind %s
%s    cache 30
    forward . %s
    prometheus %s
}
`, c.listed(" "), directive, lab.UpstreamDNS4, benched.Metrics)
}

// untrack does for a server without notrack what the directive does: queries to
// addresses of the node are untracked.
func untrack() error {
	rules := "table inet untrack {\n"
	for _, hook := range []string{"prerouting", "output"} {
		rules += fmt.Sprintf("chain %[1]s { type filter hook %[1]s priority raw; udp dport 53 fib daddr type local notrack; udp sport 53 fib saddr type local notrack; }\n", hook)
	}
	return nft(rules + "}\n")
}
