package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

// tracepoint is an event of the kernel that can be counted. A nil one counts nothing.
type tracepoint struct{ id uint64 }

// findSyscalls finds the tracepoint raw_syscalls:sys_enter. The mount of tracefs that
// it takes for that is attached nowhere.
func findSyscalls() (*tracepoint, error) {
	fs, err := unix.Fsopen("tracefs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open tracefs: %w", err)
	}
	defer func() { _ = unix.Close(fs) }()
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("open tracefs: %w", err)
	}
	mount, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("mount tracefs: %w", err)
	}
	defer func() { _ = unix.Close(mount) }()
	const path = "events/raw_syscalls/sys_enter/id"
	fd, err := unix.Openat(mount, path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open tracefs's %s: %w", path, err)
	}
	file := os.NewFile(uintptr(fd), path)
	defer func() { _ = file.Close() }()
	text, err := io.ReadAll(file)
	if err != nil {
		return nil, fmt.Errorf("read tracefs's %s: %w", path, err)
	}
	id, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return nil, fmt.Errorf("read tracefs's %s: %w", path, err)
	}
	return &tracepoint{id}, nil
}

// counter counts an event of one process. A nil one counts nothing.
type counter struct{ fds []int }

// count begins to count in all threads of a process, and in those that they will
// start.
func (t *tracepoint) count(pid int) (*counter, error) {
	if t == nil {
		return nil, nil
	}
	c := &counter{}
	known := map[int]bool{}
	// A thread may start another one while the list is read.
	for before := -1; before != len(known); {
		before = len(known)
		tasks, err := procfs.AllThreads(pid)
		if err != nil {
			return nil, errors.Join(err, c.close())
		}
		for _, task := range tasks {
			if known[task.PID] {
				continue
			}
			known[task.PID] = true
			attr := &unix.PerfEventAttr{Type: unix.PERF_TYPE_TRACEPOINT, Config: t.id, Bits: unix.PerfBitInherit}
			attr.Size = uint32(unsafe.Sizeof(*attr))
			fd, err := unix.PerfEventOpen(attr, task.PID, -1, -1, unix.PERF_FLAG_FD_CLOEXEC)
			if errors.Is(err, unix.ESRCH) {
				continue // it has ended since
			}
			if err != nil {
				return nil, errors.Join(fmt.Errorf("count the system calls of thread %d: %w", task.PID, err), c.close())
			}
			c.fds = append(c.fds, fd)
		}
	}
	return c, nil
}

// read returns how many events there were, and whether they are counted.
func (c *counter) read() (n uint64, counted bool, err error) {
	if c == nil {
		return 0, false, nil
	}
	for _, fd := range c.fds {
		var value [8]byte
		if _, err := unix.Read(fd, value[:]); err != nil {
			return 0, false, fmt.Errorf("read how many system calls there were: %w", err)
		}
		n += binary.NativeEndian.Uint64(value[:])
	}
	return n, true, nil
}

func (c *counter) close() error {
	if c == nil {
		return nil
	}
	var errs []error
	for _, fd := range c.fds {
		errs = append(errs, unix.Close(fd))
	}
	return errors.Join(errs...)
}
