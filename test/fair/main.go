// Command fair measures what the clients of a node lose to one that asks without end. One pod
// asks for 20,000 names a second that do not exist, whose answers the upstream gives after
// 5 ms, after 200 ms, or never. Another pod asks for names that are cached, and for others
// that the upstream answers after 5 ms. CoreDNS does the same, with and without its
// directive shed, each server in a container of 128 MiB.
//
// It needs root and changes nothing outside the network namespaces that it makes, but for
// control groups. It exits with 0 if Trackless keeps what is asked of it, 1 if it does not,
// and 2 if that could not be found out.
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
	"time"

	"github.com/trackless-dns/trackless/internal/testcgroup"
	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/test/flood/contained"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == floodCommand {
		if err := floodHere(os.Args[2:]); err != nil {
			fmt.Fprintf(os.Stderr, "fair: %v\n", err)
			os.Exit(2)
		}
		return
	}
	kept, err := run()
	if err != nil {
		fmt.Fprintf(os.Stderr, "fair: %v\n", err)
		os.Exit(2)
	}
	if !kept {
		os.Exit(1)
	}
}

// options are the flags.
type options struct {
	output, only, over, servers, program, coredns string
	last                                          time.Duration
	rate                                          int
}

func parse() options {
	var o options
	flag.StringVar(&o.output, "output", "table", "what goes to standard output: `table|json`")
	flag.StringVar(&o.only, "only", strings.Join(kinds(), ","), "flood with these upstreams only, `kinds` separated by commas")
	flag.StringVar(&o.over, "over", "udp,tcp", "the `protocols` of both pods, separated by commas")
	flag.StringVar(&o.servers, "servers", "coredns,coredns+shed,trackless,trackless+fast", "the `servers`, separated by commas")
	flag.StringVar(&o.program, "program", "bin/trackless", "the trackless `binary` under test")
	flag.StringVar(&o.coredns, "coredns", "", "the coredns `binary` beside it; empty leaves that out")
	flag.DurationVar(&o.last, "time", 30*time.Second, "how long each flood lasts, a `duration` of at most two minutes")
	flag.IntVar(&o.rate, "rate", 20_000, "`queries` of the flood in a second")
	flag.Parse()
	if flag.NArg() > 0 || o.output != "table" && o.output != "json" || o.last < time.Second || o.last > 2*time.Minute || o.rate < 1 {
		flag.Usage()
		os.Exit(2)
	}
	return o
}

func run() (kept bool, err error) {
	o := parse()
	if lacking := testcgroup.Lacking(); lacking != "" {
		return false, errors.New(lacking)
	}
	for _, program := range []*string{&o.program, &o.coredns} {
		if *program == "" {
			continue
		}
		if *program, err = filepath.Abs(*program); err != nil {
			return false, err
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	results, kept, err := measure(ctx, o)
	if err == nil && o.output == "json" {
		encoder := json.NewEncoder(os.Stdout)
		encoder.SetIndent("", "  ")
		err = encoder.Encode(map[string]any{"kept": kept, "floods": results})
	}
	return kept, err
}

// chosen returns the servers that are asked for.
func (o *options) chosen() []contained.Server {
	all := []contained.Server{
		{Name: "coredns", Program: o.coredns},
		{Name: "coredns+shed", Program: o.coredns, Lines: "    shed\n"},
		{Name: "trackless", Program: o.program, NoTrack: true, Backend: "auto"},
		{Name: "trackless+fast", Program: o.program, NoTrack: true, Backend: "auto", Lines: "    fastpath\n"},
	}
	names := strings.Split(o.servers, ",")
	return slices.DeleteFunc(all, func(s contained.Server) bool { return s.Program == "" || !slices.Contains(names, s.Name) })
}

func measure(ctx context.Context, o options) (results []*result, kept bool, err error) {
	if o.output == "table" {
		writeHead(os.Stdout)
	}
	kept = true
	for _, protocol := range strings.Split(o.over, ",") {
		for _, kind := range strings.Split(o.only, ",") {
			if !slices.Contains(kinds(), kind) || protocol != string(lab.UDP) && protocol != string(lab.TCP) {
				return nil, false, fmt.Errorf("there is no upstream %q over %q; there are %s, over udp and tcp", kind, protocol, strings.Join(kinds(), ", "))
			}
			for _, s := range o.chosen() {
				r, err := newMeasurement(s, o, kind, lab.Protocol(protocol)).run(ctx)
				if err != nil {
					return nil, false, fmt.Errorf("%s, upstream %s over %s: %w", s.Name, kind, protocol, err)
				}
				if s.NoTrack {
					r.judge()
					kept = kept && len(r.Failures) == 0
				}
				if o.output == "table" {
					r.write(os.Stdout)
				}
				results = append(results, r)
			}
		}
	}
	return results, kept, nil
}
