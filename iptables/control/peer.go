package control

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables/owner"
)

// peer is the process at the other end of a connection. The kernel notes it when the
// connection or the listener is made (SO_PEERCRED, unix(7)).
type peer struct {
	// pid is its id in our pid namespace; 0 if it is not visible there.
	pid int
	uid uint32
	err error
	// outside says why the peer could not open a socket that is a file. It is nil if
	// the socket is a file.
	outside error
}

func peerOf(conn net.Conn) peer {
	c, ok := conn.(*net.UnixConn)
	if !ok {
		return peer{err: fmt.Errorf("%T is no unix connection", conn)}
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return peer{err: err}
	}
	var p peer
	abstract := isAbstract(c.LocalAddr()) || isAbstract(c.RemoteAddr())
	err = raw.Control(func(fd uintptr) {
		cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err != nil {
			p.err = err
			return
		}
		p.pid, p.uid = int(cred.Pid), cred.Uid
		if abstract {
			p.outside = p.couldOpen(int(fd))
		}
	})
	if err != nil {
		p.err = err
	}
	return p
}

// isAbstract reports whether a socket has an abstract name. The address of a socket
// without a name is @.
func isAbstract(a net.Addr) bool {
	return a != nil && strings.HasPrefix(a.String(), "@") && a.String() != "@"
}

// trusted returns nil for root and for our own user. An abstract name has no file, and
// every container of the network namespace can reach it: there user 0 is not enough,
// see couldOpen.
func (p peer) trusted() error {
	if p.err != nil {
		return fmt.Errorf("read the credentials of the other end: %w", p.err)
	}
	if own := uint32(os.Geteuid()); p.uid != 0 && p.uid != own {
		return fmt.Errorf("user %d is neither root nor user %d", p.uid, own)
	}
	return p.outside
}

// capNetAdmin is the bit of CAP_NET_ADMIN in the sets of /proc/PID/status.
const capNetAdmin = 1 << unix.CAP_NET_ADMIN

// couldOpen returns nil if the peer could also open a socket that is a file. It must
// be in our user namespace, where its user 0 is our user 0. It must also be in our
// mount namespace, where the file would be, or have CAP_NET_ADMIN: with that it could
// change our rules anyway. The pin ensures that all of this is about the process that
// connected, not about a later one with the same id.
func (p peer) couldOpen(fd int) error {
	if p.pid == 0 {
		return errors.New("the process at the other end is not visible in the pid namespace of this process, so its permissions are unknown")
	}
	pin, err := p.pin(fd)
	if err != nil {
		return fmt.Errorf("read the state of process %d: %w", p.pid, err)
	}
	defer pin.close()
	dir := filepath.Join("/proc", strconv.Itoa(p.pid))
	user, err := sameNamespace(dir, "user")
	mount, mountErr := sameNamespace(dir, "mnt")
	admin, adminErr := hasNetAdmin(dir)
	if err := errors.Join(err, mountErr, adminErr, pin.check()); err != nil {
		return fmt.Errorf("read the state of process %d: %w", p.pid, err)
	}
	switch {
	case !user:
		return fmt.Errorf("process %d is in another user namespace, so its root may not be ours; run the command on the node", p.pid)
	case !mount && !admin:
		return fmt.Errorf("process %d is in another container and has no CAP_NET_ADMIN", p.pid)
	}
	return nil
}

func sameNamespace(dir, name string) (bool, error) {
	theirs, err := os.Readlink(filepath.Join(dir, "ns", name))
	if err != nil {
		return false, err
	}
	ours, err := os.Readlink("/proc/self/ns/" + name)
	return theirs == ours, err
}

func hasNetAdmin(dir string) (bool, error) {
	status, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		return false, err
	}
	for line := range strings.Lines(string(status)) {
		if set, ok := strings.CutPrefix(line, "CapEff:"); ok {
			caps, err := strconv.ParseUint(strings.TrimSpace(set), 16, 64)
			return caps&capNetAdmin != 0, err
		}
	}
	return false, fmt.Errorf("%s/status has no CapEff", dir)
}

// pinned distinguishes a process from a later one with the same id.
type pinned struct {
	pid   int
	pidfd int    // -1 before Linux 6.5
	start uint64 // used without pidfd
}

// pin pins the process that connected. Its pidfd (SO_PEERPIDFD, since Linux 6.5)
// becomes readable when it ends. On older kernels the process must have started before
// we accepted the connection.
func (p peer) pin(fd int) (pinned, error) {
	out := pinned{pid: p.pid, pidfd: -1}
	if pidfd, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEERPIDFD); err == nil {
		out.pidfd = pidfd
		return out, nil
	} else if !errors.Is(err, unix.ENOPROTOOPT) {
		return out, err
	}
	start, age, err := owner.Started(p.pid)
	if err == nil && age < startTick {
		err = errors.New("a process with this id started after the connection was made")
	}
	out.start = start
	return out, err
}

// startTick is the resolution of the start time of a process.
const startTick = 10 * time.Millisecond

// check returns an error if the process has ended.
func (p pinned) check() error {
	if p.pidfd < 0 {
		start, _, err := owner.Started(p.pid)
		if err == nil && start != p.start {
			err = errors.New("the process has ended")
		}
		return err
	}
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(p.pidfd), Events: unix.POLLIN}}, 0)
	if err == nil && n > 0 {
		err = errors.New("the process has ended")
	}
	return err
}

func (p pinned) close() {
	if p.pidfd >= 0 {
		_ = unix.Close(p.pidfd)
	}
}
