//go:build privileged

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/node/compare"
	"github.com/trackless-dns/trackless/node/snapshot"

	"github.com/trackless-dns/trackless/internal/testgolden"
)

// readBack reads a snapshot that the program wrote.
func readBack(t *testing.T, text string) *snapshot.Snapshot {
	t.Helper()
	s, err := snapshot.Read(strings.NewReader(text))
	if err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return s
}

func TestSnapshotOfANodeWithoutTrackless(t *testing.T) {
	_, ns := nodeTable(t, append(smallTable(),
		flow(conntrack.UDP, "10.244.0.9:4000", "10.96.0.10:53", replied, backend("10.244.1.2")))...)
	var s *snapshot.Snapshot
	// A machine that stalls for the whole window takes one sample.
	for attempt := 0; attempt < 10 && (s == nil || len(s.Samples) < 3); attempt++ {
		out, errs, code := trackless("snapshot", "--netns", ns, "--window", "600ms", "--node", "worker-1")
		if code != 0 {
			t.Fatalf("exit status %d: %s", code, errs)
		}
		s = readBack(t, out)
	}
	want := uint64(len(smallTable()) + 1)
	if s.Table.Entries != want || s.Table.Summary == nil || s.Table.Summary.Entries != want || s.Table.Summary.DNS.Entries == 0 || *s.Table.DNSPercent <= 0 {
		t.Errorf("table %+v, want %d entries", s.Table, want)
	}
	if s.Node.Name != "worker-1" || s.Node.BootID == "" || s.Node.NetworkNamespace == 0 || s.Node.Kernel == "" || s.Node.MemoryBytes == 0 {
		t.Errorf("node %+v", s.Node)
	}
	if s.WindowSeconds < .6 || len(s.Samples) < 2 || s.Samples[0].DNSEntries == nil || *s.Samples[0].DNSEntries != s.Table.Summary.DNS.Entries {
		t.Errorf("a window of %v s with samples %+v", s.WindowSeconds, s.Samples)
	}
	if drop := s.Counter("drop"); drop == nil || drop.PerSecond == nil || s.NewFlows == nil {
		t.Errorf("no rates: counters %+v, new flows %+v", s.Counters, s.NewFlows)
	}
	if s.Settings["net.netfilter.nf_conntrack_udp_timeout"] == 0 {
		t.Errorf("settings %v", s.Settings)
	}
	if s.Ledger != nil || s.Rules == nil || len(s.Rules.Instances) > 0 || len(s.Missing) > 0 {
		t.Errorf("ledger %+v, rules %+v, missing %v", s.Ledger, s.Rules, s.Missing)
	}
}

func TestSnapshotCountsNewEntries(t *testing.T) {
	ns := testns.New(t)
	ns.Do(func() {
		if err := testns.SetLinkUp("lo"); err != nil {
			t.Error(err)
		}
	})
	// Entries made over netlink are new ones to the kernel's listeners too.
	c, err := conntrack.Dial(&conntrack.Config{NetNS: ns.FD()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	var pairs atomic.Int64
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
			}
			for _, port := range []string{"53", "443"} {
				if err := c.Create(flow(conntrack.UDP, fmt.Sprintf("10.244.0.9:%d", 2000+pairs.Load()), "10.96.0.10:"+port)); err != nil {
					t.Error(err)
					return
				}
			}
			pairs.Add(1)
		}
	}()
	defer func() { close(stop); <-done }()

	check := func() error {
		before := pairs.Load()
		out, errs, code := trackless("snapshot", "--netns", fmt.Sprintf("/proc/self/fd/%d", ns.FD()), "--window", "1s")
		made := pairs.Load() - before + 1 // one may be half made
		if code != 0 {
			t.Fatalf("exit status %d: %s", code, errs)
		}
		s := readBack(t, out)
		first, last := s.Samples[0], s.Samples[len(s.Samples)-1]
		grown := float64(last.Entries - first.Entries)
		if s.NewFlows == nil || s.NewFlows.Lost || s.NewFlows.PerSecond*s.WindowSeconds > float64(2*made) || s.NewFlows.PerSecond*s.WindowSeconds < grown*.9 || grown == 0 {
			return fmt.Errorf("new flows %+v in %.2f s; %d pairs were made, the table grew by %.0f", s.NewFlows, s.WindowSeconds, made, grown)
		}
		if half := s.NewFlows.PerSecond / 2; s.NewFlows.DNSPerSecond < half-3 || s.NewFlows.DNSPerSecond > half+3 {
			return fmt.Errorf("%v of %v new flows a second are DNS, want half", s.NewFlows.DNSPerSecond, s.NewFlows.PerSecond)
		}
		return nil
	}
	// Samples and events are not of the very same time: a stall between the two
	// sets them apart.
	err = check()
	for attempt := 1; err != nil && attempt < 10; attempt++ {
		err = check()
	}
	if err != nil {
		t.Error(err)
	}
}

func TestSnapshotWithoutPrivilege(t *testing.T) {
	ns, _ := nodeTable(t, smallTable()...)
	withoutNetAdmin(t, ns, func() {
		out, errs, code := trackless("snapshot", "--window", "300ms")
		if code != cli.ExitCannotMeasure || !strings.Contains(errs, "CAP_NET_ADMIN") {
			t.Errorf("exit status %d: %s", code, errs)
		}
		s := readBack(t, out)
		if s.Table.Entries == 0 || s.Table.Summary != nil || s.NewFlows != nil || len(s.Missing) < 2 {
			t.Errorf("table %+v, new flows %+v, missing %v", s.Table, s.NewFlows, s.Missing)
		}
	})
}

func TestSnapshotFiles(t *testing.T) {
	_, ns := nodeTable(t, smallTable()...)
	dir := t.TempDir()
	path := filepath.Join(dir, "before.json")
	out, errs, code := trackless("snapshot", "--netns", ns, "--window", "0", "-o", path)
	if code != 0 || out != "" || !strings.Contains(errs, path+": ") || !strings.Contains(errs, "no Trackless attached") {
		t.Fatalf("exit status %d, %q, %q", code, out, errs)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s := readBack(t, string(text))
	if s.WindowSeconds != 0 || s.NewFlows != nil || s.Counter("drop").PerSecond != nil || len(s.Samples) != 1 {
		t.Errorf("a snapshot that was read once has rates: %+v", s)
	}

	if _, errs, code := trackless("snapshot", "--netns", ns, "--window", "0", "-o", filepath.Join(dir, "none", "x.json")); code != cli.ExitFailure || !strings.Contains(errs, "no such file") {
		t.Errorf("exit status %d: %s", code, errs)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}

	t.Run("compared", func(t *testing.T) {
		html := filepath.Join(dir, "report.html")
		out, errs, code := trackless("compare", path, path, "-o", "json", "--html", html)
		var c compare.Comparison
		if err := json.Unmarshal([]byte(out), &c); err != nil || code != 0 || c.Verdict.Outcome != compare.Unclear || c.Warnings[0].ID != "same-time" {
			t.Errorf("exit status %d, %v, %+v, %s", code, err, c.Verdict, errs)
		}
		page, err := os.ReadFile(html)
		if err != nil || !strings.Contains(string(page), "Nothing can be concluded") {
			t.Errorf("the page of %d bytes, %v", len(page), err)
		}
		out, _, code = trackless("compare", path, path)
		if code != 0 || !strings.Contains(out, "UNCLEAR") || strings.Contains(out, "\x1b[") {
			t.Errorf("exit status %d\n%s", code, out)
		}
	})
}

func TestSnapshotReplacesFilesAlone(t *testing.T) {
	_, ns := nodeTable(t)
	out, errs, code := trackless("snapshot", "--netns", ns, "--window", "0", "-o", "/dev/null")
	if code != 0 || out != "" {
		t.Errorf("exit status %d: %s", code, errs)
	}
	if info, err := os.Stat("/dev/null"); err != nil || info.Mode().Type() != os.ModeDevice|os.ModeCharDevice {
		t.Fatalf("/dev/null is %v now, error %v", info, err)
	}
}

// A full disk is no wrong command line, and no finding of doctor.
func TestOutputThatCannotBeWritten(t *testing.T) {
	_, ns := nodeTable(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "none", "x.json")
	golden := testgolden.NewRows(t, "unwritten.golden", dir, "DIR")
	for _, tc := range []struct {
		args string
		code int
	}{
		{"snapshot --window 0", cli.ExitFailure},
		{"snapshot --window 0 -o " + file, cli.ExitFailure},
		// As a read-only root, said before the node was watched for an hour.
		{"snapshot --window 1h -o /sys/x.json", cli.ExitFailure},
		{"support-bundle --window 1h -o /sys/x.tar.gz", cli.ExitFailure},
		{"conntrack stats", cli.ExitFailure},
		{"doctor --interval 1ms", cli.ExitCannotMeasure},
	} {
		t.Run(tc.args, func(t *testing.T) {
			full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = full.Close() }()
			root := rootCommand()
			args := strings.Fields(tc.args)
			if args[0] != "support-bundle" {
				args = append(args, "--netns", ns)
			}
			root.SetArgs(args)
			root.SetOut(full)
			root.SetErr(io.Discard)
			err = root.Execute()
			if code := cli.ExitStatus(err); code != tc.code {
				t.Errorf("exit status %d, want %d: %v", code, tc.code, err)
			}
			golden.Compare(t, tc.args, fmt.Sprint(err))
		})
	}
}
