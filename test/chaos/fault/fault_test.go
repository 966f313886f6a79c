package fault

import (
	"net"
	"strings"
	"testing"
	"time"
)

// TestHeldReader holds the reader of a socket until its queue is full, and
// gives it back.
func TestHeldReader(t *testing.T) {
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client, err := net.DialUDP("udp", nil, conn.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	received := make(chan struct{}, 1)
	go func() {
		buffer := make([]byte, 16)
		for {
			if _, err := conn.Read(buffer); err != nil {
				return
			}
			select {
			case received <- struct{}{}:
			default:
			}
		}
	}()
	send := func() {
		t.Helper()
		if _, err := client.Write([]byte("query")); err != nil {
			t.Fatal(err)
		}
	}
	send()
	<-received

	var f fault
	at := conn.LocalAddr().(*net.UDPAddr).AddrPort()
	if err := f.holdReaders(at); err != nil {
		t.Fatal(err)
	}
	if err := f.holdReaders(at); err == nil {
		t.Error("the reader could be held twice")
	}
	for range 2000 { // more than the queue holds
		send()
	}
	select {
	case <-received:
		t.Error("a packet was read while the reader was held")
	default:
	}
	if err := f.releaseReaders(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.After(10 * time.Second); ; {
		send()
		select {
		case <-received:
			return
		case <-deadline:
			t.Fatal("nothing is read after the release")
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func TestCommands(t *testing.T) {
	f := &fault{}
	for _, step := range []struct {
		command string
		fails   bool
	}{
		{"release chain", true},
		{"hold chain", false},
		{"hold chain", true},
		{"release chain", false},
		{"hold reader 192.0.2.1", true}, // nobody listens there
		{"grow 1", false},
		{"grow much", true},
		{"explode", true},
	} {
		words := strings.Fields(step.command)
		if err := f.do(words); (err != nil) != step.fails {
			t.Errorf("%s: %v, want an error: %v", step.command, err, step.fails)
		}
	}
	if len(f.ballast) != 1 {
		t.Errorf("%d blocks of ballast, want 1", len(f.ballast))
	}
}
