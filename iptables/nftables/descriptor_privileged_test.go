//go:build privileged

package nftables

import (
	"errors"
	"fmt"
	"testing"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/internal/tracetest"
)

// The table goes first when the process is killed: its owner's socket is closed before the
// descriptors of listeners and of programs. After an orderly end no descriptor is left.
func TestTheOwnersLastDescriptorIsHigh(t *testing.T) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || limit.Cur <= 2*highDescriptor {
		t.Skipf("files may be opened up to %d, %v", limit.Cur, err)
	}
	b := newKernelTrace(t, tracetest.NewNode(t))
	rules := tracetest.Rules(iptables.IPv4)
	rules.Plan.Lease, rules.Leases = 0, nil
	if err := b.Install(rules); err != nil {
		t.Fatal(err)
	}
	owner := inode(t, b.conn)
	high := func() (n int) {
		for fd := highDescriptor; fd < 2*highDescriptor; fd++ {
			var st unix.Stat_t
			if unix.Fstat(fd, &st) == nil && st.Ino == owner {
				n++
			}
		}
		return n
	}
	if n := high(); n != 1 {
		t.Errorf("%d descriptors of the owner's socket are high", n)
	}
	if err := b.Remove(); err != nil {
		t.Fatal(err)
	}
	if n := high(); n != 0 {
		t.Errorf("%d descriptors are left", n)
	}
}

// inode returns the number of the connection's socket.
func inode(t *testing.T, conn *netlink.Conn) uint64 {
	t.Helper()
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	var fault error
	err = raw.Control(func(fd uintptr) { fault = unix.Fstat(int(fd), &st) })
	if err := errors.Join(err, fault); err != nil {
		t.Fatal(fmt.Errorf("read the inode of a socket: %w", err))
	}
	return st.Ino
}
