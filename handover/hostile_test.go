package handover

import (
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestCloseDuringTransfer: the end of the predecessor waits for no transfer longer than it
// was told, also if each piece is read in time.
func TestCloseDuringTransfer(t *testing.T) {
	for name, limit := range map[string]time.Duration{"reload": 0, "end": 50 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			endless := sends("a", "1", false)
			begun := make(chan struct{}, 1)
			endless.Send = func(_ time.Time, put func([]byte) error) error {
				for {
					if err := put([]byte("more")); err != nil {
						return err
					}
					select {
					case begun <- struct{}{}:
					default:
					}
				}
			}
			peer, server, _ := listen(t, endless)
			ended := make(chan []Outcome, 1)
			go func() {
				var c taken
				outcomes, _, _ := Take(peer, c.wants(Section{"a", "1"}), 20*time.Second)
				ended <- outcomes
			}()
			<-begun
			closing := time.Now()
			_ = server.Close(limit)
			if took := time.Since(closing); took > 5*time.Second {
				t.Errorf("Close(%v) took %v", limit, took)
			}
			if outcomes := <-ended; len(outcomes) != 1 || outcomes[0].Result != Partial {
				t.Errorf("the successor: %+v", outcomes)
			}
		})
	}
}

// TestStrangersKeepNobodyOut: connections that say nothing leave room for a successor.
func TestStrangersKeepNobodyOut(t *testing.T) {
	peer, _, _ := listen(t, sends("a", "1", false, "x"))
	for range 2 * maxServed {
		conn, err := net.Dial("unix", NameOf(peer.Table))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		// The hello of the server shows that it has taken the connection.
		_, _ = io.ReadFull(conn, make([]byte, helloLen))
	}
	var c taken
	outcomes, s, err := Take(peer, c.wants(Section{"a", "1"}), time.Minute)
	if err != nil || outcomes[0].Result != Taken {
		t.Fatalf("%+v, %v", outcomes, err)
	}
	s.Close()
}

// TestStrangersAreNotKnown: who reports a handover can tell a stranger from a successor.
func TestStrangersAreNotKnown(t *testing.T) {
	peer, _, given := listen(t, sends("a", "1", false, "x"))
	conn, err := net.Dial("unix", NameOf(peer.Table))
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	if g := <-given; g.Known || g.Err == nil {
		t.Errorf("a stranger: %+v", g)
	}
	var c taken
	if _, s, err := Take(peer, c.wants(Section{"a", "1"}), time.Minute); err != nil {
		t.Fatal(err)
	} else {
		s.Close()
	}
	if g := <-given; !g.Known || g.Err != nil {
		t.Errorf("a successor: %+v", g)
	}
}

// crowded is a listener that has no descriptor for the first connection.
type crowded struct {
	net.Listener
	failed atomic.Bool
}

func (c *crowded) Accept() (net.Conn, error) {
	if !c.failed.Swap(true) {
		return nil, &net.OpError{Op: "accept", Err: unix.EMFILE}
	}
	return c.Listener.Accept()
}

// TestNoDescriptorIsFree: the server goes on after an accept that failed.
func TestNoDescriptorIsFree(t *testing.T) {
	peer := Peer{Table: table(t), Key: key}
	l, err := net.Listen("unix", NameOf(peer.Table))
	if err != nil {
		t.Fatal(err)
	}
	offers := []Offer{sends("a", "1", false, "x")}
	s := serveOn(&crowded{Listener: l}, key, func() []Offer { return offers }, func(Given) {})
	t.Cleanup(func() { _ = s.Close(0) })
	var c taken
	outcomes, waiting, err := Take(peer, c.wants(Section{"a", "1"}), 5*time.Second)
	if err != nil || outcomes[0].Result != Taken {
		t.Fatalf("%+v, %v", outcomes, err)
	}
	waiting.Close()
}

// TestSilentInstance: an instance that accepts and says nothing costs no more than the time
// for its hello.
func TestSilentInstance(t *testing.T) {
	peer := Peer{Table: table(t), Key: key}
	l, err := net.Listen("unix", NameOf(peer.Table))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	begun := time.Now()
	var c taken
	if _, _, err := Take(peer, c.wants(Section{"a", "1"}), 20*time.Second); err == nil || errors.Is(err, ErrAbsent) {
		t.Errorf("a silent instance: %v", err)
	}
	if took := time.Since(begun); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
}
