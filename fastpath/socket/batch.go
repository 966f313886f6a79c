package socket

import (
	"net/netip"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// batchSize is how many packets one system call reads or writes at most.
	batchSize = 32

	// maxQuery is the size of the buffer with which CoreDNS reads a query over UDP. The
	// rest of a longer one is lost there, too.
	maxQuery = 512

	// maxReply is the size of the largest reply in bytes: what fits a packet on
	// Ethernet.
	maxReply = 1472
)

// header is struct mmsghdr of recvmmsg(2).
type header struct {
	unix.Msghdr
	n uint32
}

// batch has room for some packets and their replies. It is reused, and allocates nothing.
type batch struct {
	in, out [batchSize]header
	inIov   [batchSize]unix.Iovec
	outIov  [batchSize]unix.Iovec
	names   [batchSize]unix.RawSockaddrInet6 // or RawSockaddrInet4
	queries [batchSize][maxQuery]byte
	replies [batchSize][maxReply]byte
	waiting int // replies to be sent
}

func newBatch() *batch {
	b := new(batch)
	for i := range b.in {
		b.inIov[i].Base = &b.queries[i][0]
		b.inIov[i].SetLen(maxQuery)
		b.in[i].Name = (*byte)(unsafe.Pointer(&b.names[i]))
		b.in[i].Iov = &b.inIov[i]
		b.in[i].SetIovlen(1)
		b.out[i].Iov = &b.outIov[i]
		b.out[i].SetIovlen(1)
	}
	return b
}

// receive reads the packets that wait in a socket which does not block. The call never
// waits, so the scheduler need not know of it: where a process was idle, telling it wakes
// a thread of the runtime at each call.
func (b *batch) receive(fd uintptr) (n int, errno unix.Errno) {
	for i := range b.in {
		b.in[i].Namelen = uint32(unsafe.Sizeof(b.names[i]))
	}
	r, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&b.in)), batchSize, 0, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(r), 0
}

// query returns a packet that was read.
func (b *batch) query(i int) []byte { return b.queries[i][:min(int(b.in[i].n), maxQuery)] }

// client returns the source of a packet.
func (b *batch) client(i int) netip.AddrPort {
	name := &b.names[i]
	// Ports are in network byte order.
	port := (*[2]byte)(unsafe.Pointer(&name.Port))
	at := uint16(port[0])<<8 | uint16(port[1])
	if name.Family == unix.AF_INET {
		return netip.AddrPortFrom(netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(name)).Addr), at)
	}
	a := netip.AddrFrom16(name.Addr)
	if a.IsLinkLocalUnicast() && name.Scope_id != 0 {
		a = a.WithZone(strconv.FormatUint(uint64(name.Scope_id), 10))
	}
	return netip.AddrPortFrom(a, at)
}

// reply returns the room for the next reply.
func (b *batch) reply() []byte { return b.replies[b.waiting][:] }

// add adds the next reply, of n bytes, to a packet.
func (b *batch) add(to, n int) {
	out := &b.out[b.waiting]
	out.Name, out.Namelen = b.in[to].Name, b.in[to].Namelen
	b.outIov[b.waiting].Base = &b.replies[b.waiting][0]
	b.outIov[b.waiting].SetLen(n)
	b.waiting++
}

// send sends the replies. It returns those for which the socket has no room.
func (b *batch) send(fd uintptr) (left []header) {
	out := b.out[:b.waiting]
	b.waiting = 0
	for len(out) > 0 {
		sent, errno := sendSome(fd, out)
		switch errno {
		case unix.EAGAIN:
			return out
		case unix.EINTR:
			continue
		}
		out = out[sent:] // an error is that of the first: it reaches no client
	}
	return nil
}

// sendSome sends the first reply and maybe more. It returns how many are done with.
func sendSome(fd uintptr, out []header) (int, unix.Errno) {
	if len(out) == 1 {
		return 1, sendOne(fd, &out[0])
	}
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&out[0])), uintptr(len(out)), 0, 0, 0)
	if errno != 0 {
		return 1, errno
	}
	return int(n), 0
}

func sendOne(fd uintptr, h *header) unix.Errno {
	_, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, fd, uintptr(unsafe.Pointer(h.Iov.Base)), uintptr(h.Iov.Len), 0,
		uintptr(unsafe.Pointer(h.Name)), uintptr(h.Namelen))
	return errno
}
