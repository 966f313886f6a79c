package sockets

import (
	"context"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
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

// TestShared counts the sockets of this process, then gives one of them to another.
func TestShared(t *testing.T) {
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		if ctl := raw.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
		}); ctl != nil {
			return ctl
		}
		return err
	}}
	for _, address := range []string{"127.0.0.1:0", "0.0.0.0:0", "[::]:0"} {
		var files []*os.File
		var at = address
		for range 2 {
			conn, err := lc.ListenPacket(context.Background(), "udp", at)
			if err != nil {
				t.Fatal(err)
			}
			at = conn.LocalAddr().String()
			f, err := conn.(*net.UDPConn).File()
			if err != nil {
				t.Fatal(err)
			}
			_ = conn.Close()
			files = append(files, f)
		}
		here := NameOf(int(files[0].Fd()))
		if Shared(here, false) || Shared(here, true) {
			t.Errorf("%s: shared with nobody", address)
		}
		// A process that holds one of them until its input ends.
		holder := exec.Command("cat")
		holder.ExtraFiles = files[1:]
		input, err := holder.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := holder.Start(); err != nil {
			t.Fatal(err)
		}
		_ = files[1].Close()
		if !Shared(here, false) || Shared(here, true) {
			t.Errorf("%s: another process has a socket there", address)
		}
		_ = input.Close()
		if err := holder.Wait(); err != nil {
			t.Error(err)
		}
		if Shared(here, false) {
			t.Errorf("%s: shared with one that ended", address)
		}
		_ = files[0].Close()
	}
}
