//go:build privileged

package main

import (
	"bytes"
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
)

// The screen in a real terminal: it shows the table, follows the keys, fits a terminal that
// becomes narrow, and leaves the terminal as it was.
func TestTopInATerminal(t *testing.T) {
	t.Parallel()
	testns.Program(t, "tmux")
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
	socket := filepath.Join(t.TempDir(), "tmux")
	tmux := func(args ...string) string {
		t.Helper()
		out, err := exec.Command("tmux", append([]string{"-S", socket, "-f", "/dev/null"}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("tmux %q: %v\n%s", args, err, out)
		}
		return string(out)
	}
	shows := func(texts ...string) {
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
	command := fmt.Sprintf("%s conntrack top --netns /proc/%d/fd/%d --root %s --node node-1 --interval 200ms; echo ended with $?; exec cat",
		binary, os.Getpid(), ns.FD(), root)
	tmux("new-session", "-d", "-x", "100", "-y", "24", command)
	t.Cleanup(func() { _ = exec.Command("tmux", "-S", socket, "kill-server").Run() })

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
