// Command flood measures what one pod can do to the DNS of its node. It asks for
// 20,000 names a second that nobody has asked for before, while the upstream is
// dead, slow, closed or refuses, and another pod asks for names that are cached.
// The same is done to CoreDNS with the same Corefile, each in a container of
// 128 MiB.
//
// It needs root and changes nothing outside the network namespaces that it makes,
// but for a memory cgroup. It exits with 0 if Trackless keeps what is asked of
// it, 1 if it does not, and 2 if that could not be found out.
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

func run() (kept bool, err error) {
	output := flag.String("output", "table", "what goes to standard output: `table|json`")
	only := flag.String("only", "", "flood with these upstreams only, `kinds` separated by commas: "+strings.Join(kinds(), ", "))
	trackless := flag.String("program", "bin/trackless", "the trackless `binary` under test")
	coredns := flag.String("coredns", "", "the coredns `binary` beside it; empty leaves that out")
	last := flag.Duration("time", 12*time.Second, "how long each flood lasts, a `duration` of at most a minute")
	rate := flag.Int("rate", 20_000, "`queries` a second of the flood")
	flag.Parse()
	if flag.NArg() > 0 || *output != "table" && *output != "json" || *last <= 0 || *last > time.Minute {
		flag.Usage()
		os.Exit(2)
	}
	chosen := kinds()
	if *only != "" {
		chosen = strings.Split(*only, ",")
	}
	for _, kind := range chosen {
		if !slices.Contains(kinds(), kind) {
			return false, fmt.Errorf("no upstream is called %q; there are %s", kind, strings.Join(kinds(), ", "))
		}
	}
	if lacking := testcgroup.Lacking(); lacking != "" {
		return false, errors.New(lacking)
	}
	servers := []server{{name: "trackless", program: *trackless, notrack: true}}
	if *coredns != "" {
		servers = append(servers, server{name: "coredns", program: *coredns})
	}
	for i := range servers {
		if servers[i].program, err = filepath.Abs(servers[i].program); err != nil {
			return false, err
		}
	}
	tracklessBeside = servers[0].program
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	kept = true
	var results []*result
	if *output == "table" {
		writeHead(os.Stdout)
	}
	for _, kind := range chosen {
		var stock *result
		for _, s := range slices.Backward(servers) { // CoreDNS first: it is the bar
			m := measurement{server: s, upstream: kind, rate: *rate, last: *last}
			r, err := m.run(ctx)
			if err != nil {
				return false, fmt.Errorf("%s, upstream %s: %w", s.name, kind, err)
			}
			if s.notrack {
				r.judge(stock)
				kept = kept && len(r.Failures) == 0
			} else {
				stock = r
			}
			if *output == "table" {
				r.write(os.Stdout)
			}
			results = append(results, r)
		}
	}
	if *output == "json" {
		encoder := json.NewEncoder(os.Stdout)
		encoder.SetIndent("", "  ")
		err = encoder.Encode(map[string]any{"kept": kept, "floods": results})
	}
	return kept, err
}
