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

// peer is the process at the other end of a connection, as the kernel noted it
// when the connection or the listener was made (SO_PEERCRED, unix(7)).
type peer struct {
	// pid is its id as seen from here; 0 if it lives in a pid namespace that
	// cannot be seen from ours.
	pid int
	uid uint32
	err error
	// outside says why it could not open the socket's file, if there were one;
	// nil where there is one.
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

// isAbstract reports whether a socket has an abstract name; that of one without any
// is @ alone.
func isAbstract(a net.Addr) bool {
	return a != nil && strings.HasPrefix(a.String(), "@") && a.String() != "@"
}

// trusted returns nil for root and for our own user. On an abstract name, which
// has no file and can be reached from every container of the network namespace,
// user 0 alone says nothing: see couldOpen.
func (p peer) trusted() error {
	if p.err != nil {
		return fmt.Errorf("read who is at the other end: %w", p.err)
	}
	if own := uint32(os.Geteuid()); p.uid != 0 && p.uid != own {
		return fmt.Errorf("user %d is neither root nor user %d", p.uid, own)
	}
	return p.outside
}

// capNetAdmin is CAP_NET_ADMIN's bit of the sets in /proc/PID/status.
const capNetAdmin = 1 << unix.CAP_NET_ADMIN

// couldOpen reports whether the peer is one for whom the socket's file would be no
// obstacle: in our user namespace, where its user 0 is ours, and either in our mount
// namespace, where the file would be, or with CAP_NET_ADMIN, with which it could
// change our rules by other means. All of it is of the process that connected, and
// not of a later one with the same id.
func (p peer) couldOpen(fd int) error {
	if p.pid == 0 {
		return errors.New("the process at the other end cannot be seen from the pid namespace of this one, so that what it may do is not known")
	}
	isSame, err := p.pin(fd)
	if err != nil {
		return fmt.Errorf("look at process %d: %w", p.pid, err)
	}
	defer isSame.close()
	dir := filepath.Join("/proc", strconv.Itoa(p.pid))
	user, err := sameNamespace(dir, "user")
	mount, mountErr := sameNamespace(dir, "mnt")
	admin, adminErr := hasNetAdmin(dir)
	if err := errors.Join(err, mountErr, adminErr, isSame.check()); err != nil {
		return fmt.Errorf("look at process %d: %w", p.pid, err)
	}
	switch {
	case !user:
		return fmt.Errorf("process %d is in another user namespace", p.pid)
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

// pinned tells a process from a later one with its id.
type pinned struct {
	pid   int
	pidfd int    // -1 before Linux 6.5
	start uint64 // without pidfd
}

// pin holds the process that connected. A pidfd of it (SO_PEERPIDFD, since Linux
// 6.5) becomes readable when it ends; before, the process must have begun before we
// took the connection.
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
		err = errors.New("it began after it connected")
	}
	out.start = start
	return out, err
}

// startTick is how exactly the start of a process is known.
const startTick = 10 * time.Millisecond

// check reports whether the process has not ended.
func (p pinned) check() error {
	if p.pidfd < 0 {
		start, _, err := owner.Started(p.pid)
		if err == nil && start != p.start {
			err = errors.New("it has ended")
		}
		return err
	}
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(p.pidfd), Events: unix.POLLIN}}, 0)
	if err == nil && n > 0 {
		err = errors.New("it has ended")
	}
	return err
}

func (p pinned) close() {
	if p.pidfd >= 0 {
		_ = unix.Close(p.pidfd)
	}
}
