package owner

import (
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// ProgramMark is the prefix of the names of the abstract sockets by which instances know
// each other's BPF programs; the id of the program follows. Nobody answers there. Without
// CAP_SYS_ADMIN nobody can read the name of a program that another process has loaded. Both
// instances are in the network namespace of the node, and so is this socket.
const ProgramMark = "@trackless-answer/"

func markOf(program uint32) string { return fmt.Sprintf("%s%d", ProgramMark, program) }

// MarkProgram has all instances know a BPF program by its id, until the listener is closed.
// They only connect, so that nothing is accepted.
func MarkProgram(id uint32) (net.Listener, error) { return net.Listen("unix", markOf(id)) }

// IsProgram reports whether a BPF program is one of an instance: a process of the same user
// has marked it.
func IsProgram(id uint32) bool {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer func() { _ = unix.Close(fd) }()
	if unix.Connect(fd, &unix.SockaddrUnix{Name: markOf(id)}) != nil {
		return false
	}
	peer, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	return err == nil && int(peer.Uid) == unix.Geteuid()
}
