//go:build privileged

package main

import (
	"bytes"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/conntrack/sysctl"
	"github.com/trackless-dns/trackless/internal/testns"
)

// bigTable is the number of entries with which the promises about time and
// memory are checked.
const bigTable = 250_000

// fillTable makes n entries such as a node has: most of them DNS over a Service.
func fillTable(t testing.TB, ns *testns.Namespace, n int, change ...func(*conntrack.Entry)) {
	t.Helper()
	const workers = 2
	var wg sync.WaitGroup
	errs := make([]error, workers)
	for w := range workers {
		c, err := conntrack.Dial(&conntrack.Config{NetNS: ns.FD()})
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			defer func() { _ = c.Close() }()
			for i := w; i < n && errs[w] == nil; i += workers {
				e := bigEntry(i)
				for _, f := range change {
					f(e)
				}
				errs[w] = c.Create(e)
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func bigEntry(i int) *conntrack.Entry {
	e := &conntrack.Entry{Timeout: time.Hour}
	e.Original = conntrack.Tuple{
		Src: netip.AddrFrom4([4]byte{10, 244, byte(i / 28000), byte(i % 97)}), Dst: netip.AddrFrom4([4]byte{10, 96, 0, 10}),
		SrcPort: uint16(32768 + i%28000), DstPort: 53, Proto: conntrack.UDP,
	}
	if i%5 >= 3 {
		e.Original.Proto, e.Original.DstPort = conntrack.TCP, 443
		e.TCP.State = []conntrack.TCPState{conntrack.TCPEstablished, conntrack.TCPTimeWait}[i%2]
		e.Status = conntrack.StatusSeenReply | conntrack.StatusAssured
	}
	e.Reply = e.Original.Mirror()
	if i%5 == 0 {
		e.Reply.Src = netip.AddrFrom4([4]byte{10, 244, 0, 53})
	}
	return e
}

// measured is one run of a program.
type measured struct {
	wall   time.Duration
	rss    int64 // peak resident bytes
	lines  int
	output []byte
}

// timeRun runs a program in the namespace three times and returns the fastest
// run: the machine has other work.
func timeRun(t *testing.T, ns *testns.Namespace, keep bool, name string, args ...string) measured {
	t.Helper()
	var runs []measured
	for range 3 {
		var out bytes.Buffer
		lines := &lineCounter{}
		cmd := exec.Command(name, args...)
		cmd.Stdout = io.Writer(lines)
		if keep {
			cmd.Stdout = &out
		}
		cmd.Stderr = io.Discard
		var err error
		start := time.Now()
		ns.Do(func() { err = cmd.Start() })
		if err != nil {
			t.Fatalf("%s %v: %v", name, args, err)
		}
		peak := watchPeak(cmd.Process.Pid)
		if err := cmd.Wait(); err != nil {
			t.Fatalf("%s %v: %v", name, args, err)
		}
		runs = append(runs, measured{time.Since(start), <-peak, lines.n, out.Bytes()})
	}
	return slices.MinFunc(runs, func(a, b measured) int { return int(a.wall - b.wall) })
}

// watchPeak reads a process's peak resident size until it is gone. The number
// that wait4(2) returns is of no use: it is at least that of the process which
// forked, this one.
func watchPeak(pid int) <-chan int64 {
	result := make(chan int64, 1)
	go func() {
		var peak int64
		for {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
			_, rest, alive := strings.Cut(string(b), "VmHWM:")
			if err != nil || !alive {
				result <- peak
				return
			}
			var kb int64
			if _, err := fmt.Sscan(rest, &kb); err == nil {
				peak = kb << 10
			}
			time.Sleep(2 * time.Millisecond)
		}
	}()
	return result
}

type lineCounter struct{ n int }

func (l *lineCounter) Write(b []byte) (int, error) {
	l.n += bytes.Count(b, []byte{'\n'})
	return len(b), nil
}

// TestBigTable checks the promises about a table of 250,000 entries: the right
// number of lines, at most 25 MB above idle, list within 2 x, stats within 1.5 x and
// stats --by within 1.2 x the time of conntrack -L. It takes about a minute and compares times, so
// it runs only when asked for: make bigtable.
func TestBigTable(t *testing.T) {
	if os.Getenv("TRACKLESS_BIG_TABLE") != "1" {
		t.Skip("asked for with TRACKLESS_BIG_TABLE=1")
	}
	binary := filepath.Join(t.TempDir(), "trackless")
	if out, err := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	ns := testns.New(t)
	limits, err := sysctl.ReadLimits("")
	if err != nil || limits.Max < bigTable+1000 {
		testns.Skip(t, "nf_conntrack_max %d leaves no room for %d entries (%v)", limits.Max, bigTable, err)
	}
	start := time.Now()
	fillTable(t, ns, bigTable)
	t.Logf("%d entries made in %s", bigTable, time.Since(start).Round(time.Millisecond))

	// Idle is a process of the same binary that waits for events.
	idle := timeRun(t, ns, false, binary, "conntrack", "watch", "--duration", "200ms")
	theirs := timeRun(t, ns, false, "conntrack", "-L")
	report := func(name string, m measured, allowed float64) {
		t.Logf("%-28s %8s  %.2f x conntrack -L  peak %5.1f MB, %5.1f MB above idle, %d lines", name, m.wall.Round(time.Millisecond),
			float64(m.wall)/float64(theirs.wall), float64(m.rss)/1e6, float64(m.rss-idle.rss)/1e6, m.lines)
		if allowed > 0 && float64(m.wall) > allowed*float64(theirs.wall) {
			t.Errorf("%s took %s, allowed are %.1f x %s", name, m.wall, allowed, theirs.wall)
		}
		if allowed > 0 && m.rss-idle.rss > 25<<20 {
			t.Errorf("%s: peak resident %d MB above idle, allowed are 25 MB", name, (m.rss-idle.rss)>>20)
		}
	}
	report("idle", idle, 0)
	report("conntrack -L", theirs, 0)
	for _, format := range []string{"jsonl", "json", "yaml", "table", "wide", "conntrack"} {
		m := timeRun(t, ns, false, binary, "conntrack", "list", "-o", format)
		report("list -o "+format, m, 2)
		if format == "jsonl" && m.lines != bigTable {
			t.Errorf("list -o jsonl has %d lines, want %d", m.lines, bigTable)
		}
	}
	report("list --proto udp --dport 53", timeRun(t, ns, false, binary, "conntrack", "list", "--proto", "udp", "--dport", "53", "-o", "jsonl"), 2)
	report("stats", timeRun(t, ns, false, binary, "conntrack", "stats"), 1.5)
	report("stats --by pod", timeRun(t, ns, false, binary, "conntrack", "stats", "--by", "pod", "-o", "json"), 1.2)
	twice := timeRun(t, ns, false, binary, "conntrack", "top", "--once", "--interval", "100ms")
	report("top --once, two readings", twice, 2*1.2+0.1)

	ours := timeRun(t, ns, true, binary, "conntrack", "list", "-o", "conntrack")
	reference := timeRun(t, ns, true, "conntrack", "-L")
	if a, b := withoutTimeouts(ours.output), withoutTimeouts(reference.output); !slices.Equal(a, b) {
		t.Errorf("list -o conntrack and conntrack -L differ: %d and %d lines", len(a), len(b))
	}
}

// withoutTimeouts returns the sorted lines without their third column.
func withoutTimeouts(b []byte) []string {
	lines := make([]string, 0, bigTable)
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		lines = append(lines, fmt.Sprint(f[:2], f[3:]))
	}
	slices.Sort(lines)
	return lines
}
