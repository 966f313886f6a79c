// Command fastpath measures what a cached answer costs the whole system, with the
// kernel's fast path and without, beside CoreDNS, unbound, dnsdist and a UDP echo: the
// processor time per answer in bursts and under dnsperf, latencies at 20,000 queries a second, two pods at
// once, and the time in the kernel's program. Each server has a node of its own, and all
// take turns in short rounds. Servers run on CPU 0 and clients on CPU 1.
//
// It needs root, two CPUs and the peers, and changes nothing outside the network
// namespaces that it makes. It exits with 0 if Trackless keeps its bars, 1 if it does
// not, and 2 if that could not be found out.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// Exit statuses.
const (
	kept    = 0
	missed  = 1
	unknown = 2
)

func main() {
	// Verbs for the children of a benchmark.
	for verb, run := range map[string]func(argument string) error{verbAsk: ask, verbDNSPerf: askDNSPerf, verbEcho: echo} {
		if len(os.Args) == 3 && os.Args[1] == verb {
			if err := run(os.Args[2]); err != nil {
				fmt.Fprintf(os.Stderr, "%s: %v\n", verb, err)
				os.Exit(unknown)
			}
			return
		}
	}
	status, err := run()
	if err != nil {
		fmt.Fprintf(os.Stderr, "fastpath: %v\n", err)
	}
	os.Exit(status)
}

// options are the flags.
type options struct {
	programs
	output         string
	rounds         int
	disturbed      float64
	servers, loads string
	verbose        bool
}

func parse() options {
	var o options
	flag.StringVar(&o.trackless, "program", "bin/trackless", "the trackless `binary` under test")
	flag.StringVar(&o.coredns, "coredns", "", "the coredns `binary` to compare with")
	flag.StringVar(&o.unbound, "unbound", "unbound", "the unbound `binary` to compare with")
	flag.StringVar(&o.dnsdist, "dnsdist", "dnsdist", "the dnsdist `binary` to compare with")
	flag.StringVar(&o.dnsperf, "dnsperf", "dnsperf", "the dnsperf `binary` that saturates the servers")
	flag.StringVar(&o.output, "output", "table", "what goes to standard output: `table|json`")
	flag.IntVar(&o.rounds, "rounds", 5, "how many undisturbed `rounds` of each load are measured")
	flag.Float64Var(&o.disturbed, "disturbed", 0.1, "the `share` of the CPUs' time that others may take in a round that counts")
	flag.StringVar(&o.servers, "servers", "", "measure these `servers` only, separated by commas: "+strings.Join(serverNames(), ", "))
	flag.StringVar(&o.loads, "loads", "", "measure these `loads` only, separated by commas: "+strings.Join(loadNames(), ", "))
	flag.BoolVar(&o.verbose, "v", false, "write each measurement to standard error")
	flag.Parse()
	if flag.NArg() > 0 || !known(o.servers, serverNames()) || !known(o.loads, loadNames()) || o.output != "table" && o.output != "json" || o.rounds < 1 || o.disturbed <= 0 {
		flag.Usage()
		os.Exit(unknown)
	}
	return o
}

// chosen reports whether a flag names it, or names nothing, which means all.
func chosen(flag, name string) bool {
	return flag == "" || slices.Contains(strings.Split(flag, ","), name)
}

// known reports whether all that a flag names is known.
func known(flag string, names []string) bool {
	return flag == "" || !slices.ContainsFunc(strings.Split(flag, ","), func(name string) bool { return !slices.Contains(names, name) })
}

func run() (status int, err error) {
	o := parse()
	if o.trackless, err = filepath.Abs(o.trackless); err != nil {
		return unknown, err
	}
	if o.coredns != "" {
		if o.coredns, err = filepath.Abs(o.coredns); err != nil {
			return unknown, err
		}
	}
	if o.self, err = os.Executable(); err != nil {
		return unknown, err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	r, err := measure(ctx, o)
	if err != nil {
		return unknown, err
	}
	if o.output == "json" {
		encoder := json.NewEncoder(os.Stdout)
		encoder.SetIndent("", "  ")
		err = encoder.Encode(r)
	} else {
		err = r.writeTable(os.Stdout)
	}
	return r.status(), err
}

// measure starts the servers, and measures them under each load.
func measure(ctx context.Context, o options) (r *report, err error) {
	b := &bench{options: o, running: map[string]*running{}}
	defer func() { err = errors.Join(err, b.close()) }()
	if err := b.open(ctx); err != nil {
		return nil, err
	}
	r = &report{Rounds: o.rounds, Method: method}
	for _, l := range loads {
		if !chosen(o.loads, l.name) {
			continue
		}
		measured, err := b.rounds(ctx, l)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", l.name, err)
		}
		r.Loads = append(r.Loads, measured)
	}
	r.judge(o.bars())
	return r, nil
}

// bars are those for which the flags leave enough to measure.
func (o options) bars() []bar {
	return slices.DeleteFunc(slices.Clone(bars), func(b bar) bool {
		return !chosen(o.loads, b.load) || slices.ContainsFunc(append([]string{b.server}, b.peers...), func(server string) bool {
			return !chosen(o.servers, server)
		})
	})
}
