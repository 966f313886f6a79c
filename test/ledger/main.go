// Command ledger measures how well Trackless counts the entries that it avoids. Two nodes
// get the same load, from the same source ports. On the first the load is tracked and goes
// through kube-proxy's DNAT to kube-dns. On the second `trackless serve` keeps it out of
// the table. Each second the entries in the first node's table are compared with the
// number that the second node says it avoids.
//
// It needs root and changes nothing outside the network namespaces that it makes.
// It exits with 0 if the two agree, 1 if they do not, and 2 if that could not be
// found out.
package main

import (
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

	"github.com/trackless-dns/trackless/internal/testprogram"
)

func main() {
	agree, err := run()
	if err != nil {
		fmt.Fprintf(os.Stderr, "ledger: %v\n", err)
		os.Exit(2)
	}
	if !agree {
		os.Exit(1)
	}
}

func run() (agree bool, err error) {
	output := flag.String("output", "table", "what goes to standard output: `table|json`")
	only := flag.String("only", "", "measure these loads only, `names` separated by commas: "+strings.Join(names(loads), ", "))
	program := flag.String("program", os.Getenv(testprogram.Var), "the trackless `binary` under test; default $TRACKLESS_PROGRAM, else bin/trackless")
	flag.Parse()
	if flag.NArg() > 0 || *output != "table" && *output != "json" {
		flag.Usage()
		os.Exit(2)
	}
	chosen, err := choose(*only)
	if err != nil {
		return false, err
	}
	if *program == "" {
		*program = "bin/trackless"
	}
	if *program, err = filepath.Abs(*program); err != nil {
		return false, err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	var table io.Writer = os.Stdout
	if *output == "json" {
		table = io.Discard
	}
	agree = true
	var results []*Result
	var disturbed []string
	for _, l := range chosen {
		fmt.Fprintf(os.Stderr, "%s: %s\n", l.name, l.what)
		r, err := measureUndisturbed(ctx, *program, l)
		if err != nil {
			return false, fmt.Errorf("%s: %w", l.name, err)
		}
		r.writeTable(table)
		results = append(results, r)
		agree = agree && r.Agree
		if len(r.Disturbances) > 0 {
			disturbed = append(disturbed, l.name)
		}
	}
	if *output == "json" {
		encoder := json.NewEncoder(os.Stdout)
		encoder.SetIndent("", "  ")
		err = encoder.Encode(map[string]any{"agree": agree, "loads": results})
	}
	if len(disturbed) > 0 {
		err = errors.Join(err, fmt.Errorf("%s: this machine is too busy to send two nodes the same, and to count both each second", strings.Join(disturbed, ", ")))
	}
	return agree, err
}

// choose returns the loads with the given names, all of them for none.
func choose(only string) ([]load, error) {
	if only == "" {
		return loads, nil
	}
	var chosen []load
	for name := range strings.SplitSeq(only, ",") {
		i := slices.IndexFunc(loads, func(l load) bool { return l.name == name })
		if i < 0 {
			return nil, fmt.Errorf("no load is called %q; there are %s", name, strings.Join(names(loads), ", "))
		}
		chosen = append(chosen, loads[i])
	}
	return chosen, nil
}

func names(list []load) []string {
	out := make([]string, len(list))
	for i, l := range list {
		out[i] = l.name
	}
	return out
}
