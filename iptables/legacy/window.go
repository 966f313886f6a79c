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

// windowSize bounds the memory for reading a table of any size. 6 MiB hold about 12,000
// rules of kube-proxy; 5,000 Services have seven times as many.
const windowSize = 6 << 20

// entriesHeader is the size of struct ipt_get_entries before the entries, which
// are aligned to 8 bytes.
const entriesHeader = nameSize + 8

// window shows the entries of a table one part at a time.
//
// The kernel has one request for all entries (IPT_SO_GET_ENTRIES) and writes the answer
// from the first byte to the last. If it meets unmapped memory it stops with EFAULT, and
// the bytes before that stay written (copy_entries_to_user). Our buffer is as long as
// the table. Up to the end of the wanted part it is mapped to the same few pages, again
// and again; after that it is unmapped. When the kernel stops there, the pages hold that
// part.
//
// Another program may replace the table between two parts. If the new table has another
// size the kernel says so (EAGAIN). If it has the same size, the parts do not fit
// together, and parsing finds an entry that is not valid.
type window struct {
	fd, level int
	name      string
	size      int // of all entries, in bytes
	count     int // number of entries
	memory    int // file descriptor of the pages
	pages     int // size of the pages in bytes
	buffer    []byte
	mapped    int // bytes of buffer that are mapped to pages
	parts     int // number of parts that were read
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
		return nil, errors.Join(fmt.Errorf("allocate memory for the table: memfd_create: %w", err), w.close())
	}
	if err := unix.Ftruncate(w.memory, int64(w.pages)); err != nil {
		return nil, errors.Join(fmt.Errorf("allocate memory for the table: ftruncate: %w", err), w.close())
	}
	at, err := unix.MmapPtr(-1, 0, nil, uintptr(length), unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("allocate memory for the table: mmap: %w", err), w.close())
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

// from returns the entries from an offset on, as many as fit into the pages. Unless last
// is true the last entry may be cut off. The entries are valid until the next call. The
// error EAGAIN means that the table has changed.
func (w *window) from(offset int) (part []byte, last bool, err error) {
	start := entriesHeader + offset
	end := min(start/unix.Getpagesize()*unix.Getpagesize()+w.pages, len(w.buffer))
	if err := w.mapTo(end); err != nil {
		return nil, false, err
	}
	all := entriesHeader + w.size
	clear(w.buffer[:entriesHeader])
	copy(w.buffer, w.name)
	binary.NativeEndian.PutUint32(w.buffer[nameSize:], uint32(w.size))
	done := w.releasePages()
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

// entries reads the entries in order, one part at a time. An entry must begin at the
// offset from.
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
			yield(entry{}, fmt.Errorf("the table has %d entries, but the kernel says %d", count, w.count))
		}
	}
}

// mapTo maps the buffer to pages up to an end, and unmaps the rest.
func (w *window) mapTo(end int) error {
	if end < w.mapped {
		_, err := unix.MmapPtr(-1, 0, unsafe.Pointer(&w.buffer[end]), uintptr(w.mapped-end),
			unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE|unix.MAP_FIXED)
		if err != nil {
			return fmt.Errorf("allocate memory for the table: mmap: %w", err)
		}
		w.mapped = end
	}
	for at := w.mapped / w.pages * w.pages; at < end; at += w.pages {
		_, err := unix.MmapPtr(w.memory, 0, unsafe.Pointer(&w.buffer[at]), uintptr(min(w.pages, end-at)),
			unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_FIXED)
		if err != nil {
			return fmt.Errorf("allocate memory for the table: mmap: %w", err)
		}
	}
	w.mapped = max(w.mapped, end)
	return nil
}

// releaseInterval is the time in which the kernel writes a few hundred KiB.
const releaseInterval = 100 * time.Microsecond

// releasePages keeps the resident set small while the kernel writes. A page counts once
// for each address in the buffer at which it was used. Its contents stay.
func (w *window) releasePages() (done func()) {
	if w.mapped <= w.pages {
		return func() {}
	}
	var stop atomic.Bool
	started, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		close(started)
		pause := unix.NsecToTimespec(int64(releaseInterval))
		for !stop.Load() {
			_ = unix.Madvise(w.buffer[:w.mapped], unix.MADV_DONTNEED)
			_ = unix.Nanosleep(&pause, nil) // a Go timer may be late
		}
	}()
	<-started
	return func() {
		stop.Store(true)
		<-stopped
	}
}
