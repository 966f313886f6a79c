package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/test/kernels"
)

// runPlan runs every case, also after one that failed.
func runPlan() error {
	text, err := os.ReadFile(planFile)
	if err != nil {
		return err
	}
	var plan kernels.Plan
	if err := json.Unmarshal(text, &plan); err != nil {
		return fmt.Errorf("%s: %w", planFile, err)
	}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return fmt.Errorf("read the kernel's release: %w", err)
	}
	report(kernels.Report{Kernel: unix.ByteSliceToString(name.Release[:])})
	for _, c := range plan.Cases {
		result := run(c, plan.Limit)
		report(kernels.Report{Result: &result})
	}
	report(kernels.Report{Done: true})
	return nil
}

// run runs a case in the folder of its tests, as go test does.
func run(c kernels.Case, limit time.Duration) kernels.Result {
	result := kernels.Result{Name: c.Name, What: c.What}
	// The tests stop themselves first, and say where they hang.
	ctx, cancel := context.WithTimeout(context.Background(), limit+30*time.Second)
	defer cancel()
	args := []string{"-test.v", "-test.count=1", "-test.timeout", limit.String()}
	if c.Tests != "" {
		args = append(args, "-test.run", c.Tests)
	}
	if c.Skip != "" {
		args = append(args, "-test.skip", c.Skip)
	}
	var output bytes.Buffer
	cmd := exec.CommandContext(ctx, filepath.Join("/tests", c.Binary()), args...)
	cmd.Dir = filepath.Join("/src", c.Package)
	cmd.Stdout, cmd.Stderr = &output, &output
	cmd.WaitDelay = 5 * time.Second
	start := time.Now()
	err := cmd.Run()
	result.Seconds = time.Since(start).Seconds()
	judge(&result, output.String(), err)
	return result
}

// verdict is the line that ends a test; those of subtests are indented.
var verdict = regexp.MustCompile(`(?m)^--- (PASS|FAIL|SKIP): (\S+)`)

// judge counts the tests. A case without a test that passed shows nothing.
func judge(result *kernels.Result, output string, err error) {
	for _, m := range verdict.FindAllStringSubmatch(output, -1) {
		switch m[1] {
		case "PASS":
			result.Tests++
		case "SKIP":
			result.Skipped = append(result.Skipped, m[2])
		}
	}
	switch {
	case err != nil:
		result.Failure = fmt.Sprintf("%v\n%s", err, failing(output))
	case len(result.Skipped) > 0:
		result.Failure = "skipped, which none may here:\n" + tail(output)
	case result.Tests == 0:
		result.Failure = "no test has run:\n" + tail(output)
	}
	result.Passed = result.Failure == ""
}

// failing is the output without that of tests that passed, or if that is
// nothing all of it.
func failing(output string) string {
	var kept []string
	var block []string
	keep := true
	flush := func() {
		if keep {
			kept = append(kept, block...)
		}
		block, keep = nil, true
	}
	for line := range strings.Lines(output) {
		if m := verdict.FindStringSubmatch(line); m != nil {
			keep = m[1] != "PASS"
			block = append(block, line)
			flush()
			continue
		}
		block = append(block, line)
	}
	flush()
	kept = slices.DeleteFunc(kept, func(line string) bool { return strings.HasPrefix(line, "=== ") })
	if len(kept) == 0 {
		return tail(output)
	}
	return tail(strings.Join(kept, ""))
}

// tail is the end of a text, enough to see what went wrong.
func tail(text string) string {
	const most = 32 << 10
	if len(text) <= most {
		return text
	}
	return "[…]\n" + text[len(text)-most:]
}
