package nftables

import (
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// highDescriptor is above the descriptors of listeners, of clients' connections and of
// programs at devices.
const highDescriptor = 4096

// duplicate opens the owner's socket a second time, under a high descriptor. The kernel closes
// the files of a killed process from the highest descriptor to the lowest (close_files in
// fs/file.c adds each to the head of a list). So the table goes before the listeners, and
// before the programs that answer in the kernel: no query comes to a closed socket. It returns
// what closes it. Where the limit of open files is lower, there is none.
func duplicate(conn *netlink.Conn) (closing func() error) {
	high := -1
	if raw, err := conn.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { // an error leaves none
			if n, err := unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, highDescriptor); err == nil {
				high = n
			}
		})
	}
	if high < 0 {
		return func() error { return nil }
	}
	return func() error { return unix.Close(high) }
}
