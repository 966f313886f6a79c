package main

import (
	"errors"
	"io"
	"os"

	"github.com/coredns/caddy"
	clog "github.com/coredns/coredns/plugin/pkg/log"

	"github.com/trackless-dns/trackless/cmd/trackless/rules"
	"github.com/trackless-dns/trackless/plugin/notrack"
)

// readPlan loads the Corefile as serve does, up to where serve would start it.
func readPlan(conf, port string) (rules.Plan, error) {
	serve := serveOptions{port: port, quiet: true}
	load := func(serverType string) (caddy.Input, error) { return loadCorefile(conf, serverType) }
	if err := embedCoreDNS(&serve, load, io.Discard); err != nil {
		return rules.Plan{}, err
	}
	clog.SetOutput(os.Stderr)
	corefile, err := load(serverType)
	if err != nil {
		return rules.Plan{}, err
	}
	if corefile == nil {
		return rules.Plan{}, errors.New("read the Corefile: nothing comes on standard input")
	}
	plan, backend, err := notrack.PlanOf(corefile)
	return rules.Plan{Plan: plan, Backend: backend}, err
}
