package legacy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables"
)

// Delete deletes the rules of a table that doomed picks, and returns their number. It
// works like iptables-legacy (libiptc): under the xtables lock it reads the table, and
// replaces it in one step by a table without these rules, with the counters of the
// others. If doomed picks no rules, it does nothing and needs no lock.
//
// Without a lock file the error matches [ErrNoLock]. If another program holds the lock
// for a second it matches [iptables.ErrBusy].
func Delete(cfg Config, family iptables.Family, name string, doomed Filter) (deleted int, err error) {
	some := false
	found, err := read(cfg, family, name, func(h header, from entriesFrom) error {
		t, err := parse(family, name, h, from(0), doomed)
		some = slices.ContainsFunc(t.Chains, func(c Chain) bool { return len(c.Rules) > 0 })
		return err
	})
	if err != nil || !found || !some {
		return 0, err
	}
	release, err := lock(lockWait)
	if err != nil {
		return 0, fmt.Errorf("delete from the legacy %s table %s: %w", family, name, err)
	}
	defer release()
	err = within(cfg, func() error {
		for i := range attempts {
			time.Sleep(pause(i))
			deleted, err = replace(family, name, doomed)
			if !errors.Is(err, unix.EAGAIN) {
				break
			}
			// A program that does not take the lock changed the number of rules.
		}
		return err
	})
	if err != nil {
		err = explain(family, name, err)
	}
	return deleted, err
}

// Names of the socket options that change a table: IPT_SO_SET_REPLACE and
// IPT_SO_SET_ADD_COUNTERS, which are the same for IPv6.
const (
	optionReplace     = 64
	optionAddCounters = 65
)

// counterSize is that of struct xt_counters: packets and bytes.
const counterSize = 16

func replace(family iptables.Family, name string, doomed Filter) (deleted int, err error) {
	h, err := info(family, name)
	if err != nil {
		return 0, err
	}
	// The kernel needs the whole table at once. There is only one copy of it.
	w, err := openWindow(family, name, h, math.MaxInt)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	blob, _, err := w.from(0)
	if err != nil {
		return 0, err
	}
	l := layoutOf(family)
	t, offsets, err := parseAt(family, name, h, l.entries(blob), doomed)
	if err != nil {
		return 0, err
	}
	gone := map[int]bool{}
	for i := range t.Chains {
		for _, at := range offsets[i][:len(t.Chains[i].Rules)] {
			gone[at] = true
		}
	}
	if len(gone) == 0 {
		return 0, nil
	}
	after, kept, err := without(l, h, blob, gone)
	if err != nil {
		return 0, err
	}
	fd, level, err := optionSocket(family)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	former, err := after.commit(fd, level, name, h.numEntries, w.buffer)
	if err != nil {
		return 0, err
	}
	// The counters of the new table start at 0. Add the counts at the time of the
	// change.
	counters := make([]byte, entriesHeader, entriesHeader+counterSize*len(kept))
	copy(counters, name)
	binary.NativeEndian.PutUint32(counters[nameSize:], uint32(len(kept)))
	for _, i := range kept {
		counters = append(counters, former[counterSize*i:counterSize*(i+1)]...)
	}
	if err := setsockopt(fd, level, optionAddCounters, counters); err != nil {
		return len(gone), fmt.Errorf("deleted the rules, but could not restore the packet counters of the other rules, which now start at 0: %w", err)
	}
	return len(gone), nil
}

// edited is the new table.
type edited struct {
	header
	blob []byte
}

// without returns the table without the entries at some offsets, in the same memory.
// kept are the numbers of the entries that stay.
func without(l layout, h header, blob []byte, gone map[int]bool) (after edited, kept []int, err error) {
	var starts []int // of all entries
	for e, err := range l.entries(blob) {
		if err != nil {
			return after, nil, err
		}
		starts = append(starts, e.at)
	}
	if uint32(len(starts)) != h.numEntries {
		return after, nil, fmt.Errorf("the table has %d entries, but the kernel says %d", len(starts), h.numEntries)
	}
	after.header, after.blob = h, blob[:0]
	// moved[i] is the new offset of entry i, or of the next entry that stays: a jump
	// to a deleted rule goes to the next rule.
	moved := make([]uint32, len(starts))
	for i, at := range starts {
		moved[i] = uint32(len(after.blob))
		end := len(blob)
		if i+1 < len(starts) {
			end = starts[i+1]
		}
		if !gone[at] {
			kept = append(kept, i)
			after.blob = append(after.blob, blob[at:end]...)
		}
	}
	newOffset := func(old uint32) (uint32, error) {
		i, found := slices.BinarySearch(starts, int(old))
		if !found {
			return 0, fmt.Errorf("no entry begins at %d", old)
		}
		return moved[i], nil
	}
	for hook := range numHooks {
		if h.validHooks&(1<<hook) == 0 {
			continue
		}
		for _, at := range []*uint32{&after.hookEntry[hook], &after.underflow[hook]} {
			if *at, err = newOffset(*at); err != nil {
				return after, nil, err
			}
		}
	}
	for _, i := range kept {
		b := after.blob[moved[i]:]
		target := int(binary.NativeEndian.Uint16(b[l.target:]))
		if verdict := b[target+extensionHeader:]; isStandard(b[target:]) && int32(binary.NativeEndian.Uint32(verdict)) >= 0 {
			to, err := newOffset(binary.NativeEndian.Uint32(verdict))
			if err != nil {
				return after, nil, err
			}
			binary.NativeEndian.PutUint32(verdict, to)
		}
	}
	after.numEntries, after.size = uint32(len(kept)), uint32(len(after.blob))
	return after, kept, nil
}

// isStandard reports whether a target is the standard target: a verdict or a jump.
func isStandard(target []byte) bool { return cString(target[2:2+extensionNameLen]) == "" }

// replaceHeader is the size of struct ipt_replace before the entries.
const replaceHeader = nameSize + 4*(1+1+1+numHooks+numHooks+1) + 8

// commit replaces the table in the kernel and returns the counters of the former
// entries. The error EAGAIN means that their number was not former. The entries are in
// the buffer. It has room for the header, since at least one entry was deleted.
func (e edited) commit(fd, level int, name string, former uint32, buffer []byte) ([]byte, error) {
	counters := make([]byte, counterSize*former)
	var pins runtime.Pinner
	defer pins.Unpin()
	pins.Pin(&counters[0])
	copy(buffer[replaceHeader:], e.blob)
	b := buffer[:nameSize]
	clear(b)
	copy(b, name)
	words := append([]uint32{e.validHooks, e.numEntries, e.size}, e.hookEntry[:]...)
	for _, w := range append(append(words, e.underflow[:]...), former) {
		b = binary.NativeEndian.AppendUint32(b, w)
	}
	b = binary.NativeEndian.AppendUint64(b, uint64(uintptr(unsafe.Pointer(&counters[0]))))
	err := setsockopt(fd, level, optionReplace, buffer[:len(b)+len(e.blob)])
	return counters, err
}

func setsockopt(fd, level, name int, buf []byte) error {
	_, _, errno := unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name),
		uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}
