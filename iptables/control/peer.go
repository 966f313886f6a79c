package control

import (
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// peer is the process at the other end of a connection, as the kernel noted it
// when the connection or the listener was made (SO_PEERCRED, unix(7)).
type peer struct {
	// pid is its id as seen from here; 0 if it lives in a pid namespace that
	// cannot be seen from ours.
	pid int
	uid uint32
	err error
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
	err = raw.Control(func(fd uintptr) {
		cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err != nil {
			p.err = err
			return
		}
		p.pid, p.uid = int(cred.Pid), cred.Uid
	})
	if err != nil {
		p.err = err
	}
	return p
}

// trusted returns nil for root and for our own user.
func (p peer) trusted() error {
	if p.err != nil {
		return fmt.Errorf("read who is at the other end: %w", p.err)
	}
	if own := uint32(os.Geteuid()); p.uid != 0 && p.uid != own {
		return fmt.Errorf("user %d is neither root nor user %d", p.uid, own)
	}
	return nil
}
