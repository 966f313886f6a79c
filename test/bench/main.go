// Command bench measures what a server costs on a node where nobody asks, and where
// ten queries a second come: processor time, wake-ups, system calls, and the kernel
// memory of its sets. Trackless with one, two and four listen addresses and either
// backend runs beside CoreDNS, node-cache and itself without notrack, all at the same
// time, each on a node of its own.
//
// It needs root and changes nothing outside the network namespaces that it makes. It
// exits with 0 if Trackless keeps its bars, 1 if it does not, and 2 if that could not
// be found out.
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
	"syscall"
	"time"
)

func main() {
	kept, err := run()
	if err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(2)
	}
	if !kept {
		os.Exit(1)
	}
}

// options are the flags.
type options struct {
	program, other, coredns, nodeCache string

	output       string
	last, settle time.Duration
	rate         float64
}

func parse() options {
	var o options
	flag.StringVar(&o.program, "program", "bin/trackless", "the trackless `binary` under test")
	flag.StringVar(&o.other, "other", "", "another trackless `binary` to compare with, such as that of an older commit")
	flag.StringVar(&o.coredns, "coredns", "", "the coredns `binary` to compare with")
	flag.StringVar(&o.nodeCache, "node-cache", "", "the `binary` of Kubernetes' node-cache to compare with; no module proxy has it")
	flag.StringVar(&o.output, "output", "table", "what goes to standard output: `table|json`")
	flag.DurationVar(&o.last, "time", time.Minute, "how long each load is measured")
	flag.DurationVar(&o.settle, "settle", 30*time.Second, "how long the servers run before anything is measured: one that has just started looks at everything more often")
	flag.Float64Var(&o.rate, "rate", 10, "`queries` a second of the second load; 0 leaves it out")
	flag.Parse()
	if flag.NArg() > 0 || o.output != "table" && o.output != "json" || o.last < time.Second || o.settle < 0 || o.rate < 0 || o.rate > 1000 {
		flag.Usage()
		os.Exit(2)
	}
	return o
}

func run() (kept bool, err error) {
	o := parse()
	for _, program := range []*string{&o.program, &o.other, &o.coredns, &o.nodeCache} {
		if *program == "" {
			continue
		}
		if *program, err = filepath.Abs(*program); err != nil {
			return false, err
		}
		if _, err := os.Stat(*program); err != nil {
			return false, fmt.Errorf("find a server to measure: %w", err)
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	r, err := measure(ctx, o)
	if err != nil {
		return false, err
	}
	if o.output == "json" {
		encoder := json.NewEncoder(os.Stdout)
		encoder.SetIndent("", "  ")
		return r.Kept, encoder.Encode(r)
	}
	r.writeTable(os.Stdout)
	return r.Kept, nil
}

// measure starts all servers, measures them while nobody asks, and then under load.
func measure(ctx context.Context, o options) (r *report, err error) {
	syscalls, err := findSyscalls()
	if err != nil {
		fmt.Fprintf(os.Stderr, "bench: system calls are not counted: %v\n", err)
	}
	var servers []*server
	defer func() {
		for _, s := range servers {
			err = errors.Join(err, s.Close())
		}
	}()
	for _, c := range o.configurations() {
		s, err := c.open(ctx, o.program)
		if err != nil {
			return nil, err
		}
		servers = append(servers, s)
	}
	if err := wait(ctx, o.settle); err != nil {
		return nil, err
	}
	r = &report{Seconds: o.last.Seconds(), Rate: o.rate}
	fmt.Fprintf(os.Stderr, "bench: %d servers idle for %s\n", len(servers), o.last)
	if r.Idle, err = measureOnce(ctx, servers, syscalls, o.last); err != nil {
		return nil, err
	}
	for i, s := range servers {
		if r.Idle[i].SetBytes, err = s.setMemory(); err != nil {
			return nil, fmt.Errorf("%s: %w", s.row(), err)
		}
	}
	if o.rate > 0 {
		if r.Busy, err = measureAsked(ctx, servers, syscalls, o); err != nil {
			return nil, err
		}
	}
	r.LoadAverage = loadAverage()
	r.judge()
	return r, nil
}

// wait returns after the time, or with an error when the context ends.
func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
