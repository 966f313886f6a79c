package succession

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/handover"
	"github.com/trackless-dns/trackless/internal/testlog"
	"github.com/trackless-dns/trackless/internal/testwait"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/nftables"
	"github.com/trackless-dns/trackless/iptables/owner"
)

// backend is a backend with a key.
type backend struct {
	iptables.Backend
	table string
}

func (b backend) Table() string { return b.table }
func (b backend) Key() []byte   { return []byte("the key of " + b.table) }

// keyless is a backend without one.
type keyless struct{ iptables.Backend }

func newBackend() backend {
	var id [8]byte
	_, _ = rand.Read(id[:])
	return backend{table: "test-" + hex.EncodeToString(id[:])}
}

// instance is a process: it has one section, and what it took.
type instance struct {
	Succession
	backend backend
	log     testlog.Lines

	mu    sync.Mutex
	state string
}

// start starts an instance beside others, with a state of its own.
func start(t *testing.T, state, fingerprint string, others ...nftables.Holder) *instance {
	t.Helper()
	i := &instance{backend: newBackend(), state: state}
	section := handover.Section{Name: "letters", Fingerprint: fingerprint}
	i.Log = &i.log
	i.holders = func() ([]nftables.Holder, error) { return append(others, i.holder(0)), nil }
	i.Offers = func() []handover.Offer {
		return []handover.Offer{{Section: section, Last: true, Send: func(_ time.Time, put func([]byte) error) error {
			i.mu.Lock()
			state := i.state
			i.mu.Unlock()
			return put([]byte(state))
		}, Again: func(_ time.Time, put func([]byte) error) error { return put([]byte("again ")) }}}
	}
	i.Wants = func() []handover.Want {
		return []handover.Want{{Section: section, Receive: func(_ time.Time, piece []byte) (int, error) {
			i.mu.Lock()
			defer i.mu.Unlock()
			i.state += string(piece)
			return len(piece), nil
		}}}
	}
	i.Follow(i.backend, time.Minute)
	t.Cleanup(i.End)
	return i
}

func (i *instance) holder(start uint64) nftables.Holder {
	return nftables.Holder{Table: i.backend.table, Key: i.backend.Key(), Mark: owner.Mark{Start: start}}
}

// levels returns the levels of the lines of the log, without those of debug.
func (i *instance) levels() []string {
	return slices.DeleteFunc(i.log.Levels(), func(level string) bool { return level == "debug" })
}

func (i *instance) has() string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.state
}

// TestAgain: what came since is there before the predecessor ends.
func TestAgain(t *testing.T) {
	first := start(t, "abc", "1")
	first.Again() // nobody waits
	next := start(t, "", "1", first.holder(1))
	// The predecessor notes a moment after it gave the state that the successor waits.
	testwait.True(t, 10*time.Second, "the successor has what came since", func() bool {
		first.Again()
		return strings.HasPrefix(next.has(), "abcagain ")
	})
	first.End()
	next.waits.Wait()
	if !strings.HasSuffix(next.has(), "again abc") {
		t.Errorf("after the end of the predecessor: %q", next.has())
	}
	first.Again() // it has ended
}

// TestSuccession: the successor has the state at its start, and what came since when the
// predecessor has ended.
func TestSuccession(t *testing.T) {
	first := start(t, "abc", "1")
	next := start(t, "", "1", first.holder(1))
	if next.has() != "abc" {
		t.Fatalf("the successor has %q; log %q", next.has(), next.log.All())
	}
	first.mu.Lock()
	first.state = "de"
	first.mu.Unlock()
	first.End()
	next.waits.Wait()
	if next.has() != "abcde" {
		t.Errorf("after the end of the predecessor: %q", next.has())
	}
	if got := first.Stats(); got.Given != 1 || got.Broken != 0 || got.Bytes != 3 {
		t.Errorf("the predecessor: %+v", got)
	}
	stats := next.Stats()
	if len(stats.Sections) != 1 || stats.Sections[0].Result != handover.Taken || stats.Sections[0].Items != 3 || stats.Waited == 0 {
		t.Errorf("the successor: %+v", stats)
	}
	if got := next.levels(); !slices.Equal(got, []string{"info", "info"}) {
		t.Errorf("the successor's log: %q", next.log.All())
	}
	if got := first.levels(); !slices.Equal(got, []string{"info"}) {
		t.Errorf("the predecessor's log: %q", first.log.All())
	}
}

// TestCold: the instance starts without the state, and says why in one line.
func TestCold(t *testing.T) {
	other := start(t, "abc", "2")
	silent := nftables.Holder{Table: newBackend().table, Key: []byte("k")}
	stranger := other.holder(0)
	stranger.Key = []byte("another key")
	for _, tc := range []struct {
		name   string
		others []nftables.Holder
		want   []string
	}{
		{"alone", nil, nil},
		{"another Corefile", []nftables.Holder{other.holder(0)}, []string{"warning"}},
		{"without a socket", []nftables.Holder{silent}, []string{"info"}},
		{"without a key", []nftables.Holder{{Table: "x"}}, []string{"info"}},
		{"another key", []nftables.Holder{stranger}, []string{"warning"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			next := start(t, "", "1", tc.others...)
			if got := next.levels(); next.has() != "" || !slices.Equal(got, tc.want) {
				t.Errorf("has %q; log %q, want levels %q", next.has(), next.log.All(), tc.want)
			}
		})
	}
	// In any case it gives its own state.
	first := start(t, "abc", "1", stranger)
	if next := start(t, "", "1", first.holder(0)); next.has() != "abc" {
		t.Errorf("the next one has %q", next.has())
	}
}

// TestOldestFirst: of several instances the oldest is asked first, and then the next that
// gives anything.
func TestOldestFirst(t *testing.T) {
	old, young, foreign := start(t, "old", "1"), start(t, "young", "1"), start(t, "foreign", "2")
	for want, others := range map[string][]nftables.Holder{
		"old":   {young.holder(7), old.holder(3)},
		"young": {young.holder(7), foreign.holder(3)},
	} {
		if next := start(t, "", "1", others...); next.has() != want {
			t.Errorf("has %q, want %q", next.has(), want)
		}
	}
}

// TestReloads: only the first load takes a state, and loads decide whether this process
// gives its own.
func TestReloads(t *testing.T) {
	first := start(t, "abc", "1")
	next := start(t, "", "1", first.holder(0))
	next.Follow(next.backend, time.Minute)
	if next.has() != "abc" {
		t.Errorf("taken twice: %q", next.has())
	}
	gives := func() bool {
		_, s, err := handover.Take(handover.Peer{Table: next.backend.table, Key: next.backend.Key()}, nil, time.Minute)
		if s != nil {
			s.Close()
		}
		return err == nil
	}
	for _, step := range []struct {
		backend iptables.Backend
		limit   time.Duration
		gives   bool
	}{
		{next.backend, time.Minute, true}, {next.backend, 0, false}, {next.backend, time.Second, true},
		{keyless{}, time.Second, false}, {next.backend, time.Second, true}, {nil, 0, false},
	} {
		next.Follow(step.backend, step.limit)
		if got := gives(); got != step.gives {
			t.Errorf("%T, warm %v: gives %t", step.backend, step.limit, got)
		}
	}
}

// TestTimeIsOver: the start goes on when the time is over.
func TestTimeIsOver(t *testing.T) {
	slow := start(t, "", "1")
	release := make(chan struct{})
	slow.Offers = func() []handover.Offer {
		<-release
		return nil
	}
	slow.Follow(slow.backend, 0)
	slow.Follow(slow.backend, time.Minute)
	next := &instance{backend: newBackend()}
	next.Log, next.Offers, next.Wants = &next.log, slow.Offers, func() []handover.Want {
		return []handover.Want{{Section: handover.Section{Name: "letters", Fingerprint: "1"}}}
	}
	next.holders = func() ([]nftables.Holder, error) { return []nftables.Holder{slow.holder(0)}, nil }
	next.Follow(next.backend, 50*time.Millisecond)
	close(release)
	if got := next.Stats().Sections; len(got) != 1 || got[0].Result != handover.Partial {
		t.Errorf("%+v", got)
	}
	next.End()
}

// TestInstancesCannotBeFound: it starts all the same.
func TestInstancesCannotBeFound(t *testing.T) {
	i := &instance{backend: newBackend()}
	i.Log = &i.log
	i.holders = func() ([]nftables.Holder, error) { return nil, errors.New("no nf_tables") }
	i.Follow(keyless{}, time.Second)
	if got := i.levels(); len(got) > 0 {
		t.Errorf("log %q", i.log.All())
	}
	i.End()
}

// TestStrangersAreReportedOnce: a process that connects again and again fills neither the
// log nor the figures.
func TestStrangersAreReportedOnce(t *testing.T) {
	i := start(t, "abc", "1")
	for range 100 {
		conn, err := net.Dial("unix", handover.NameOf(i.backend.table))
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.Close()
	}
	next := start(t, "", "1", i.holder(1)) // after the strangers
	if next.has() != "abc" {
		t.Errorf("the successor has %q", next.has())
	}
	i.End() // all connections are served
	if got := i.levels(); !slices.Equal(slices.Compact(slices.Sorted(slices.Values(got))), []string{"info", "warning"}) || len(got) != 2 {
		t.Errorf("%d lines: %q", len(got), i.log.All())
	}
	if broken := i.Stats().Broken; broken != 0 {
		t.Errorf("%d states count as not given whole", broken)
	}
}
