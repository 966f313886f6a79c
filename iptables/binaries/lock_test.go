//go:build privileged

package binaries

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/legacy"
)

// ownLock gives the programs a lock file of the test.
func ownLock(t *testing.T) (lock string) {
	t.Helper()
	lock = filepath.Join(t.TempDir(), "xtables.lock")
	t.Setenv("XTABLES_LOCKFILE", lock)
	return lock
}

// hold takes the xtables lock.
func hold(t *testing.T, lock string) (release func()) {
	t.Helper()
	file, err := os.OpenFile(lock, os.O_CREATE|os.O_RDONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	return func() { _ = file.Close() }
}

func TestLockHeldByAnother(t *testing.T) {
	testns.Enter(t)
	testns.Program(t, "iptables-legacy")
	lock := ownLock(t)
	counted := map[string]int{}
	b := newBackend(t, Config{Variant: Legacy, Count: func(errorType string) { counted[errorType]++ }})
	rules := iptables.Rules{Plan: dnsPlan("10.96.0.10", "fd00::a")}

	release := hold(t, lock)
	err := b.Install(rules)
	var locked *LockError
	if !errors.Is(err, iptables.ErrBusy) || !errors.As(err, &locked) || counted["iptables_lock"] != 1 {
		t.Errorf("install under the lock: %v, counted %v", err, counted)
	}
	if text := saved(t, Legacy); strings.Contains(text, chainPrefix) {
		t.Errorf("something was installed:\n%s", text)
	}
	release()
	if err := b.Install(rules); err != nil {
		t.Fatalf("install after the lock: %v", err)
	}
	if err := b.Attach(); err != nil {
		t.Fatal(err)
	}

	// Reading and detaching do not wait for the lock.
	release = hold(t, lock)
	if present, err := b.Present(); !present || err != nil {
		t.Errorf("present: %t, %v", present, err)
	}
	if _, err := b.Counters(); err != nil {
		t.Error(err)
	}
	if err := b.Detach(nil); err != nil {
		t.Errorf("detach under the lock: %v", err)
	}
	if live, err := b.Live(); len(live) > 0 || err != nil {
		t.Errorf("after the detach %v are live, %v", live, err)
	}
	release()
}

// A missing lock file is not a lock that is held.
func TestLockThatIsNotThere(t *testing.T) {
	testns.Enter(t)
	testns.Program(t, "iptables-legacy")
	t.Setenv("XTABLES_LOCKFILE", filepath.Join(t.TempDir(), "not mounted", "xtables.lock"))
	b := newBackend(t, Config{Variant: Legacy})
	err := b.Install(iptables.Rules{Plan: dnsPlan("10.96.0.10")})
	if errors.Is(err, iptables.ErrBusy) || !errors.Is(err, legacy.ErrNoLock) {
		t.Errorf("install: %v", err)
	}
}

// Starts and stops while another program takes the lock again and again leave nothing,
// install nothing twice, and fail only because of the lock.
func TestCyclesUnderAContendedLock(t *testing.T) {
	testns.Enter(t)
	testns.Program(t, "iptables-legacy")
	cycles := 25
	if os.Getenv("TRACKLESS_CYCLES") != "" {
		if _, err := fmt.Sscan(os.Getenv("TRACKLESS_CYCLES"), &cycles); err != nil {
			t.Fatal(err)
		}
	}
	lock := ownLock(t)
	// It ends by itself if this process is killed.
	contender := exec.Command("sh", "-c", `while kill -0 "$1"; do flock "$0" sleep 0.05; sleep 0.01; done`, lock, strconv.Itoa(os.Getpid()))
	contender.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	testns.Program(t, "flock")
	if err := contender.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = unix.Kill(-contender.Process.Pid, unix.SIGKILL)
		_ = contender.Wait()
	})
	busy := 0
	retry := func(what string, f func() error) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); ; {
			err := f()
			if err == nil {
				return
			}
			busy++
			if !errors.Is(err, iptables.ErrBusy) || time.Now().After(deadline) {
				t.Fatalf("%s: %v", what, err)
			}
		}
	}
	rules := iptables.Rules{Plan: dnsPlan("10.96.0.10", "fd00::a")}
	for range cycles {
		b, err := New(Config{Variant: Legacy})
		if err != nil {
			t.Fatal(err)
		}
		retry("install", func() error { return b.Install(rules) })
		retry("attach", b.Attach)
		text := saved(t, Legacy)
		for _, base := range []string{"PREROUTING", "OUTPUT"} {
			if n := strings.Count(text, "-A "+base+" "); n != 2 { // both families
				t.Fatalf("%d rules in %s:\n%s", n, base, text)
			}
		}
		retry("detach", func() error { return b.Detach(nil) })
		retry("remove", b.Remove)
	}
	if text := saved(t, Legacy); strings.Contains(text, "trackless") || strings.Contains(text, chainPrefix) {
		t.Errorf("left behind:\n%s", text)
	}
	if names := setNames(t); len(names) > 0 {
		t.Errorf("left behind: sets %v", names)
	}
	t.Logf("%d cycles, the lock was held %d times", cycles, busy)
}
