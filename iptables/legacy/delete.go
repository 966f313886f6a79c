package legacy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sort"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables"
)

// Delete deletes the rules of a table that doomed picks, and returns how many
// these were. It does what iptables-legacy does (libiptc): under the xtables lock
// it reads the table, and replaces it in one step by the same without them, with
// the counters of what stays. Where nothing is picked, nothing is done and no
// lock is needed.
//
// Without a lock file the error matches [ErrNoLock]; if another program holds the
// lock for a second, [iptables.ErrBusy].
func Delete(cfg Config, family iptables.Family, name string, doomed func(chain string, r Rule) bool) (deleted int, err error) {
	t, found, err := Read(cfg, family, name)
	if err != nil || !found || !t.has(doomed) {
		return 0, err
	}
	release, err := lock(lockWait)
	if err != nil {
		return 0, fmt.Errorf("delete from the legacy %s table %s: %w", family, name, err)
	}
	defer release()
	err = within(cfg, func() error {
		for range attempts {
			deleted, err = replace(family, name, doomed)
			if !errors.Is(err, unix.EAGAIN) {
				break
			}
			// Somebody who knows no lock has changed the number of its rules.
		}
		return err
	})
	if err != nil {
		err = explain(family, name, err)
	}
	return deleted, err
}

func (t *Table) has(doomed func(chain string, r Rule) bool) bool {
	return slices.ContainsFunc(t.Chains, func(c Chain) bool {
		return slices.ContainsFunc(c.Rules, func(r Rule) bool { return doomed(c.Name, r) })
	})
}

// Names of the socket options that change a table: IPT_SO_SET_REPLACE and
// IPT_SO_SET_ADD_COUNTERS, which are the same for IPv6.
const (
	optionReplace     = 64
	optionAddCounters = 65
)

// counterSize is that of struct xt_counters: packets and bytes.
const counterSize = 16

func replace(family iptables.Family, name string, doomed func(chain string, r Rule) bool) (int, error) {
	h, blob, err := dump(family, name)
	if err != nil {
		return 0, err
	}
	t, offsets, err := parseAt(family, name, h, blob)
	if err != nil {
		return 0, err
	}
	gone := map[int]bool{}
	for i, c := range t.Chains {
		for j, r := range c.Rules {
			if doomed(c.Name, r) {
				gone[offsets[i][j]] = true
			}
		}
	}
	if len(gone) == 0 {
		return 0, nil
	}
	after, kept, err := without(layoutOf(family), h, blob, gone)
	if err != nil {
		return 0, err
	}
	fd, level, err := optionSocket(family)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	former, err := after.commit(fd, level, name, h.numEntries)
	if err != nil {
		return 0, err
	}
	// The kernel has begun to count anew; what it had counted until the very
	// moment of the change is added again.
	const entries = nameSize + 8
	counters := make([]byte, entries, entries+counterSize*len(kept))
	copy(counters, name)
	binary.NativeEndian.PutUint32(counters[nameSize:], uint32(len(kept)))
	for _, i := range kept {
		counters = append(counters, former[counterSize*i:counterSize*(i+1)]...)
	}
	if err := setsockopt(fd, level, optionAddCounters, counters); err != nil {
		return len(gone), fmt.Errorf("the rules are deleted, the counters of the others begin at 0: %w", err)
	}
	return len(gone), nil
}

// edited is a table as it is to be.
type edited struct {
	header
	blob []byte
}

// without is the table without the entries at some offsets; kept are the numbers
// of the entries that stay.
func without(l layout, h header, blob []byte, gone map[int]bool) (after edited, kept []int, err error) {
	all, err := l.entries(blob)
	if err != nil {
		return after, nil, err
	}
	if uint32(len(all)) != h.numEntries {
		return after, nil, fmt.Errorf("%d entries, where the kernel counts %d", len(all), h.numEntries)
	}
	after.header = h
	// moved[i] is where the first entry that stays, from the ith on, comes to
	// stand: what led to a rule that goes leads to the next.
	moved := make([]uint32, len(all))
	for i, e := range all {
		moved[i] = uint32(len(after.blob))
		end := len(blob)
		if i+1 < len(all) {
			end = all[i+1].at
		}
		if !gone[e.at] {
			kept = append(kept, i)
			after.blob = append(after.blob, blob[e.at:end]...)
		}
	}
	newOffset := func(old uint32) (uint32, error) {
		i := sort.Search(len(all), func(i int) bool { return all[i].at >= int(old) })
		if i == len(all) || all[i].at != int(old) {
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

// isStandard reports whether a target is that of verdicts and jumps.
func isStandard(target []byte) bool { return cString(target[2:2+extensionNameLen]) == "" }

// commit replaces the table in the kernel and returns the counters that the former
// entries had. EAGAIN: these were not as many as is said.
func (e edited) commit(fd, level int, name string, former uint32) ([]byte, error) {
	counters := make([]byte, counterSize*former)
	var pins runtime.Pinner
	defer pins.Unpin()
	pins.Pin(&counters[0])
	// struct ipt_replace
	b := make([]byte, nameSize, nameSize+64+len(e.blob))
	copy(b, name)
	words := append([]uint32{e.validHooks, e.numEntries, e.size}, e.hookEntry[:]...)
	for _, w := range append(append(words, e.underflow[:]...), former) {
		b = binary.NativeEndian.AppendUint32(b, w)
	}
	b = binary.NativeEndian.AppendUint64(b, uint64(uintptr(unsafe.Pointer(&counters[0]))))
	err := setsockopt(fd, level, optionReplace, append(b, e.blob...))
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
