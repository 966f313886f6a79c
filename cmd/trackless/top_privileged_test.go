//go:build privileged

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/internal/testprogram"
	"github.com/trackless-dns/trackless/internal/testwait"
	"github.com/trackless-dns/trackless/iptables/control"
)

// terminal runs a command in a terminal of 100 columns. The functions are tmux's commands, and
// a wait for texts on the screen.
func terminal(t *testing.T, command string) (tmux func(args ...string) string, shows func(texts ...string)) {
	t.Helper()
	testns.Program(t, "tmux")
	socket := filepath.Join(t.TempDir(), "tmux")
	tmux = func(args ...string) string {
		t.Helper()
		out, err := exec.Command("tmux", append([]string{"-S", socket, "-f", "/dev/null"}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("tmux %q: %v\n%s", args, err, out)
		}
		return string(out)
	}
	shows = func(texts ...string) {
		t.Helper()
		testwait.Until(t, time.Minute, fmt.Sprintf("%q on the screen", texts), func() error {
			screen := tmux("capture-pane", "-p")
			for _, text := range texts {
				if !strings.Contains(screen, text) {
					return fmt.Errorf("no %q in\n%s", text, screen)
				}
			}
			return nil
		})
	}
	tmux("new-session", "-d", "-x", "100", "-y", "24", command)
	t.Cleanup(func() { _ = exec.Command("tmux", "-S", socket, "kill-server").Run() })
	return tmux, shows
}

// The screen in a real terminal: it shows the table, follows the keys, fits a terminal that
// becomes narrow, and leaves the terminal as it was.
func TestTopInATerminal(t *testing.T) {
	t.Parallel()
	binary, err := testprogram.Path()
	if err != nil {
		t.Fatal(err)
	}
	ns := testns.New(t)
	fillTable(t, ns, 300)
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "proc"), 0o755); err != nil {
		t.Fatal(err)
	}
	command := fmt.Sprintf("%s conntrack top --netns /proc/%d/fd/%d --root %s --node node-1 --interval 200ms; echo ended with $?; exec cat",
		binary, os.Getpid(), ns.FD(), root)
	tmux, shows := terminal(t, command)

	shows("node-1", "300 of ", "180 DNS", "by [pod] namespace", "10.244.0.0 ", "NEW/s", "UNREPLIED", "q quit")
	tmux("send-keys", "Tab", "Tab")
	shows("[service]", "(no Service)")
	tmux("send-keys", "4")
	shows("[destination]", "10.96.0.10:443 tcp", "10.96.0.10:53 udp")
	tmux("send-keys", "/", "443")
	shows("filter: 443_")
	testwait.True(t, time.Minute, "what the filter leaves", func() bool { return !strings.Contains(tmux("capture-pane", "-p"), ":53 udp") })
	tmux("send-keys", "Enter", "Space")
	shows("FROZEN", "filter: 443\n")
	tmux("resize-window", "-x", "60", "-y", "12")
	testwait.True(t, time.Minute, "fewer columns", func() bool {
		screen := tmux("capture-pane", "-p")
		return strings.Contains(screen, "space freeze") && !strings.Contains(screen, "up/down")
	})
	tmux("send-keys", "q")
	shows("ended with 0")
	if screen := tmux("capture-pane", "-p"); strings.Contains(screen, "[destination]") {
		t.Errorf("the screen stays:\n%s", screen)
	}
}

// busyInstance is an instance of which only the queries are asked.
type busyInstance struct{ control.Instance }

func (busyInstance) Status() control.Status { return control.Status{Process: control.Self()} }

func (busyInstance) CountQueries(ctx context.Context, d time.Duration) (control.QueryCounts, error) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
	total := control.QueryCount{Queries: 1234, Misses: 200, Kernel: 1000}
	return control.QueryCounts{
		Seconds: d.Seconds(), Total: total,
		Clients: []control.QueryCount{{Key: "192.0.2.7", Queries: 1200, Misses: 166, Kernel: 1000}, {Key: "192.0.2.8", Queries: 34, Misses: 34}},
		Names:   []control.QueryCount{{Key: control.Early, Queries: 1000, Kernel: 1000}, {Key: "www.example.org.", Queries: 234, Misses: 200}},
	}, ctx.Err()
}

// The screen of dns top in a real terminal has the same keys.
func TestDNSTopInATerminal(t *testing.T) {
	t.Parallel()
	binary, err := testprogram.Path()
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "proc"), 0o755); err != nil {
		t.Fatal(err)
	}
	server, err := control.Listen(filepath.Join(t.TempDir(), "control.sock"), busyInstance{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close() })
	tmux, shows := terminal(t, fmt.Sprintf("%s dns top --socket %s --root %s --node node-1 --interval 200ms; echo ended with $?; exec cat", binary, server.Addr(), root))
	shows("trackless dns top", "node-1", "1,234 queries", "by [pod] namespace", "192.0.2.7 ", "KERNEL", "83.3 %", "q quit")
	tmux("send-keys", "3")
	shows("[name]", "www.example.org.", "(fast path)")
	tmux("send-keys", "8", "s")
	shows("[tier]", "upstream", "sorted by CACHED")
	tmux("send-keys", "1", "/", "2.8", "Enter", "Space")
	shows("FROZEN", "filter: 2.8\n")
	testwait.True(t, time.Minute, "what the filter leaves", func() bool { return !strings.Contains(tmux("capture-pane", "-p"), "192.0.2.7") })
	tmux("resize-window", "-x", "60", "-y", "12")
	testwait.True(t, time.Minute, "fewer columns", func() bool { return !strings.Contains(tmux("capture-pane", "-p"), "SOCKET") })
	tmux("send-keys", "q")
	shows("ended with 0")
}

// While entries come and go, the pods have as many together as conntrack -L lists.
func TestPodsAddUpToTheTable(t *testing.T) {
	t.Parallel()
	testns.Program(t, "conntrack")
	binary, err := testprogram.Path()
	if err != nil {
		t.Fatal(err)
	}
	const size = 20_000
	ns := testns.New(t)
	fillTable(t, ns, size)
	c, err := conntrack.Dial(&conntrack.Config{NetNS: ns.FD()})
	if err != nil {
		t.Fatal(err)
	}
	stop, churned := make(chan struct{}), make(chan int)
	go func() {
		defer func() { _ = c.Close() }()
		for i := 0; ; i++ {
			select {
			case <-stop:
				churned <- i
				return
			default:
			}
			if err := errors.Join(c.Create(bigEntry(size+i)), c.Delete(bigEntry(i))); err != nil {
				t.Errorf("entry %d: %v", i, err)
				<-stop
				churned <- i
				return
			}
		}
	}()
	output := func(name string, args ...string) []byte {
		t.Helper()
		var out []byte
		var err error
		ns.Do(func() { out, err = exec.Command(name, args...).Output() })
		if err != nil {
			t.Errorf("%s %q: %v", name, args, err)
		}
		return out
	}
	worst := 0
	for range 5 {
		listed := bytes.Count(output("conntrack", "-L"), []byte("\n"))
		var report struct{ Groups []struct{ Entries int } }
		if err := json.Unmarshal(output(binary, "conntrack", "stats", "--by", "pod", "-o", "json"), &report); err != nil {
			t.Error(err)
		}
		sum := 0
		for _, g := range report.Groups {
			sum += g.Entries
		}
		worst = max(worst, abs(sum-listed))
		if abs(sum-listed)*50 > listed {
			t.Errorf("the pods have %d entries together, conntrack -L lists %d", sum, listed)
		}
	}
	close(stop)
	n := <-churned
	t.Logf("worst difference %d of %d entries, while %d were replaced", worst, size, n)
	if n < size/100 {
		t.Errorf("only %d entries were replaced meanwhile", n)
	}
}

func abs(n int) int { return max(n, -n) }
