package legacy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables"
)

// windowSize bounds the memory in which a table is read, whatever its size: 6 MiB
// hold some 12,000 rules of kube-proxy, and 5,000 Services have seven times as many.
const windowSize = 6 << 20

// entriesHeader is the size of struct ipt_get_entries before the entries, which
// are aligned to 8 bytes.
const entriesHeader = nameSize + 8

// window shows the entries of a table a part at a time.
//
// The kernel has one question for all entries (IPT_SO_GET_ENTRIES) and writes the
// answer from its first byte to its last; where memory ends it stops with EFAULT,
// and what it has written before stays (copy_entries_to_user). The buffer that it
// is given is as long as the table, but the same few pages stand behind all of
// it, as far as the part that is to be seen, and none behind the rest: when it
// stops there, the pages hold that part.
//
// Another program may replace the table between two parts. One of another size is
// noticed (EAGAIN); of one of the same size what has been read no longer fits
// together, at the latest where an entry would begin.
type window struct {
	fd, level int
	name      string
	size      int // of the entries
	count     int // of the entries
	memory    int // file descriptor of the pages
	pages     int // how many bytes they are
	buffer    []byte
	mapped    int // bytes of buffer that have pages
	parts     int // how many were shown
}

func openWindow(family iptables.Family, name string, h header, pages int) (*window, error) {
	fd, level, err := optionSocket(family)
	if err != nil {
		return nil, err
	}
	w := &window{fd: fd, level: level, name: name, size: int(h.size), count: int(h.numEntries), memory: -1}
	length := wholePages(entriesHeader + w.size)
	w.pages = min(length, pages)
	if w.memory, err = unix.MemfdCreate("legacy-table", unix.MFD_CLOEXEC); err != nil {
		return nil, errors.Join(fmt.Errorf("make memory for it: memfd_create: %w", err), w.close())
	}
	if err := unix.Ftruncate(w.memory, int64(w.pages)); err != nil {
		return nil, errors.Join(fmt.Errorf("make memory for it: ftruncate: %w", err), w.close())
	}
	at, err := unix.MmapPtr(-1, 0, nil, uintptr(length), unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make memory for it: mmap: %w", err), w.close())
	}
	w.buffer = unsafe.Slice((*byte)(at), length)
	return w, nil
}

func (w *window) close() error {
	var errs []error
	if w.buffer != nil {
		errs = append(errs, unix.MunmapPtr(unsafe.Pointer(&w.buffer[0]), uintptr(len(w.buffer))))
	}
	if w.memory >= 0 {
		errs = append(errs, unix.Close(w.memory))
	}
	return errors.Join(append(errs, unix.Close(w.fd))...)
}

func wholePages(n int) int {
	page := unix.Getpagesize()
	return (n + page - 1) / page * page
}

// from returns the entries from an offset on, as many as there is room for; the
// last one may be cut off unless last is true. They are there until the next
// call. An error that is EAGAIN: the table has changed.
func (w *window) from(offset int) (part []byte, last bool, err error) {
	start := entriesHeader + offset
	end := min(start/unix.Getpagesize()*unix.Getpagesize()+w.pages, len(w.buffer))
	if err := w.back(end); err != nil {
		return nil, false, err
	}
	all := entriesHeader + w.size
	clear(w.buffer[:entriesHeader])
	copy(w.buffer, w.name)
	binary.NativeEndian.PutUint32(w.buffer[nameSize:], uint32(w.size))
	done := w.forget()
	err = getsockopt(w.fd, w.level, optionEntries, w.buffer[:all])
	done()
	w.parts++
	last = end >= all
	if errors.Is(err, unix.EFAULT) && !last {
		err = nil
	}
	if err != nil {
		return nil, false, err
	}
	return w.buffer[start:min(end, all)], last, nil
}

// entries reads them in order, a part at a time, from an offset on at which one
// begins.
func (w *window) entries(l layout, from int) iter.Seq2[entry, error] {
	return func(yield func(entry, error) bool) {
		count := 0
		for at := from; at < w.size; {
			part, last, err := w.from(at)
			if err != nil {
				yield(entry{}, err)
				return
			}
			began := at
			for {
				e, whole, err := l.cut(part[at-began:], at)
				if err != nil {
					yield(e, err)
					return
				}
				if !whole {
					break
				}
				if count++; !yield(e, nil) {
					return
				}
				at += len(e.b)
			}
			if at == began || last && at < w.size {
				yield(entry{}, fmt.Errorf("entry at %d is cut off", at))
				return
			}
		}
		if from == 0 && count != w.count {
			yield(entry{}, fmt.Errorf("%d entries, where the kernel counts %d", count, w.count))
		}
	}
}

// back puts pages behind the buffer up to an end, and none behind the rest.
func (w *window) back(end int) error {
	if end < w.mapped {
		_, err := unix.MmapPtr(-1, 0, unsafe.Pointer(&w.buffer[end]), uintptr(w.mapped-end),
			unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE|unix.MAP_FIXED)
		if err != nil {
			return fmt.Errorf("make memory for it: mmap: %w", err)
		}
		w.mapped = end
	}
	for at := w.mapped / w.pages * w.pages; at < end; at += w.pages {
		_, err := unix.MmapPtr(w.memory, 0, unsafe.Pointer(&w.buffer[at]), uintptr(min(w.pages, end-at)),
			unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_FIXED)
		if err != nil {
			return fmt.Errorf("make memory for it: mmap: %w", err)
		}
	}
	w.mapped = max(w.mapped, end)
	return nil
}

// forgetEvery is how long the kernel writes a few hundred KiB.
const forgetEvery = 100 * time.Microsecond

// forget keeps the process from looking as large as the table while the kernel
// writes: a page counts for each place in the buffer at which it has been used.
// What is in the pages stays.
func (w *window) forget() (done func()) {
	if w.mapped <= w.pages {
		return func() {}
	}
	var stop atomic.Bool
	started, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		close(started)
		pause := unix.NsecToTimespec(int64(forgetEvery))
		for !stop.Load() {
			_ = unix.Madvise(w.buffer[:w.mapped], unix.MADV_DONTNEED)
			_ = unix.Nanosleep(&pause, nil) // no timer of Go's: its scheduler may come late
		}
	}()
	<-started
	return func() {
		stop.Store(true)
		<-stopped
	}
}
