package sockets

import (
	"net"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables"
)

// A listener that was closed is searched again, also where another file has its descriptor.
func TestListenersAreSearchedAgain(t *testing.T) {
	first, fd := listenTogether(t, "127.0.0.1:0")
	at := first.LocalAddr().(*net.UDPAddr).AddrPort()
	endpoints := []iptables.Endpoint{{Addr: at.Addr(), Port: at.Port(), Proto: iptables.UDP}}
	var l UDPListeners
	want := func(step string, fds ...int) {
		t.Helper()
		var got []int
		for _, s := range l.known(endpoints) {
			got = append(got, s.fd)
		}
		slices.Sort(got)
		slices.Sort(fds)
		if !slices.Equal(got, fds) {
			t.Errorf("%s: %v, want %v", step, got, fds)
		}
	}
	want("at first", fd)
	second, fd2 := listenTogether(t, at.String())
	want("another one that nobody told of", fd)
	l.find(endpoints)
	want("both", fd, fd2)
	// The descriptor becomes one of another address.
	raw, err := second.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	other, _ := listenTogether(t, "127.0.0.1:0")
	otherRaw, err := other.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := Control(raw, func(to int) error {
		return Control(otherRaw, func(from int) error { return unix.Dup3(from, to, unix.O_CLOEXEC) })
	}); err != nil {
		t.Fatal(err)
	}
	want("the second is elsewhere", fd)
	third, fd3 := listenTogether(t, at.String())
	l.find(endpoints)
	_ = first.Close()
	want("the first is closed", fd3)
	_ = third.Close()
	want("none")
}
