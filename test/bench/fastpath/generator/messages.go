package generator

import (
	"errors"
	"unsafe"

	"golang.org/x/sys/unix"
)

// responseSize is the most of a response that is read.
const responseSize = 512

// message is struct mmsghdr of sendmmsg(2).
type message struct {
	header unix.Msghdr
	length uint32
	_      [4]byte
}

// messages are sent or received by one system call. The go command's own packages
// would park the goroutine and let the scheduler's threads run beside the server.
type messages struct {
	headers []message
	vectors []unix.Iovec
	buffers [][]byte
}

func newMessages(n int) *messages {
	m := &messages{headers: make([]message, n), vectors: make([]unix.Iovec, n), buffers: make([][]byte, n)}
	for i := range m.headers {
		m.buffers[i] = make([]byte, responseSize)
		m.vectors[i].Base = &m.buffers[i][0]
		m.vectors[i].SetLen(responseSize)
		m.headers[i].header.Iov = &m.vectors[i]
		m.headers[i].header.SetIovlen(1)
	}
	return m
}

// set makes a query the i-th message.
func (m *messages) set(i int, query []byte, id uint16) {
	copy(m.buffers[i], query)
	m.buffers[i][0], m.buffers[i][1] = byte(id>>8), byte(id)
	m.vectors[i].SetLen(len(query))
}

// received is the i-th message that came.
func (m *messages) received(i int) []byte { return m.buffers[i][:m.headers[i].length] }

// send sends the messages from first to before end, as many as there is room for.
func (m *messages) send(fd, first, end int) (int, error) {
	return m.call(unix.SYS_SENDMMSG, fd, first, end)
}

// receive receives at most n messages, none if none is there.
func (m *messages) receive(fd, n int) (int, error) {
	return m.call(unix.SYS_RECVMMSG, fd, 0, n)
}

// call makes the system call, which never waits: the sockets do not block, so that the
// scheduler need not know of it.
func (m *messages) call(number uintptr, fd, first, end int) (int, error) {
	for first < end {
		n, _, errno := unix.RawSyscall6(number, uintptr(fd), uintptr(unsafe.Pointer(&m.headers[first])), uintptr(end-first), 0, 0, 0)
		switch {
		case errno == 0:
			return int(n), nil
		case errors.Is(errno, unix.EAGAIN), errors.Is(errno, unix.ENOBUFS):
			return 0, nil
		case !errors.Is(errno, unix.EINTR):
			return 0, errno
		}
	}
	return 0, nil
}

// await sleeps until a message is there, at most for the patience. The scheduler does
// not know of it either: nothing else runs.
func await(fd int) error {
	set := unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}
	timeout := unix.NsecToTimespec(int64(patience)) // the kernel writes into it what is left
	for {
		_, _, errno := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&set)), 1, uintptr(unsafe.Pointer(&timeout)), 0, 0, 0)
		switch {
		case errno == 0:
			return nil
		case !errors.Is(errno, unix.EINTR):
			return errno
		}
	}
}
