package legacy

import (
	"errors"
	"fmt"
	"hash/maphash"
	"iter"
	"os"
	"slices"
	"strings"
	"time"
	"unsafe"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/internal/thread"
	"github.com/trackless-dns/trackless/iptables"
)

// Config says where the tables are. The zero value is the network namespace of this
// process.
type Config struct {
	// NetNS is a file descriptor of a network namespace; 0 is our own.
	NetNS int
}

// Names returns the tables of a family in the network namespace. A kernel without legacy
// iptables has none. The list needs root; the tables need CAP_NET_ADMIN.
func Names(cfg Config, family iptables.Family) (names []string, err error) {
	err = within(cfg, func() error {
		names, err = tableNames(family)
		return err
	})
	return names, err
}

// Read returns the wanted rules of a table, and whether the table exists. It fails if
// other programs keep replacing the table.
func Read(cfg Config, family iptables.Family, name string, wanted Filter) (t Table, found bool, err error) {
	found, err = read(cfg, family, name, func(h header, from entriesFrom) error {
		t, err = parse(family, name, h, from(0), wanted)
		return err
	})
	return t, found, err
}

// entriesFrom reads entries from an offset on. An entry must begin there.
type entriesFrom func(offset int) iter.Seq2[entry, error]

// read passes the entries of a table to take, and starts again if another program
// replaces the table in between.
func read(cfg Config, family iptables.Family, name string, take func(header, entriesFrom) error) (found bool, err error) {
	err = within(cfg, func() error {
		names, err := tableNames(family)
		if err != nil || !slices.Contains(names, name) {
			return err
		}
		found = true
		return explain(family, name, readEntries(family, name, windowSize, take))
	})
	return found && err == nil, err
}

func readEntries(family iptables.Family, name string, pages int, take func(header, entriesFrom) error) error {
	var last error
	for i := range attempts {
		time.Sleep(pause(i))
		h, err := info(family, name)
		if err != nil {
			return err
		}
		w, err := openWindow(family, name, h, pages)
		if err != nil {
			return err
		}
		err = take(h, func(offset int) iter.Seq2[entry, error] { return w.entries(layoutOf(family), offset) })
		parts := w.parts
		if closeErr := w.close(); err == nil {
			err = closeErr
		}
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EAGAIN), parts > 1:
			last = err // the table changed: its parts do not fit together
		default:
			return err
		}
	}
	return fmt.Errorf("other programs changed it %d times while it was read: %w", attempts, last)
}

func explain(family iptables.Family, name string, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, unix.EPERM) {
		err = fmt.Errorf("%w (%w)", err, iptables.ErrPermission)
	}
	return fmt.Errorf("legacy %s table %s: %w", family, name, err)
}

// tableNames reads the names of the tables in the network namespace of this thread.
func tableNames(family iptables.Family) ([]string, error) {
	path := "/proc/thread-self/net/ip_tables_names"
	if family == iptables.IPv6 {
		path = "/proc/thread-self/net/ip6_tables_names"
	}
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil // the module is not loaded
	}
	if err != nil {
		return nil, fmt.Errorf("list the legacy %s tables: %w", family, err)
	}
	return strings.Fields(string(b)), nil
}

// HasTables reports whether there are legacy tables of either family.
func HasTables(cfg Config) (bool, error) {
	for _, f := range []iptables.Family{iptables.IPv4, iptables.IPv6} {
		if names, err := Names(cfg, f); err != nil || len(names) > 0 {
			return len(names) > 0, err
		}
	}
	return false, nil
}

// InUse reports whether there are legacy tables in the network namespace of this thread,
// or may be.
func InUse() bool {
	some, err := HasTables(Config{})
	return some || err != nil
}

// The socket options IPT_SO_GET_INFO and IPT_SO_GET_ENTRIES. IPv6 has the same numbers;
// optionSocket returns the level.
const (
	optionInfo    = 64
	optionEntries = 65
)

// attempts bounds how often a table is read again because it changed between the request
// for its size and the request for its entries.
const attempts = 10

// pause is the time before an attempt, counted from 0. Together the attempts take 0.3
// seconds: some programs commit many changes in a row.
func pause(attempt int) time.Duration { return time.Duration(attempt*attempt) * time.Millisecond }

// info asks for the header of a table.
func info(family iptables.Family, name string) (header, error) {
	if len(name) >= nameSize {
		return header{}, fmt.Errorf("the name is longer than %d bytes", nameSize-1)
	}
	fd, level, err := optionSocket(family)
	if err != nil {
		return header{}, err
	}
	defer unix.Close(fd)
	b := make([]byte, infoSize)
	copy(b, name)
	if err := getsockopt(fd, level, optionInfo, b); err != nil {
		return header{}, err
	}
	return parseInfo(b)
}

// Shape is the size of a table and of its chains. It changes when rules of another size
// come, or their number changes.
type Shape struct{ header }

// ShapeOf reads the shape of a table in the network namespace of this thread, at the
// price of one request. The table must exist: the request makes a missing one.
func ShapeOf(family iptables.Family, name string) (Shape, error) {
	h, err := info(family, name)
	return Shape{h}, err
}

// seed is that of all sums of this process.
var seed = maphash.MakeSeed()

// Sum returns a sum of a table: another one when a rule or a policy changes, the same while
// only counters do. It is 0 where there is no such table.
func Sum(cfg Config, family iptables.Family, name string) (sum uint64, err error) {
	found, err := read(cfg, family, name, func(_ header, from entriesFrom) error {
		var h maphash.Hash
		h.SetSeed(seed)
		_, _ = h.WriteString(family.String() + name) // never fails, nor do the next
		for e, err := range from(0) {
			if err != nil {
				return err
			}
			_, _ = h.Write(e.b[:e.size-countersSize])
			_, _ = h.Write(e.b[e.size:])
		}
		sum = h.Sum64() | 1
		return nil
	})
	if !found {
		sum = 0
	}
	return sum, err
}

// optionSocket opens a socket for requests about a family's tables, and returns the level
// of its options.
func optionSocket(family iptables.Family) (fd, level int, err error) {
	domain, level := unix.AF_INET, unix.SOL_IP
	if family == iptables.IPv6 {
		domain, level = unix.AF_INET6, unix.SOL_IPV6
	}
	fd, err = unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	return fd, level, err
}

func getsockopt(fd, level, name int, buf []byte) error {
	length := uint32(len(buf))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name),
		uintptr(unsafe.Pointer(&buf[0])), uintptr(unsafe.Pointer(&length)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// within runs fn in the network namespace.
func within(cfg Config, fn func() error) error {
	if cfg.NetNS == 0 {
		return fn()
	}
	return thread.Elsewhere(func() error {
		if err := netns.Set(netns.NsHandle(cfg.NetNS)); err != nil {
			return fmt.Errorf("enter the network namespace: %w", err)
		}
		return fn()
	})
}

// HasChain reports whether a table has a user-defined chain for whose name is returns
// true.
func HasChain(cfg Config, family iptables.Family, table string, is func(chain string) bool) (found bool, err error) {
	_, err = read(cfg, family, table, func(_ header, from entriesFrom) error {
		for e, err := range from(0) {
			if err != nil {
				return err
			}
			head, err := e.head()
			if err != nil {
				return err
			}
			if found = head != "" && head != errorTarget && is(head); found {
				return nil
			}
		}
		return nil
	})
	return found && err == nil, err
}
