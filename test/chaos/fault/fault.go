// Package fault is a directive for tests that makes a server fail from within,
// on demand: a cache that waits for a lock that nobody releases, a listener
// that nobody reads, memory that is needed. It stands directly before `cache`
// and answers to its name, so that what waits here waits where a lock inside
// the cache would hold it.
//
//	fault ADDRESS:PORT [RESIDENT_MIB]
//
// The address is where a test tells it what to do, one command a line, each
// answered with a line "ok" or an error:
//
//	hold chain           no query passes from now on
//	release chain        those that waited pass, and all others
//	hold reader ADDRESS  the UDP socket on port 53 of the address is not read
//	release reader       it is read again
//	grow MIB             this much more memory is touched, a megabyte at a time
//
// RESIDENT_MIB of memory are touched before the server listens, in pages of
// the ordinary size, as a filled cache would have them.
package fault

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// Directive is its name in a Corefile.
const Directive = "fault"

func init() { plugin.Register(Directive, setup) }

func setup(c *caddy.Controller) error {
	c.Next()
	args := c.RemainingArgs()
	if len(args) < 1 || len(args) > 2 {
		return plugin.Error(Directive, c.ArgErr())
	}
	f := &fault{control: args[0]}
	if len(args) == 2 {
		mib, err := strconv.Atoi(args[1])
		if err != nil {
			return plugin.Error(Directive, err)
		}
		f.grow(mib)
	}
	c.OnStartup(f.listen)
	c.OnShutdown(f.close)
	dnsserver.GetConfig(c).AddPlugin(func(next plugin.Handler) plugin.Handler {
		return &handler{next: next, fault: f}
	})
	return nil
}

type fault struct {
	control  string
	listener net.Listener

	lock    sync.RWMutex // held for writing while the chain is held
	mu      sync.Mutex   // orders the commands
	held    bool
	readers []heldReader
	ballast [][]byte
}

// handler passes queries on while the lock is free.
type handler struct {
	next  plugin.Handler
	fault *fault
}

// Name is that of the handler behind: who looks up the cache by its name, as
// notrack does for its checks, meets the lock like everybody else.
func (*handler) Name() string { return "cache" }

func (h *handler) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	h.fault.lock.RLock()
	h.fault.lock.RUnlock() //nolint:staticcheck // to wait is all that is wanted
	return plugin.NextOrFailure(Directive, h.next, ctx, w, r)
}

func (f *fault) listen() error {
	listener, err := net.Listen("tcp", f.control)
	if err != nil {
		return err
	}
	f.listener = listener
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go f.serve(conn)
		}
	}()
	return nil
}

func (f *fault) close() error {
	if f.listener == nil {
		return nil
	}
	return f.listener.Close()
}

func (f *fault) serve(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	lines := bufio.NewScanner(conn)
	for lines.Scan() {
		reply := "ok"
		if err := f.do(strings.Fields(lines.Text())); err != nil {
			reply = err.Error()
		}
		if _, err := fmt.Fprintln(conn, reply); err != nil {
			return
		}
	}
}

func (f *fault) do(words []string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	command := strings.Join(words[:min(2, len(words))], " ")
	switch {
	case command == "hold chain" && !f.held:
		f.held = true
		f.lock.Lock()
	case command == "release chain" && f.held:
		f.held = false
		f.lock.Unlock()
	case command == "hold reader" && len(words) == 3:
		addr, err := netip.ParseAddr(words[2])
		if err != nil {
			return err
		}
		return f.holdReaders(netip.AddrPortFrom(addr, 53))
	case command == "release reader":
		return f.releaseReaders()
	case len(words) == 2 && words[0] == "grow":
		mib, err := strconv.Atoi(words[1])
		if err != nil {
			return err
		}
		f.grow(mib)
	default:
		return fmt.Errorf("cannot %q now", strings.Join(words, " "))
	}
	return nil
}

// grow touches every page of so many megabytes more.
func (f *fault) grow(mib int) {
	for range mib {
		block := make([]byte, 1<<20)
		for i := 0; i < len(block); i += os.Getpagesize() {
			block[i] = 1
		}
		f.ballast = append(f.ballast, block)
	}
}

// heldReader is a socket that somebody else sits in front of: descriptor fd
// leads to a socket that never receives anything, saved to the one that it led
// to before, which goes on to receive and is read by nobody.
type heldReader struct{ fd, saved int }

func (f *fault) holdReaders(at netip.AddrPort) error {
	if len(f.readers) > 0 {
		return errors.New("a reader is held already")
	}
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	// All of them first: the descriptors that are made below get numbers that
	// are in the list, too, for one the number of the folder that was listed.
	var fds []int
	for _, entry := range entries {
		if fd, err := strconv.Atoi(entry.Name()); err == nil && isUDPSocketAt(fd, at) {
			fds = append(fds, fd)
		}
	}
	for _, fd := range fds {
		reader, err := holdReader(fd, at.Addr().Is6())
		if err != nil {
			return err
		}
		f.readers = append(f.readers, reader)
	}
	if len(f.readers) == 0 {
		return fmt.Errorf("no UDP socket of this process is bound to %s", at)
	}
	return nil
}

func isUDPSocketAt(fd int, at netip.AddrPort) bool {
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil || kind != unix.SOCK_DGRAM {
		return false
	}
	local, err := unix.Getsockname(fd)
	if err != nil {
		return false
	}
	switch local := local.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(local.Addr), uint16(local.Port)) == at
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(local.Addr).Unmap(), uint16(local.Port)) == at
	}
	return false
}

func holdReader(fd int, ipv6 bool) (heldReader, error) {
	family := unix.AF_INET
	if ipv6 {
		family = unix.AF_INET6
	}
	silent, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return heldReader{}, err
	}
	saved, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err == nil {
		err = unix.Dup3(silent, fd, unix.O_CLOEXEC)
	}
	return heldReader{fd, saved}, errors.Join(err, unix.Close(silent))
}

// drain empties the queue of the socket. The runtime's poller hears of a packet
// when it arrives; into a queue that is full none does, and nobody would ever
// read it again.
func drain(fd int) {
	buffer := make([]byte, 1)
	for {
		if _, _, err := unix.Recvfrom(fd, buffer, unix.MSG_DONTWAIT); err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

func (f *fault) releaseReaders() error {
	var errs []error
	for _, reader := range f.readers {
		drain(reader.saved)
		errs = append(errs, unix.Dup3(reader.saved, reader.fd, unix.O_CLOEXEC), unix.Close(reader.saved))
	}
	f.readers = nil
	return errors.Join(errs...)
}
