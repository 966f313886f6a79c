package attach

import (
	"fmt"
	"net"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables/owner"
)

// markOf is the name of the abstract socket by which instances know each other's programs.
// Without CAP_SYS_ADMIN nobody can read the name of a program that another process has
// loaded. Both instances are in the network namespace of the node, and so is this socket.
func markOf(id ebpf.ProgramID) string { return fmt.Sprintf("%s%d", owner.ProgramMark, id) }

// mark has other instances know the program, until the listener is closed. They only
// connect, so that nothing is accepted.
func mark(id ebpf.ProgramID) (net.Listener, error) { return net.Listen("unix", markOf(id)) }

// isInstance reports whether the program is one of another instance: a process of the same
// user has marked it.
func isInstance(id ebpf.ProgramID) bool {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	if unix.Connect(fd, &unix.SockaddrUnix{Name: markOf(id)}) != nil {
		return false
	}
	peer, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	return err == nil && int(peer.Uid) == unix.Geteuid()
}

func idOf(p *ebpf.Program) (ebpf.ProgramID, error) {
	info, err := p.Info()
	if err != nil {
		return 0, err
	}
	id, _ := info.ID()
	return id, nil
}
