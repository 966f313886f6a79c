//go:build privileged

package main_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/lab/labtest"
	"github.com/trackless-dns/trackless/node/compare"
)

// runLab runs `trackless lab` to its end.
func runLab(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, errOut bytes.Buffer
	cmd := exec.Command(labtest.Program(t), append([]string{"lab"}, args...)...)
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errOut.String()
}

func TestLabJSON(t *testing.T) {
	labtest.Require(t)
	html := filepath.Join(t.TempDir(), "lab.html")
	run := func() (status int, stdout, stderr string) {
		return runLab(t, "--queries", "1000", "--seed", "3", "--output", "json", "--html", html)
	}
	status, stdout, stderr := run()
	for attempt := 1; status == 1 && attempt < 3; attempt++ { // a starved machine keeps no promise
		status, stdout, stderr = run()
	}
	if status != 0 || stderr != "" {
		t.Errorf("exit status %d, standard error %q (progress is for terminals)", status, stderr)
	}
	type phase struct {
		Queries          int             `json:"queries"`
		Answered         int             `json:"answered"`
		DNSEntriesPeak   int             `json:"dns_entries_peak"`
		EntriesAvoided   int             `json:"entries_avoided_peak"`
		AnsweredBy       map[string]int  `json:"answered_by"`
		InsertFailed     json.RawMessage `json:"insert_failed"`
		UpstreamEntries  int             `json:"upstream_entries_peak"`
		MicrosecondsMost int             `json:"p99_us"`
		Course           []struct {
			Avoided *int `json:"entries_avoided"`
		}
		Table struct{ Entries int }
	}
	var report struct {
		Seed          int
		Before, After phase
		Kept          bool
		Promises      []any
	}
	if err := json.Unmarshal([]byte(stdout), &report); err != nil {
		t.Fatalf("%v in %s", err, stdout)
	}
	before, after := report.Before, report.After
	if report.Seed != 3 || !report.Kept {
		t.Errorf("seed %d, kept %t", report.Seed, report.Kept)
	}
	if before.Queries != 1000 || before.Answered != 1000 || before.DNSEntriesPeak != 1000 || before.AnsweredBy["kube-dns"] != 1000 {
		t.Errorf("before: %+v", before)
	}
	if after.Queries != 1000 || after.Answered != 1000 || after.DNSEntriesPeak != 0 || after.AnsweredBy["trackless"] != 1000 ||
		after.EntriesAvoided == 0 || after.UpstreamEntries == 0 || after.MicrosecondsMost == 0 {
		t.Errorf("after: %+v", after)
	}
	if len(before.Course) < 2 || before.Table.Entries != 1000 || len(after.Course) < 2 || after.Course[len(after.Course)-1].Avoided == nil {
		t.Errorf("courses of %d and %d samples, a table of %d", len(before.Course), len(after.Course), before.Table.Entries)
	}
	checkLabPage(t, html, len(report.Promises))
}

func checkLabPage(t *testing.T, path string, promises int) {
	t.Helper()
	page, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(page), `<script type="application/json" id="comparison">`)
	text, _, _ = strings.Cut(text, "</script>")
	var c compare.Comparison
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	// A machine that stalls sends the second load more slowly.
	c.Warnings = slices.DeleteFunc(c.Warnings, func(w compare.Warning) bool { return w.ID == "different-load" })
	if c.Verdict.Outcome != compare.Improved || len(c.Warnings) > 0 || len(c.Checks) != promises {
		t.Errorf("verdict %+v, warnings %v, %d promises", c.Verdict, c.Warnings, len(c.Checks))
	}
	for id, want := range map[string]float64{"dns_entries": 1000, "answered": 1000, "queries": 1000} {
		if f := c.Figure(id); f == nil || f.Before == nil || *f.Before != want {
			t.Errorf("%s is %+v, want %v before", id, f, want)
		}
	}
	if f := c.Figure("entries_avoided"); f.After == nil || *f.After != 1000 {
		t.Errorf("entries_avoided is %+v", f)
	}
}

func TestLabUsage(t *testing.T) {
	tests := []struct {
		name string
		args []string
		want []string // on standard error
	}{
		{"unknown scenario", []string{"--scenario", "doom"}, []string{"doom", "steady", "exhaustion"}},
		{"unknown output", []string{"--output", "xml"}, []string{"xml", "table", "json"}},
		{"too many queries", []string{"--queries", "1000001"}, []string{"1000000"}},
		{"negative queries", []string{"--queries", "-1"}, []string{"-1"}},
		{"no rate", []string{"--rate", "0"}, []string{"--rate"}},
		{"no pods", []string{"--pods", "0"}, []string{"--pods"}},
		{"too many pods", []string{"--pods", "41"}, []string{"--pods"}},
		{"few names for search", []string{"--scenario", "search", "--queries", "499"}, []string{"500", "499"}},
		{"search has no page", []string{"--scenario", "search", "--html", "x.html"}, []string{"--html", "search"}},
		{"unknown flag", []string{"--quick"}, []string{"--quick"}},
		{"argument", []string{"now"}, []string{"now"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			status, stdout, stderr := runLab(t, test.args...)
			if status != 2 || stdout != "" {
				t.Errorf("exit status %d, standard output %q, want 2 and nothing", status, stdout)
			}
			for _, want := range test.want {
				if !strings.Contains(stderr, want) {
					t.Errorf("standard error %q lacks %q", stderr, want)
				}
			}
		})
	}
}

func TestLabWithoutPrivileges(t *testing.T) {
	labtest.Require(t)
	program := labtest.Program(t)
	var output []byte
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		// The bounding set is the thread's own, and this one ends with the
		// goroutine.
		runtime.LockOSThread()
		if err = unix.Prctl(unix.PR_CAPBSET_DROP, unix.CAP_SYS_ADMIN, 0, 0, 0); err == nil {
			output, err = exec.Command(program, "lab").CombinedOutput()
		}
	}()
	<-done
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 2 {
		t.Errorf("without CAP_SYS_ADMIN it ended with %v, want exit status 2; output: %s", err, output)
	}
	if !strings.Contains(string(output), "CAP_SYS_ADMIN") {
		t.Errorf("the output does not say what is missing: %s", output)
	}
}

func TestLabOnATerminal(t *testing.T) {
	labtest.Require(t)
	const green = "\x1b[32m"
	for _, test := range []struct {
		name   string
		env    string
		colour bool
	}{
		{"plain", "NO_COLOR=", true},
		{"NO_COLOR", "NO_COLOR=1", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command(labtest.Program(t), "lab", "--queries", "1000")
			cmd.Env = append(os.Environ(), test.env)
			screen := onTerminal(t, cmd)
			if !strings.Contains(screen, "\rbefore: sending queries") && !strings.Contains(screen, "\x1b[Kbefore: sending queries") {
				t.Errorf("no progress on the terminal: %q", screen)
			}
			if got := strings.Contains(screen, green); got != test.colour {
				t.Errorf("colour is %t, want %t: %q", got, test.colour, screen)
			}
		})
	}
}

// onTerminal runs the command with a pseudo-terminal for its output and
// returns what it wrote there.
func onTerminal(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		testns.Skip(t, "no pseudo-terminals here: %v", err)
	}
	defer func() { _ = master.Close() }()
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile("/dev/pts/"+strconv.Itoa(number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = slave, slave
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = slave.Close()
	// Reading fails with EIO once nobody has the terminal open any more.
	screen, _ := io.ReadAll(master)
	// Whether a starved machine keeps the promises is not what is seen here.
	if err := cmd.Wait(); err != nil && !strings.Contains(string(screen), "Trackless did not do what it must") {
		t.Errorf("%v; it wrote %q", err, screen)
	}
	return string(screen)
}

// However the lab is ended, its servers end with it, and with them the
// namespaces: nothing else refers to those.
func TestLabInterrupted(t *testing.T) {
	labtest.Require(t)
	for _, test := range []struct {
		signal syscall.Signal
		status int // -1: killed by the signal
		says   string
	}{
		{syscall.SIGINT, 130, "interrupted"},
		{syscall.SIGTERM, 130, "interrupted"},
		{syscall.SIGKILL, -1, ""},
	} {
		t.Run(test.signal.String(), func(t *testing.T) {
			t.Parallel()
			var output bytes.Buffer
			cmd := exec.Command(labtest.Program(t), "lab", "--queries", "1000000")
			cmd.Stdout, cmd.Stderr = &output, &output
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = cmd.Process.Kill() }()
			var servers []int
			poll(t, "kube-dns runs as a child of the lab", func() bool {
				servers = childrenOf(t, cmd.Process.Pid)
				return len(servers) > 0
			})
			namespaces := make(map[string]bool)
			for _, server := range servers {
				if ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", server)); err == nil {
					namespaces[ns] = true
				}
			}
			if err := cmd.Process.Signal(test.signal); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			if status := cmd.ProcessState.ExitCode(); status != test.status || !strings.Contains(output.String(), test.says) {
				t.Errorf("exit status %d, output %q, want %d and %q", status, output.String(), test.status, test.says)
			}
			poll(t, "its servers have ended", func() bool {
				for _, server := range servers {
					if syscall.Kill(server, 0) == nil {
						return false
					}
				}
				return true
			})
			for ns := range namespaces {
				if users := processesIn(t, ns); len(users) > 0 {
					t.Errorf("processes %v are still in %s", users, ns)
				}
			}
		})
	}
}

// childrenOf lists the processes whose parent is the given one.
func childrenOf(t *testing.T, pid int) []int {
	t.Helper()
	return processes(t, func(dir string) bool {
		stat, err := os.ReadFile(filepath.Join(dir, "stat"))
		if err != nil {
			return false // it has ended
		}
		// The name, in parentheses, may itself hold anything; see proc(5).
		_, rest, _ := strings.Cut(string(stat), ") ")
		fields := strings.Fields(rest)
		return len(fields) > 1 && fields[1] == strconv.Itoa(pid)
	})
}

// processesIn lists the processes in a network namespace.
func processesIn(t *testing.T, ns string) []int {
	t.Helper()
	return processes(t, func(dir string) bool {
		is, err := os.Readlink(filepath.Join(dir, "ns/net"))
		return err == nil && is == ns
	})
}

func processes(t *testing.T, which func(dir string) bool) []int {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, dir := range dirs {
		if pid, err := strconv.Atoi(filepath.Base(dir)); err == nil && which(dir) {
			pids = append(pids, pid)
		}
	}
	return pids
}

func poll(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !holds() {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
