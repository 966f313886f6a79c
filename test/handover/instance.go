package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/trackless-dns/trackless/lab"
)

// path is what answers cached names beside CoreDNS.
type path string

const (
	bySocket   path = "sockets"     // own sockets, as without options
	byCoreDNS  path = "sockets off" // CoreDNS's own sockets
	fromKernel path = "kernel on"   // and own sockets
)

// pathOf has the first half of the rounds with own sockets, a quarter without, and a quarter
// with hits in the kernel.
func pathOf(round, rounds int) path {
	switch {
	case round*4 > rounds*3:
		return fromKernel
	case round*2 > rounds:
		return byCoreDNS
	}
	return bySocket
}

// directive is the directive of a Corefile.
func (p path) directive() string {
	if p == bySocket {
		return "fastpath"
	}
	return fmt.Sprintf("fastpath {\n        %s\n    }", p)
}

// instance is a process of Trackless on the node.
type instance struct {
	*lab.Server
	path    path
	metrics string // a page of its own
}

// programs start the program under test with the capabilities of a container.
type programs struct{ dir, plain, kernel string }

// limit writes the programs.
func limit(program string) (p programs, err error) {
	if _, err := exec.LookPath("setpriv"); err != nil {
		return p, err
	}
	if p.dir, err = os.MkdirTemp("", "handover"); err != nil {
		return p, err
	}
	p.plain, p.kernel = filepath.Join(p.dir, "plain"), filepath.Join(p.dir, "kernel")
	for file, capabilities := range map[string]string{p.plain: "+net_admin,+net_bind_service", p.kernel: "+net_admin,+net_bind_service,+bpf"} {
		script := fmt.Sprintf("#!/bin/sh\nexec setpriv --bounding-set -all,%s %s \"$@\"\n", capabilities, program)
		if err := os.WriteFile(file, []byte(script), 0o700); err != nil {
			return p, err
		}
	}
	return p, nil
}

func (p programs) remove() error { return os.RemoveAll(p.dir) }

// Where kubelet and Prometheus would probe: all instances have the same addresses.
const (
	probedMetrics = "127.0.0.1:9253"
	probedHealth  = "127.0.0.1:8080"
	probedReady   = "127.0.0.1:8181"
)

// start starts an instance beside the others. A second server block has a page of metrics
// of its own.
func (b *bench) start(p path, options string) (*instance, error) {
	var listen []string
	for _, a := range b.node.ClusterDNS() {
		listen = append(listen, a.String())
	}
	program := b.limited.plain
	if p == fromKernel {
		program = b.limited.kernel
	}
	b.started++
	own := fmt.Sprintf("127.0.0.1:%d", 9300+b.started)
	server, err := b.node.Namespace.StartServer("trackless", program, fmt.Sprintf(`.:53 {
    errors
    bind %s
    notrack {
        lease 2s
        %s
    }
    %s
    cache {
        success %d 3000
    }
    forward . %s
    prometheus %s
    health %s
    ready %s
}

.:%d {
    bind 127.0.0.1
    prometheus %s
}
`, strings.Join(listen, " "), options, p.directive(), max(131072, 4*b.names), lab.UpstreamDNS4, probedMetrics, probedHealth, probedReady, 9500+b.started, own))
	if err != nil {
		return nil, err
	}
	return &instance{server, p, own}, nil
}

// attached waits until an instance has its rules in force.
func (b *bench) attached(i *instance) error {
	ctx, cancel := context.WithTimeout(b.ctx, time.Minute)
	defer cancel()
	return i.AwaitAttached(ctx, i.metrics)
}
