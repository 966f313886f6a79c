//go:build privileged

package sockets

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/trackless-dns/trackless/internal/testns"
)

func TestListeners(t *testing.T) {
	t.Parallel()
	ns := testns.New(t)
	ns.Do(func() {
		for _, args := range []string{"addr add 169.254.20.10/32 dev lo", "addr add fd00::a/128 dev lo nodad"} {
			if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
				t.Fatalf("ip %s: %v\n%s", args, err, out)
			}
		}
		for _, addr := range []string{"169.254.20.10:53", "[fd00::a]:53", "127.0.0.1:53", "169.254.20.10:5353", "[::1]:53"} {
			c, err := net.ListenPacket("udp", addr)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = c.Close() })
		}
		got, err := Listeners("/proc/thread-self")
		want := []netip.Addr{netip.MustParseAddr("169.254.20.10"), netip.MustParseAddr("fd00::a")}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("Listeners() = %v, %v; want %v", got, err, want)
		}
	})
}

// A socket of our own is none of others'.
func TestOtherListeners(t *testing.T) {
	t.Parallel()
	ns := testns.New(t)
	ns.Do(func() {
		if out, err := exec.Command("ip", "addr", "add", "169.254.20.10/32", "dev", "lo").CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		c, err := net.ListenPacket("udp4", "169.254.20.10:53")
		if err != nil {
			t.Fatal(err)
		}
		if got, err := OtherListeners("/proc/thread-self"); len(got) > 0 || err != nil {
			t.Errorf("our own: %v, %v", got, err)
		}
		f, err := c.(*net.UDPConn).File()
		if err != nil {
			t.Fatal(err)
		}
		other := exec.Command("sleep", "60") // has what it inherits
		other.ExtraFiles = []*os.File{f}
		if err := errors.Join(other.Start(), f.Close(), c.Close()); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = other.Process.Kill(); _ = other.Wait() }()
		want := []netip.Addr{netip.MustParseAddr("169.254.20.10")}
		if got, err := OtherListeners("/proc/thread-self"); err != nil || !slices.Equal(got, want) {
			t.Errorf("another process's: %v, %v; want %v", got, err, want)
		}
	})
}

// One socket for all addresses is one at each of those that the node has for a cache.
func TestListenersEverywhere(t *testing.T) {
	t.Parallel()
	held := []netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00::b")}
	for _, test := range []struct{ network, listen, want string }{
		{"udp4", "0.0.0.0:53", "[10.96.0.10]"},
		{"udp", "[::]:53", "[10.96.0.10 fd00::b]"},
		{"udp", "[::]:5353", "[]"},
	} {
		var got []netip.Addr
		var err error
		testns.New(t).Do(func() {
			var c net.PacketConn
			if c, err = net.ListenPacket(test.network, test.listen); err == nil {
				got, err = Listeners("/proc/thread-self", held...)
				_ = c.Close()
			}
		})
		if err != nil || fmt.Sprint(got) != test.want {
			t.Errorf("%s: %v, %v; want %s", test.listen, got, err, test.want)
		}
	}
}
