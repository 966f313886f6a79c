// Command vm runs the cases of package kernels on Debian's kernel in a virtual
// machine, prints a line for each, and ends with status 0 if all passed, 1 if
// one did not, 2 if the machine could not be built or did not come to its end.
// It needs no privileges: the machine's tests are root there.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/trackless-dns/trackless/internal/module"
	"github.com/trackless-dns/trackless/test/kernels"
)

// A summary is what --output json shows.
type summary struct {
	Kernel string           `json:"kernel"`
	Passed bool             `json:"passed"`
	Cases  []kernels.Result `json:"cases"`
}

type options struct {
	cache, series, only string
	limit, caseLimit    time.Duration
	memory              int // MiB
}

func main() {
	var o options
	format := flag.String("output", "table", "what goes to standard output: `table|json`")
	list := flag.Bool("list", false, "list the cases and run nothing")
	flag.StringVar(&o.only, "only", "", "run these cases only, `names` separated by commas; also: those of hits in the kernel, which depend on the kernel's release most")
	flag.StringVar(&o.series, "kernel", "6.1", "the `series` of Debian's kernel")
	flag.StringVar(&o.cache, "cache", "", "the `folder` in which kernels are kept (default trackless-kernels in the user's cache folder); delete a kernel there to fetch its newest version")
	flag.DurationVar(&o.limit, "limit", 2*time.Hour, "end the machine after this `time`")
	flag.DurationVar(&o.caseLimit, "case-limit", 10*time.Minute, "end a case after this `time` of the machine's clock")
	flag.IntVar(&o.memory, "memory", 2048, "memory in `MiB`")
	flag.Parse()
	if flag.NArg() > 0 || *format != "table" && *format != "json" {
		flag.Usage()
		os.Exit(2)
	}
	if *list {
		for _, c := range kernels.Cases {
			fmt.Printf("%-16s %s\n", c.Name, c.What)
		}
		return
	}
	os.Exit(status(o, *format == "json"))
}

// status runs the cases, writes what became of them, and returns the exit
// status.
func status(o options, asJSON bool) int {
	lines := io.Writer(os.Stdout)
	if asJSON {
		lines = os.Stderr // progress
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	result, err := run(ctx, o, lines)
	if asJSON {
		encoder := json.NewEncoder(os.Stdout)
		encoder.SetIndent("", "  ")
		if jsonErr := encoder.Encode(result); err == nil {
			err = jsonErr
		}
	}
	switch {
	case err != nil:
		fmt.Fprintf(os.Stderr, "vm: %v\n", err)
		return 2
	case !result.Passed:
		return 1
	}
	return 0
}

func run(ctx context.Context, o options, lines io.Writer) (sum summary, err error) {
	if runtime.GOARCH != "amd64" {
		return sum, fmt.Errorf("the machine is amd64 and gets this machine's programs, which are for %s", runtime.GOARCH)
	}
	cases := kernels.Cases
	if o.only == "also" {
		o.only = kernels.OnOtherKernels
	}
	if o.only != "" {
		if cases, err = kernels.Select(cases, strings.Split(o.only, ",")); err != nil {
			return sum, err
		}
	}
	if o.cache == "" {
		if o.cache, err = os.UserCacheDir(); err != nil {
			return sum, err
		}
		o.cache = filepath.Join(o.cache, "trackless-kernels")
	}
	work, err := os.MkdirTemp("", "trackless-vm-")
	if err != nil {
		return sum, err
	}
	defer os.RemoveAll(work)
	e, err := prepare(ctx, o, cases, work)
	if err != nil {
		return sum, err
	}
	ctx, cancel := bounded(ctx, o.limit)
	defer cancel()
	passed := 0
	err = e.run(ctx, func(r kernels.Report) {
		if r.Kernel != "" {
			sum.Kernel = r.Kernel
			fmt.Fprintf(lines, "Linux %s, emulated\n", r.Kernel)
		}
		if r.Result == nil {
			return
		}
		sum.Cases = append(sum.Cases, *r.Result)
		if r.Result.Passed {
			passed++
		}
		writeLine(lines, *r.Result)
	})
	sum.Passed = err == nil && passed == len(cases)
	return sum, err
}

// prepare gets the kernel, compiles, and writes the initramfs.
func prepare(ctx context.Context, o options, cases []kernels.Case, work string) (*emulator, error) {
	m := machine{built: work, plan: kernels.Plan{Cases: cases, Limit: o.caseLimit}}
	var err error
	if m.source, err = module.Root(); err != nil {
		return nil, err
	}
	if m.kernel, err = fetchKernel(ctx, o.cache, o.series); err != nil {
		return nil, err
	}
	if m.modules, err = findModules(m.kernel.root); err != nil {
		return nil, err
	}
	if err := build(ctx, m.source, work, cases); err != nil {
		return nil, err
	}
	initramfs := filepath.Join(work, "initramfs.cpio")
	if err := m.write(ctx, initramfs); err != nil {
		return nil, err
	}
	return &emulator{
		kernel: m.kernel, initramfs: initramfs, console: filepath.Join(work, "console"),
		memory: o.memory,
	}, nil
}

// writeLine writes a case as one line, and below it why it did not pass.
func writeLine(w io.Writer, r kernels.Result) {
	verdict := "pass"
	if !r.Passed {
		verdict = "FAIL"
	}
	fmt.Fprintf(w, "%s  %-16s %3d tests %6.1f s  %s\n", verdict, r.Name, r.Tests, r.Seconds, r.What)
	if r.Failure != "" {
		fmt.Fprintf(w, "    %s\n", strings.ReplaceAll(strings.TrimSpace(r.Failure), "\n", "\n    "))
	}
}
