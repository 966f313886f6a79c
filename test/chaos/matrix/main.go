// Command matrix plays all faults of package chaos on this machine and writes
// a line for each. It needs root, and changes nothing outside the network
// namespaces that it makes.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/trackless-dns/trackless/test/chaos"
	"github.com/trackless-dns/trackless/test/chaos/scene"
)

func main() {
	ok, err := run()
	if err != nil {
		fmt.Fprintf(os.Stderr, "matrix: %v\n", err)
		os.Exit(2)
	}
	if !ok {
		os.Exit(1)
	}
}

func run() (ok bool, err error) {
	output := flag.String("output", "table", "what goes to standard output: `table|json`")
	report := flag.String("report", "", "also write the results as JSON to the `file`")
	page := flag.String("update-page", "", "put the table between its markers in the `file`")
	only := flag.String("only", "", "play these faults only, `names` separated by commas")
	backends := flag.String("backends", strings.Join(scene.Backends(), ","), "play them on these backends, `names` separated by commas")
	sabotage := flag.Bool("sabotage", true, "play each fault a second time with what it tests taken away: it must fail")
	hits := flag.Bool("kernel-hits", false, "play each fault with the kernel answering cached queries of pods")
	flag.Parse()
	if flag.NArg() > 0 || *output != "table" && *output != "json" {
		flag.Usage()
		os.Exit(2)
	}

	directory, err := os.MkdirTemp("", "trackless-chaos-")
	if err != nil {
		return false, err
	}
	defer func() { _ = os.RemoveAll(directory) }()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	var lines io.Writer = os.Stdout
	if *output == "json" {
		lines = os.Stderr // progress
	}
	var cases []*scene.Case
	for _, backend := range strings.Split(*backends, ",") {
		on, err := chaos.CasesOn(strings.TrimSpace(backend))
		if err != nil {
			return false, err
		}
		cases = append(cases, on...)
	}
	if *hits {
		for _, c := range cases {
			c.AnswerInKernel()
		}
	}
	matrix := &chaos.Matrix{
		Cases: cases, Programs: &scene.Programs{Directory: directory}, Sabotage: *sabotage, Out: lines,
	}
	if *only != "" {
		if err := matrix.Select(strings.Split(*only, ",")); err != nil {
			return false, err
		}
	}
	results, ok := matrix.Run(ctx)
	if err := context.Cause(ctx); err != nil {
		return false, err
	}
	if *output == "json" {
		if err := scene.WriteJSON(os.Stdout, results); err != nil {
			return false, err
		}
	}
	if *report != "" {
		if err := writeReport(*report, results); err != nil {
			return false, err
		}
	}
	if *page != "" {
		return ok, scene.UpdatePage(*page, results)
	}
	return ok, nil
}

func writeReport(path string, results []*scene.Result) (err error) {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	if err := scene.WriteJSON(file, results); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return file.Close()
}
