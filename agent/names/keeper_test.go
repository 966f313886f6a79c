package names

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/trackless-dns/trackless/internal/testlog"
)

// keeper is a Keeper with names that a test changes.
func keeper(l *testlog.Lines, current *[]Name) *Keeper {
	return &Keeper{Log: l, Hottest: func(int) []Name { return *current }}
}

func TestKeeper(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		path, other := filepath.Join(dir, "names"), filepath.Join(dir, "other")
		var l testlog.Lines
		current := []Name{named("a.")}
		k := keeper(&l, &current)
		k.Follow(path)
		k.Follow(path) // a reload
		time.Sleep(saveEvery - time.Second)
		if got := texts(t, path); got != nil {
			t.Errorf("written at once: %q", got)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if got := texts(t, path); !slices.Equal(got, []string{"a."}) {
			t.Errorf("after a minute: %q", got)
		}
		k.Follow(other)
		current = []Name{named("b.")}
		k.End()
		k.End() // nothing is written any more
		if got := texts(t, path); !slices.Equal(got, []string{"a."}) {
			t.Errorf("the file before: %q", got)
		}
		if got := texts(t, other); !slices.Equal(got, []string{"b."}) {
			t.Errorf("after the end: %q", got)
		}
		current = []Name{named("c.")}
		time.Sleep(2 * saveEvery)
		if got := texts(t, other); !slices.Equal(got, []string{"b."}) || len(l.Levels()) > 0 {
			t.Errorf("after the end: %q, log %q", got, l.All())
		}
	})
}

// TestDiskFails: a disk that takes nothing has one line, and another one when it does.
func TestDiskFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "gone")
		var l testlog.Lines
		current := []Name{named("a.")}
		k := keeper(&l, &current)
		k.Follow(filepath.Join(dir, "names"))
		time.Sleep(5*saveEvery + time.Second)
		synctest.Wait()
		if got := l.Levels(); !slices.Equal(got, []string{"warning"}) {
			t.Errorf("log %q", l.All())
		}
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * saveEvery)
		k.End()
		if got := l.Levels(); !slices.Equal(got, []string{"warning", "info"}) {
			t.Errorf("log %q", l.All())
		}
	})
}

// TestDiskHangs: a stop does not wait for it.
func TestDiskHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		k := &Keeper{Log: new(testlog.Lines), Hottest: func(int) []Name { <-release; return nil }}
		k.Follow(filepath.Join(t.TempDir(), "names"))
		begun := time.Now()
		k.End()
		if took := time.Since(begun); took != stopTime {
			t.Errorf("the end took %v", took)
		}
		close(release)
	})
}
