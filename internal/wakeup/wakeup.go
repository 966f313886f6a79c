// Package wakeup has timers for a process that is idle most of the time.
//
// A timer of the Go runtime costs such a process more wake-ups than one. The runtime's
// monitor thread sleeps until the next timer too, and then naps for moments until the
// thread that polls has run the timer, which the kernel may wake a millisecond later.
// And a timer that was stopped wakes the process all the same at the time for which it was
// set. A timer of the kernel (timerfd_create(2)) is a file that can be read when the time
// has passed, and wakes the process once, and only then.
package wakeup

import (
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Timer wakes the goroutine that waits for it.
type Timer interface {
	// Reset has the timer wake after a time, in place of the one before.
	Reset(time.Duration)

	// Stop keeps the timer from waking until the next Reset.
	Stop()

	// Wait returns nil when the time of the last Reset has passed, and
	// [os.ErrClosed] after Close. One goroutine at a time calls it.
	Wait() error

	// Close ends a Wait. It may be called at any time, and several times.
	Close() error
}

// New returns a timer of the kernel, or one of the runtime where the kernel refuses it.
func New() Timer {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return NewRuntime() // no descriptor is left
	}
	file := os.NewFile(uintptr(fd), "timerfd")
	raw, err := file.SyscallConn()
	if err != nil {
		_ = file.Close()
		return NewRuntime()
	}
	return &kernelTimer{file, raw}
}

type kernelTimer struct {
	file *os.File
	raw  syscall.RawConn
}

func (t *kernelTimer) Reset(d time.Duration) { t.set(max(d, 1)) }

func (t *kernelTimer) Stop() { t.set(0) }

// set arms the timer; 0 disarms it.
func (t *kernelTimer) set(d time.Duration) {
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(d))}
	// It fails for a closed file alone, which Wait tells.
	_ = t.raw.Control(func(fd uintptr) { _ = unix.TimerfdSettime(int(fd), 0, &spec, nil) })
}

func (t *kernelTimer) Wait() error {
	var expirations [8]byte
	_, err := t.file.Read(expirations[:])
	return err
}

func (t *kernelTimer) Close() error { return t.file.Close() }

// NewRuntime returns a timer of the Go runtime, which goes by the time of a synctest
// bubble.
func NewRuntime() Timer {
	t := &runtimeTimer{timer: time.NewTimer(time.Hour), closed: make(chan struct{})}
	t.timer.Stop()
	return t
}

type runtimeTimer struct {
	timer  *time.Timer
	once   sync.Once
	closed chan struct{}
}

func (t *runtimeTimer) Reset(d time.Duration) { t.timer.Reset(d) }

func (t *runtimeTimer) Stop() { t.timer.Stop() }

func (t *runtimeTimer) Wait() error {
	select {
	case <-t.closed:
		return os.ErrClosed
	case <-t.timer.C:
		return nil
	}
}

func (t *runtimeTimer) Close() error {
	t.once.Do(func() { close(t.closed) })
	t.timer.Stop()
	return nil
}
