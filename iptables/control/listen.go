package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// DefaultPath is the path of the socket, for instances and clients.
const DefaultPath = "/run/trackless/control.sock"

// abstractName is the name of the socket if the file system cannot hold a socket.
// The @ stands for the zero byte of an abstract name (unix(7)).
const abstractName = "@trackless/control.sock"

// maxPath is the size of sun_path without its final zero.
const maxPath = 107

// Why an instance cannot listen at a path.
var (
	errPathTooLong = fmt.Errorf("the path is too long: the name of a unix socket has at most %d bytes", maxPath)
	errNoSocket    = errors.New("a file with this name exists and is not a socket; remove it, or name another path with -control")
)

// dialTimeout bounds a connection to a socket of this machine.
const dialTimeout = time.Second

// listen opens the socket at path, or beside it if a live instance has path. If the
// directory cannot be written it takes an abstract name; fallback is the reason.
func listen(path string) (l *net.UnixListener, fallback error, err error) {
	if strings.HasPrefix(path, "@") {
		l, err = listenAbstract(path)
		return l, nil, err
	}
	if path, err = filepath.Abs(path); err != nil {
		return nil, nil, err
	}
	if longest := beside(path, 0); len(longest) > maxPath {
		return nil, nil, fmt.Errorf("control socket %s: %w", path, errPathTooLong)
	}
	l, err = listenFile(path)
	if err == nil || !unwritable(err) {
		return l, nil, err
	}
	l, abstractErr := listenAbstract(abstractName)
	if abstractErr != nil {
		return nil, nil, errors.Join(err, abstractErr)
	}
	return l, err, nil
}

// unwritable reports whether an error is that of a file system which cannot hold the
// socket.
func unwritable(err error) bool {
	for _, e := range []error{unix.EROFS, unix.EACCES, unix.EPERM, unix.ENOTDIR, unix.ENOENT, unix.ENOSPC, unix.EDQUOT, unix.EOPNOTSUPP} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// listenFile takes the path if no process answers there, else the next free path
// beside it. It locks the directory, so that two instances that start together do not
// replace each other's socket.
func listenFile(path string) (*net.UnixListener, error) {
	unlock, err := lockDirectory(filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("control socket %s: %w", path, err)
	}
	defer unlock()
	name := path
	for n := 0; ; n++ {
		l, err := bind(name)
		if err == nil {
			return l, nil
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			return nil, fmt.Errorf("control socket %s: %w", name, err)
		}
		stale, err := isStale(name)
		switch {
		case err != nil:
			return nil, fmt.Errorf("control socket %s: %w", name, err)
		case stale:
			if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, fmt.Errorf("control socket %s: replace the one that a dead process left: %w", name, err)
			}
			n--
			continue
		case n == maxBeside:
			return nil, fmt.Errorf("listen on control socket %s: running instances use this name and its %d alternatives; choose another path with -control", path, n)
		}
		name = beside(path, n)
	}
}

// maxBeside bounds the search for a free name. The pid in a name does not make it
// unique: in containers that share the directory every instance is process 1.
const maxBeside = 32

// beside returns control-123.sock, control-123-1.sock and so on for control.sock.
func beside(path string, n int) string {
	extension := filepath.Ext(path)
	stem := strings.TrimSuffix(path, extension) + "-" + strconv.Itoa(os.Getpid())
	if n > 0 {
		stem += "-" + strconv.Itoa(n)
	}
	return stem + extension
}

func listenAbstract(name string) (*net.UnixListener, error) {
	path := name
	for n := 0; ; n++ {
		l, err := bind(name)
		if err == nil {
			return l, nil
		}
		// An abstract name ends with its socket: a name in use is not stale.
		if !errors.Is(err, unix.EADDRINUSE) || n == maxBeside {
			return nil, fmt.Errorf("control socket %s: %w", name, err)
		}
		name = beside(path, n)
	}
}

func bind(name string) (*net.UnixListener, error) {
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		// bind(2) gives the file the mode of the socket's inode, so other users
		// can connect at no moment (unix_bind_bsd in net/unix/af_unix.c).
		controlErr := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) })
		return errors.Join(controlErr, err)
	}}
	l, err := config.Listen(context.Background(), "unix", name)
	if err != nil {
		return nil, err
	}
	unixListener, ok := l.(*net.UnixListener)
	if !ok {
		return nil, errors.Join(fmt.Errorf("%T is no unix listener", l), l.Close())
	}
	// Server.Close removes the file: at that time it may be that of another instance.
	unixListener.SetUnlinkOnClose(false)
	return unixListener, nil
}

// isStale reports whether no process listens on the socket any more.
func isStale(name string) (bool, error) {
	info, err := os.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return true, nil
	case err != nil:
		return false, err
	case info.Mode().Type() != fs.ModeSocket:
		return false, errNoSocket
	}
	conn, err := net.DialTimeout("unix", name, dialTimeout)
	if err == nil {
		return false, conn.Close()
	}
	return errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ENOENT), nil
}

// lockDirectory makes the directory if it is missing, and locks it against other
// instances until unlock.
func lockDirectory(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), f.Close())
	}
	return func() { _ = f.Close() }, nil
}
