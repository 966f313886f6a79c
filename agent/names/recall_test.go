package names

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/trackless-dns/trackless/internal/testlog"
)

// upstreams answer by the server block, after a time.
type upstreams struct {
	need map[string]Need // by name
	dead map[string]bool // blocks
	took time.Duration
	from time.Time // known from then on

	mu       sync.Mutex
	asked    []string
	at       []time.Time
	now, top int
}

func (u *upstreams) Need(n Name) Need { return u.need[n.Text] }

func (u *upstreams) Ask(n Name) bool {
	u.mu.Lock()
	u.asked, u.at = append(u.asked, n.Text), append(u.at, time.Now())
	u.now++
	u.top = max(u.top, u.now)
	u.mu.Unlock()
	defer func() { u.mu.Lock(); u.now--; u.mu.Unlock() }()
	if time.Now().Before(u.from) {
		return false
	}
	if u.dead[n.Block] {
		time.Sleep(7 * time.Second)
		return false
	}
	time.Sleep(u.took)
	return true
}

// fileOf writes a file with so many names of each block, in turn.
func fileOf(t *testing.T, n int, blocks ...string) string {
	t.Helper()
	var names []used
	for i := range n {
		for _, b := range blocks {
			names = append(names, used{Name{Block: b, Text: fmt.Sprintf("n%d.%s.", i, b), Type: 1}, 1})
		}
	}
	path := filepath.Join(t.TempDir(), "names")
	if err := os.WriteFile(path, encode(names), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestRecall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := &upstreams{took: 20 * time.Millisecond, need: map[string]Need{"n0.a.": Cached, "n1.a.": Gone, "n2.a.": Gone}}
		var l testlog.Lines
		f := Recall(fileOf(t, 300, "a"), u, &l)
		if f.Answered != 297 || f.Cached != 1 || f.Gone != 2 || f.Failed+f.Unasked != 0 {
			t.Errorf("%+v", f)
		}
		if slices.Contains(u.asked, "n0.a.") || slices.Contains(u.asked, "n1.a.") {
			t.Error("names were asked for without need")
		}
		// The hottest ones first, and no more than the rate.
		if u.asked[0] != "n3.a." {
			t.Errorf("asked first: %q", u.asked[0])
		}
		for i := perSecond; i < len(u.at); i++ {
			if gap := u.at[i].Sub(u.at[i-perSecond]); gap < time.Second {
				t.Fatalf("%d questions in %v", perSecond+1, gap)
			}
		}
		if f.Took < 1400*time.Millisecond || f.Took > 1600*time.Millisecond {
			t.Errorf("it took %v", f.Took)
		}
		if got := l.Levels(); !slices.Equal(got, []string{"info"}) {
			t.Errorf("log %q", l.All())
		}
	})
}

// TestRecallOfNothing: no file, and no names in need, cost no time.
func TestRecallOfNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l testlog.Lines
		if f := Recall(filepath.Join(t.TempDir(), "names"), &upstreams{}, &l); f != (Figures{}) || len(l.All()) > 0 {
			t.Errorf("no file: %+v, log %q", f, l.All())
		}
		f := Recall(fileOf(t, 1, "a"), &upstreams{need: map[string]Need{"n0.a.": Cached}}, &l)
		if f != (Figures{Cached: 1}) {
			t.Errorf("all cached: %+v", f)
		}
	})
}

// TestRecallOfAnUnusableFile: it has one line, and is no reason not to start.
func TestRecallOfAnUnusableFile(t *testing.T) {
	dir := t.TempDir()
	good := string(encode([]used{{named("a."), 1}}))
	for name, content := range map[string]string{
		"foreign": "nameserver 192.0.2.1\n", "empty": "", "cut off": good[:len(good)-9], "large": strings.Repeat(good, maxFile/len(good)+2),
		"other version": strings.Replace(good, " 1\n", " 7\n", 1),
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		var l testlog.Lines
		if f := Recall(path, &upstreams{}, &l); f != (Figures{}) || !slices.Equal(l.Levels(), []string{"warning"}) {
			t.Errorf("%s: %+v, log %q", name, f, l.All())
		}
	}
	var l testlog.Lines
	if f := Recall(dir, &upstreams{}, &l); f != (Figures{}) || !slices.Equal(l.Levels(), []string{"warning"}) {
		t.Errorf("a folder: %+v, log %q", f, l.All())
	}
}

// TestRecallTakesTooLong: the start does not wait longer than five seconds, nor for more
// answers at a time than the bound.
func TestRecallTakesTooLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := &upstreams{took: 900 * time.Millisecond}
		f := Recall(fileOf(t, 1000, "a"), u, new(testlog.Lines))
		if f.Took != longest || f.Unasked == 0 || f.Answered+f.Failed+f.Unasked != 1000 {
			t.Errorf("%+v", f)
		}
		time.Sleep(time.Second) // the answers that come later
		synctest.Wait()
		if u.top != mostAsking {
			t.Errorf("%d questions at a time", u.top)
		}
	})
}

// TestRecallOfAnUnknownUpstream: questions that fail at once before the first answer are asked
// again.
func TestRecallOfAnUnknownUpstream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := &upstreams{took: time.Millisecond, from: time.Now().Add(1500 * time.Millisecond)}
		var l testlog.Lines
		f := Recall(fileOf(t, 100, "a"), u, &l)
		if f.Answered != 100 || f.Failed+f.Unasked != 0 || !slices.Equal(l.Levels(), []string{"info"}) {
			t.Errorf("%+v, log %q", f, l.All())
		}
		u.from = time.Now().Add(time.Hour)
		f = Recall(fileOf(t, 100, "a"), u, &l)
		if f.Answered != 0 || f.Failed+f.Unasked != 100 || f.Took > patience+50*time.Millisecond {
			t.Errorf("never known: %+v", f)
		}
	})
}

// TestDeadUpstream: a server block without an answer is given up after two seconds, and takes
// nothing from the others.
func TestDeadUpstream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l testlog.Lines
		u := &upstreams{dead: map[string]bool{"b": true}, took: time.Millisecond}
		f := Recall(fileOf(t, 300, "a", "b"), u, &l)
		if f.Answered != 300 || f.Failed != mostAsking || f.Unasked != 300-mostAsking || f.Took > patience+50*time.Millisecond {
			t.Errorf("%+v", f)
		}
		if got := l.Levels(); !slices.Equal(got, []string{"warning"}) || !strings.HasSuffix(l.All()[0], "block b") {
			t.Errorf("log %q", l.All())
		}
		time.Sleep(10 * time.Second)
		f = Recall(fileOf(t, 300, "b"), u, &l)
		if f.Answered != 0 || f.Took < patience || f.Took > patience+50*time.Millisecond {
			t.Errorf("alone: %+v", f)
		}
		time.Sleep(10 * time.Second)
	})
}
