//go:build privileged

package sockets

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/iptables"
)

func TestListenersHaveRoomForABurst(t *testing.T) {
	testns.Root(t)
	t.Parallel()
	conn, at := listener(t, "udp4", "127.0.0.1")
	if err := new(UDPListeners).ForQueries([]iptables.Endpoint{at}); err != nil {
		t.Fatal(err)
	}
	if size := option(t, conn, unix.SOL_SOCKET, unix.SO_RCVBUF); size != room {
		t.Errorf("a buffer of %d bytes, want %d", size, room)
	}
}

func TestQueuesAreShortWhileOneClientFillsThem(t *testing.T) {
	testns.Root(t)
	t.Parallel()
	conn, at := listener(t, "udp4", "127.0.0.1")
	endpoints := []iptables.Endpoint{at}
	var l UDPListeners
	steps := []struct {
		name string
		do   func()
		want int
	}{
		{"ready for queries", func() { _ = l.ForQueries(endpoints) }, room},
		{"goroutines run late", func() { l.Shorten(endpoints, true) }, leastRoom},
		{"no longer", func() { l.Shorten(endpoints, false) }, room},
		{"a CPU limit", func() { _, _, _ = Buffers(endpoints) }, bufferUnderLimit},
		{"goroutines run late under a CPU limit", func() { l.Shorten(endpoints, true) }, bufferUnderLimit},
	}
	for _, s := range steps {
		if s.do(); option(t, conn, unix.SOL_SOCKET, unix.SO_RCVBUF) != s.want {
			t.Errorf("%s: a buffer of %d bytes, want %d", s.name, option(t, conn, unix.SOL_SOCKET, unix.SO_RCVBUF), s.want)
		}
	}
}
