package handover

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/internal/testwait"
)

var key = []byte("0123456789abcdef0123456789abcdef")

// table returns a name that no other test has.
func table(t *testing.T) string {
	t.Helper()
	var id [8]byte
	_, _ = rand.Read(id[:])
	return hex.EncodeToString(id[:])
}

// sends is an offer with this content.
func sends(name, fingerprint string, last bool, pieces ...string) Offer {
	return Offer{Section: Section{name, fingerprint}, Last: last, Send: func(_ time.Time, put func([]byte) error) error {
		for _, p := range pieces {
			if err := put([]byte(p)); err != nil {
				return err
			}
		}
		return nil
	}}
}

// taken collects what was received.
type taken struct {
	mu   sync.Mutex
	text map[string]string
}

func (c *taken) wants(sections ...Section) (out []Want) {
	c.text = map[string]string{}
	for _, s := range sections {
		out = append(out, Want{Section: s, Receive: func(_ time.Time, piece []byte) (int, error) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.text[s.Name] += string(piece) + "|"
			return 1, nil
		}})
	}
	return out
}

// of returns what was received of a section.
func (c *taken) of(name string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text[name]
}

// listen serves the offers until the test ends.
func listen(t *testing.T, offers ...Offer) (peer Peer, s *Server, given chan Given) {
	t.Helper()
	given = make(chan Given, 1024)
	peer = Peer{Table: table(t), Key: key}
	s, err := Listen(NameOf(peer.Table), key, func() []Offer { return offers }, func(g Given) { given <- g })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close(0) })
	return peer, s, given
}

func results(outcomes []Outcome) (out []Result) {
	for _, o := range outcomes {
		out = append(out, o.Result)
	}
	return out
}

func TestTake(t *testing.T) {
	broken := sends("broken", "1", false)
	broken.Send = func(_ time.Time, put func([]byte) error) error {
		return errors.Join(put([]byte("half")), errors.New("the rest is gone"))
	}
	peer, _, given := listen(t, sends("a", "1", false, "one", "two"), sends("a", "2", false, "other"), sends("b", "1", false), broken, sends("c", "", false, "never"))
	var c taken
	outcomes, s, err := Take(peer, c.wants(Section{"a", "1"}, Section{"b", "1"}, Section{"b", "2"}, Section{"broken", "1"}, Section{"c", ""}), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if got, want := results(outcomes), []Result{Taken, Taken, Foreign, Partial, Foreign}; !slices.Equal(got, want) {
		t.Errorf("results %v, want %v", got, want)
	}
	if c.text["a"] != "one|two|" || c.text["broken"] != "half|" || len(c.text) != 2 {
		t.Errorf("received %v", c.text)
	}
	if outcomes[0].Bytes != 6 || outcomes[0].Items != 2 {
		t.Errorf("%d items in %d bytes, want 2 in 6", outcomes[0].Items, outcomes[0].Bytes)
	}
	if g := <-given; g.Sections != 3 || g.Bytes != 10 || g.Err != nil {
		t.Errorf("given %+v", g)
	}
}

// TestDamagedSection: a section that cannot be read does not keep the next from being taken.
func TestDamagedSection(t *testing.T) {
	peer, _, _ := listen(t, sends("a", "1", false, "one", "two"), sends("b", "1", false, "three"))
	var c taken
	wants := c.wants(Section{"a", "1"}, Section{"b", "1"})
	wants[0].Receive = func(time.Time, []byte) (int, error) { return 0, io.ErrUnexpectedEOF }
	outcomes, s, err := Take(peer, wants, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if got := results(outcomes); !slices.Equal(got, []Result{Damaged, Taken}) || c.text["b"] != "three|" {
		t.Errorf("results %v, received %v", got, c.text)
	}
}

// TestLast: when the predecessor ends, it gives once more what it gives last.
func TestLast(t *testing.T) {
	peer, server, _ := listen(t, sends("a", "1", false, "once"), sends("b", "1", true, "twice"))
	var c taken
	_, s, err := Take(peer, c.wants(Section{"a", "1"}, Section{"b", "1"}), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	last := make(chan []Outcome)
	go func() { last <- s.Last() }()
	if err := server.Close(time.Minute); err != nil {
		t.Error(err)
	}
	if got := results(<-last); !slices.Equal(got, []Result{Foreign, Taken}) {
		t.Errorf("results %v", got)
	}
	if c.text["a"] != "once|" || c.text["b"] != "twice|twice|" {
		t.Errorf("received %v", c.text)
	}
	if _, _, err := Take(peer, c.wants(), time.Minute); !errors.Is(err, ErrAbsent) {
		t.Errorf("an instance that has ended: %v", err)
	}
}

// TestStopOfSuccessor: a successor that ends while it waits costs the predecessor nothing.
func TestStopOfSuccessor(t *testing.T) {
	peer, server, _ := listen(t, sends("a", "1", true, "x"))
	for range 3 * maxServed {
		var c taken
		outcomes, s, err := Take(peer, c.wants(Section{"a", "1"}), time.Minute)
		for errors.Is(err, io.EOF) || err == nil && s == nil {
			// The predecessor has not seen yet that the others have ended.
			outcomes, s, err = Take(peer, c.wants(Section{"a", "1"}), time.Minute)
		}
		if err != nil || outcomes[0].Result != Taken {
			t.Fatal(outcomes, err)
		}
		s.Close()
	}
	if err := server.Close(time.Minute); err != nil {
		t.Error(err)
	}
}

// TestTimeIsOver: the successor goes on with the pieces that it has.
func TestTimeIsOver(t *testing.T) {
	release := make(chan struct{})
	slow := sends("a", "1", false)
	slow.Send = func(_ time.Time, put func([]byte) error) error {
		if err := put([]byte("first")); err != nil {
			return err
		}
		<-release
		return nil
	}
	peer, _, _ := listen(t, slow)
	t.Cleanup(func() { close(release) })
	var c taken
	outcomes, s, err := Take(peer, c.wants(Section{"a", "1"}, Section{"b", "1"}), 50*time.Millisecond)
	if err != nil || s != nil {
		t.Fatal(s, err)
	}
	if got := results(outcomes); !slices.Equal(got, []Result{Partial, Partial}) || !errors.Is(outcomes[0].Reason, errTime) || c.text["a"] != "first|" {
		t.Errorf("outcomes %+v, received %v", outcomes, c.text)
	}
}

// TestStrangers: who does not know the key gets nothing, and gives nothing.
func TestStrangers(t *testing.T) {
	peer, _, given := listen(t, sends("a", "1", false, "secret"))
	peer.Key = []byte("another key")
	var c taken
	outcomes, _, err := Take(peer, c.wants(Section{"a", "1"}), time.Minute)
	if g := <-given; !errors.Is(g.Err, ErrStranger) {
		t.Errorf("the predecessor: %v", g.Err)
	}
	if err == nil && (outcomes[0].Result == Taken || c.text["a"] != "") {
		t.Errorf("a stranger got %v: %+v", c.text, outcomes)
	}
}

// between passes bytes on in both directions, and changes those of the predecessor.
func between(t *testing.T, to Peer, change func([]byte) []byte) Peer {
	t.Helper()
	peer := Peer{Table: table(t), Key: to.Key}
	l, err := net.Listen("unix", NameOf(peer.Table))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			a, err := l.Accept()
			if err != nil {
				return
			}
			b, err := net.Dial("unix", NameOf(to.Table))
			if err != nil {
				_ = a.Close()
				return
			}
			go func() { _, _ = io.Copy(b, a); _ = b.Close() }()
			go func() {
				defer a.Close()
				all := make([]byte, 64<<10)
				for {
					n, err := b.Read(all)
					if err != nil {
						return
					}
					if _, err := a.Write(change(all[:n])); err != nil {
						return
					}
				}
			}()
		}
	}()
	return peer
}

// TestChangedOnTheWay: a process between the two that knows no key can change nothing.
func TestChangedOnTheWay(t *testing.T) {
	for name, change := range map[string]func([]byte) []byte{
		"content": func(b []byte) []byte { return bytes.ReplaceAll(b, []byte("right"), []byte("wrong")) },
		"length": func(b []byte) []byte {
			return bytes.ReplaceAll(b, []byte("\x00\x00\x00\x05right"), []byte("\x00\x00\x00\x04righ"))
		},
		"kind": func(b []byte) []byte {
			return bytes.ReplaceAll(b, []byte("\x03\x00\x00\x00\x05right"), []byte("\x04\x00\x00\x00\x05right"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			peer, _, _ := listen(t, sends("a", "1", false, "right"))
			var c taken
			outcomes, _, err := Take(between(t, peer, change), c.wants(Section{"a", "1"}), time.Minute)
			if err != nil {
				t.Fatal(err)
			}
			if outcomes[0].Result != Damaged || c.text["a"] != "" {
				t.Errorf("%+v, received %v", outcomes, c.text)
			}
		})
	}
}

// TestVersions: a predecessor of another version gives nothing, and says which it is.
func TestVersions(t *testing.T) {
	peer, _, _ := listen(t, sends("a", "1", false, "x"))
	var c taken
	later := func(b []byte) []byte {
		return bytes.Replace(b, []byte(magic+"\x00\x01"), []byte(magic+"\x00\x02"), 1)
	}
	if _, _, err := Take(between(t, peer, later), c.wants(Section{"a", "1"}), time.Minute); !errors.Is(err, ErrVersion) {
		t.Errorf("a later version: %v", err)
	}
	foreign := func([]byte) []byte { return make([]byte, helloLen) }
	if _, _, err := Take(between(t, peer, foreign), c.wants(Section{"a", "1"}), time.Minute); !errors.Is(err, ErrStranger) {
		t.Errorf("another program: %v", err)
	}
}

// TestCrowd: the state is given to no more than maxTaking at a time. Those that wait do not
// count: the oldest of them goes, if there are too many.
func TestCrowd(t *testing.T) {
	release := make(chan struct{})
	busy := sends("a", "1", false)
	var begun sync.WaitGroup
	begun.Add(maxTaking)
	busy.Send = func(time.Time, func([]byte) error) error { begun.Done(); <-release; return nil }
	peer, _, given := listen(t, busy, sends("b", "1", false, "x"))
	var all sync.WaitGroup
	for range maxTaking {
		all.Go(func() {
			var c taken
			if _, s, err := Take(peer, c.wants(Section{"a", "1"}), time.Minute); err != nil {
				t.Error(err)
			} else {
				s.Close()
			}
		})
	}
	begun.Wait()
	var c taken
	if outcomes, _, _ := Take(peer, c.wants(Section{"b", "1"}), time.Minute); len(outcomes) == 1 && outcomes[0].Result == Taken {
		t.Error("one more than maxTaking got the state")
	}
	if g := <-given; !errors.Is(g.Err, errCrowd) {
		t.Errorf("given %+v", g)
	}
	close(release)
	all.Wait()
	for n := range 2 * maxServed {
		_, s, err := Take(peer, c.wants(Section{"b", "1"}), time.Minute)
		if err != nil {
			t.Fatalf("beside %d that wait: %v", n, err)
		}
		t.Cleanup(s.Close)
		for (<-given).Sections == 0 {
		}
	}
}

// TestAges: ages count from a time that is earlier on the side of the successor.
func TestAges(t *testing.T) {
	var there, here time.Time
	offer := sends("a", "1", false)
	offer.Send = func(asked time.Time, put func([]byte) error) error { there = asked; return put([]byte("x")) }
	peer, _, _ := listen(t, offer)
	_, s, err := Take(peer, []Want{{Section: Section{"a", "1"}, Receive: func(asked time.Time, _ []byte) (int, error) { here = asked; return 0, nil }}}, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	if here.IsZero() || there.Before(here) {
		t.Errorf("the successor counts from %v, the predecessor from %v", here, there)
	}
}

func TestLargePieces(t *testing.T) {
	tooLarge := make([]byte, MaxContent+1)
	_, _ = rand.Read(tooLarge)
	for size, want := range map[int]Result{MaxContent: Taken, MaxContent + 1: Partial} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			peer, _, _ := listen(t, sends("a", "1", false, string(tooLarge[:size])))
			var c taken
			outcomes, s, err := Take(peer, c.wants(Section{"a", "1"}), time.Minute)
			if s != nil {
				defer s.Close()
			}
			if err != nil || outcomes[0].Result != want {
				t.Errorf("%+v %v, want %s", outcomes, err, want)
			}
		})
	}
}

// TestAgain: before the predecessor ends it gives what came since, and at its end what it gives
// last.
func TestAgain(t *testing.T) {
	since := sends("a", "1", false, "one")
	since.Again = sends("a", "1", false, "two").Send
	peer, server, given := listen(t, since, sends("b", "1", true, "three"))
	var c taken
	_, s, err := Take(peer, c.wants(Section{"a", "1"}, Section{"b", "1"}), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	<-given
	last := make(chan []Outcome, 1)
	go func() { last <- s.Last() }()
	// The predecessor notes a moment after it gave the state that the successor waits.
	testwait.True(t, 10*time.Second, "the rest is given", func() bool {
		server.Again(time.Minute)
		return strings.HasPrefix(c.of("a"), "one|two|")
	})
	if err := server.Close(time.Minute); err != nil {
		t.Fatal(err)
	}
	outcomes := <-last
	if got := c.of("b"); got != "three|three|" {
		t.Errorf("received %q", got)
	}
	if !slices.Equal(results(outcomes), []Result{Taken, Taken}) || outcomes[0].Items < 1 || outcomes[1].Items != 1 {
		t.Errorf("outcomes %+v", outcomes)
	}
}
