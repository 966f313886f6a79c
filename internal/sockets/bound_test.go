package sockets

import (
	"context"
	"maps"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestBound has sockets that share addresses of both families, over both protocols.
func TestBound(t *testing.T) {
	var inodes []uint64
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		ctl := raw.Control(func(fd uintptr) {
			var stat unix.Stat_t
			if err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err == nil {
				err = unix.Fstat(int(fd), &stat)
			}
			inodes = append(inodes, stat.Ino)
		})
		if err == nil {
			err = ctl
		}
		return err
	}}
	for _, first := range []string{"127.0.0.1:0", "[::1]:0", "[::]:0"} {
		inodes = nil
		var tcp, udp netip.AddrPort
		at := [2]string{first, first}
		for range 2 {
			l, err := lc.Listen(context.Background(), "tcp", at[0])
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = l.Close() })
			p, err := lc.ListenPacket(context.Background(), "udp", at[1])
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = p.Close() })
			tcp, udp = l.Addr().(*net.TCPAddr).AddrPort(), p.LocalAddr().(*net.UDPAddr).AddrPort()
			at = [2]string{tcp.String(), udp.String()}
		}
		for n, at := range []netip.AddrPort{tcp, udp} {
			want := []uint64{inodes[n], inodes[n+2]}
			slices.Sort(want)
			got, err := Bound("/proc/thread-self", n == 0, []netip.AddrPort{at})
			if err != nil || !maps.EqualFunc(got, map[netip.AddrPort][]uint64{at: want}, slices.Equal) {
				t.Errorf("%s: %v, %v, want %v", at, got, err, want)
			}
		}
	}
}
