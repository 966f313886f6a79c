// Command flood measures what one pod can do to the DNS of its node. It asks for
// 20,000 names a second that nobody has asked for before, while the upstream is
// dead, slow, closed or refuses, and another pod asks for names that are cached.
// The same is done to CoreDNS with the same Corefile, each in a container of
// 128 MiB.
//
// With -cpu it measures a steady load of cached names under a CPU limit instead: with
// notrack, and of the same program without it, which is the bar.
//
// It needs root and changes nothing outside the network namespaces that it makes,
// but for control groups. It exits with 0 if Trackless keeps what is asked of
// it, 1 if it does not, and 2 if that could not be found out.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/trackless-dns/trackless/internal/testcgroup"
	"github.com/trackless-dns/trackless/test/flood/contained"
)

func main() {
	kept, err := run()
	if err != nil {
		fmt.Fprintf(os.Stderr, "flood: %v\n", err)
		os.Exit(2)
	}
	if !kept {
		os.Exit(1)
	}
}

// options are the flags.
type options struct {
	output, only, program, coredns string
	last                           time.Duration
	rate, rounds                   int
	cpu                            int
	logs, lossless                 bool
}

func parse() options {
	var o options
	flag.StringVar(&o.output, "output", "table", "what goes to standard output: `table|json`")
	flag.StringVar(&o.only, "only", "", "flood with these upstreams only, `kinds` separated by commas: "+strings.Join(kinds(), ", "))
	flag.StringVar(&o.program, "program", "bin/trackless", "the trackless `binary` under test")
	flag.StringVar(&o.coredns, "coredns", "", "the coredns `binary` beside it; empty leaves that out")
	flag.DurationVar(&o.last, "time", 0, "how long each load lasts, a `duration` of at most two minutes (default 12s; 60s with -cpu)")
	flag.IntVar(&o.rate, "rate", 0, "`queries` a second (default 20000; 2000 with -cpu)")
	flag.IntVar(&o.cpu, "cpu", 0, "in place of floods a steady load under this CPU limit, in `thousandths` of a processor, with and without notrack")
	flag.IntVar(&o.rounds, "rounds", 1, "`how often` the load of -cpu is repeated")
	flag.BoolVar(&o.lossless, "lossless", false, "no query of -cpu may be lost that is not lost without notrack, and no lease may run out but one just after the start")
	flag.BoolVar(&o.logs, "logs", false, "write what the servers of -cpu log to standard error")
	flag.Parse()
	last, rate := 12*time.Second, 20_000
	if o.cpu > 0 {
		last, rate = time.Minute, 2000
	}
	o.last, o.rate = cmp.Or(o.last, last), cmp.Or(o.rate, rate)
	if flag.NArg() > 0 || o.output != "table" && o.output != "json" || o.last < 0 || o.last > 2*time.Minute || o.rate < 0 || o.cpu < 0 || o.rounds < 1 {
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
	name, measure := "floods", flood
	if o.cpu > 0 {
		name, measure = "throttled", throttle
	}
	results, kept, err := measure(ctx, o)
	if err == nil && o.output == "json" {
		encoder := json.NewEncoder(os.Stdout)
		encoder.SetIndent("", "  ")
		err = encoder.Encode(map[string]any{"kept": kept, name: results})
	}
	return kept, err
}

// flood measures all floods that are asked for.
func flood(ctx context.Context, o options) (results []any, kept bool, err error) {
	chosen := kinds()
	if o.only != "" {
		chosen = strings.Split(o.only, ",")
	}
	for _, kind := range chosen {
		if !slices.Contains(kinds(), kind) {
			return nil, false, fmt.Errorf("no upstream is called %q; there are %s", kind, strings.Join(kinds(), ", "))
		}
	}
	servers := []contained.Server{{Name: "trackless", Program: o.program, NoTrack: true, Backend: "auto"}}
	if o.coredns != "" {
		servers = append(servers, contained.Server{Name: "coredns", Program: o.coredns})
	}
	if o.output == "table" {
		writeHead(os.Stdout)
	}
	kept = true
	for _, kind := range chosen {
		var stock *result
		for _, s := range slices.Backward(servers) { // CoreDNS first: it is the bar
			m := measurement{Container: &contained.Container{Server: s, Lab: o.program}, upstream: kind, rate: o.rate, last: o.last}
			r, err := m.run(ctx)
			if err != nil {
				return nil, false, fmt.Errorf("%s, upstream %s: %w", s.Name, kind, err)
			}
			if s.NoTrack {
				r.judge(stock)
				kept = kept && len(r.Failures) == 0
			} else {
				stock = r
			}
			if o.output == "table" {
				r.write(os.Stdout)
			}
			results = append(results, r)
		}
	}
	return results, kept, nil
}

// throttle measures the steady load under a CPU limit, with each backend after the
// same server without the directive, which is the bar.
func throttle(ctx context.Context, o options) (results []any, kept bool, err error) {
	servers := []contained.Server{
		{Name: "without notrack", Program: o.program},
		{Name: "nftables", Program: o.program, NoTrack: true, Backend: "nftables"},
		{Name: "iptables", Program: o.program, NoTrack: true, Backend: "iptables"},
	}
	if o.output == "table" {
		writeThrottledHead(os.Stdout)
	}
	var logs io.Writer
	if o.logs {
		logs = os.Stderr
	}
	kept = true
	for range o.rounds {
		var bare *throttledResult
		for _, s := range servers {
			if o.only != "" && s.NoTrack && !slices.Contains(strings.Split(o.only, ","), s.Name) {
				continue
			}
			t := throttled{
				Container: &contained.Container{Server: s, Lab: o.program},
				quota:     testcgroup.Period * time.Duration(o.cpu) / 1000, rate: o.rate, last: o.last,
			}
			r, err := t.run(ctx, logs)
			if err != nil {
				return nil, false, fmt.Errorf("%s, under a CPU limit of %dm: %w", s.Name, o.cpu, err)
			}
			if s.NoTrack {
				r.judge(bare, o.lossless)
				kept = kept && len(r.Failures) == 0
			} else {
				bare = r
			}
			if o.output == "table" {
				r.write(os.Stdout)
			}
			results = append(results, r)
		}
	}
	return results, kept, nil
}
