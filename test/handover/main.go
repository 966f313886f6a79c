// Command handover replaces an instance of Trackless by another one, again and again under
// load, and measures what the clients and kube-dns notice: queries that are lost, connections
// that fail, questions that are asked upstream again.
//
// It needs root and changes nothing outside the network namespaces that it makes. It exits
// with 0 if nothing was noticed, 1 if something was, and 2 if that could not be found out.
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

	"github.com/trackless-dns/trackless/internal/testprogram"
)

func main() {
	ok, err := run()
	if err != nil {
		fmt.Fprintf(os.Stderr, "handover: %v\n", err)
		os.Exit(2)
	}
	if !ok {
		os.Exit(1)
	}
}

// settings are those of a run.
type settings struct {
	program string
	rounds  int
	rate    float64 // queries a second over UDP; those over TCP in proportion
	names   int
	warmUp  time.Duration
}

// hold is the time before and after each replacement in which is measured.
const hold = 5 * time.Second

func run() (ok bool, err error) {
	var s settings
	output := flag.String("output", "table", "what goes to standard output: `table|json`")
	flag.StringVar(&s.program, "program", os.Getenv(testprogram.Var), "the trackless `binary` under test; default $TRACKLESS_PROGRAM, else bin/trackless")
	flag.IntVar(&s.rounds, "rounds", 20, "replacements in a row")
	flag.Float64Var(&s.rate, "rate", 5000, "queries a second over UDP; over TCP there are 8 new connections for each 100 of them")
	flag.IntVar(&s.names, "names", 10_000, "names that are asked for, for A and AAAA")
	flag.DurationVar(&s.warmUp, "warm-up", 40*time.Second, "time before the first replacement and after a death, until the flows of the ledger are as many as before")
	flag.Parse()
	if flag.NArg() > 0 || *output != "table" && *output != "json" || s.rounds < 1 || s.rate < 100 || s.names < 1 {
		flag.Usage()
		os.Exit(2)
	}
	if s.program == "" {
		s.program = "bin/trackless"
	}
	if s.program, err = filepath.Abs(s.program); err != nil {
		return false, err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	r, err := measure(ctx, s)
	if err != nil {
		return false, err
	}
	r.judge()
	if *output == "json" {
		encoder := json.NewEncoder(os.Stdout)
		encoder.SetIndent("", "  ")
		err = encoder.Encode(r)
	} else {
		r.writeTable(os.Stdout)
	}
	if len(r.Disturbances) > 0 {
		err = errors.Join(err, fmt.Errorf("this machine is too busy: %v", r.Disturbances))
	}
	return len(r.Failures) == 0, err
}
