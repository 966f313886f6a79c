// Package kernel answers queries in the kernel: a program at tc ingress of pods'
// devices gives the answers that the cache has published, before netfilter sees
// the query. The cache stays the authority: it publishes and withdraws records,
// and the program answers only while the gate is open.
package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// A Program is the loaded program with its maps. It is attached to no device yet.
type Program struct {
	// Table is what the program answers from.
	Table *Table

	collection *ebpf.Collection
	control    []byte
	mapped     [][]byte
}

// The memory of the table, by its number of units: a bucket to 16 units, since a
// typical record takes 3 to 4 of them and buckets should be half full.
const unitsPerBucket = 16

// DefaultSize is the default memory of the table in bytes, enough for 14,000
// typical answers.
const DefaultSize = 4 << 20

// Load loads the program with a table of about size bytes: the largest power of two
// that is not larger, since the kernel rounds so.
func Load(size int) (*Program, error) {
	units := uint32(1)
	for int(units)*2*unitSize <= size {
		units *= 2
	}
	if units/segments < 2*maxUnits {
		return nil, fmt.Errorf("a table of %d bytes is too small: at least %d are needed", size, 2*maxUnits*segments*unitSize)
	}
	spec, err := loadAnswer()
	if err != nil {
		return nil, fmt.Errorf("read the kernel program: %w", err)
	}
	spec.Maps["units"].MaxEntries = units
	spec.Maps["buckets"].MaxEntries = units / unitsPerBucket
	collection, err := ebpf.NewCollection(spec)
	if err != nil {
		return nil, fmt.Errorf("load the kernel program: %w", err)
	}
	p := &Program{collection: collection}
	if err := p.mapTable(units); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

func (p *Program) mapTable(units uint32) (err error) {
	mapped := map[string][]byte{"control": nil, "buckets": nil, "units": nil}
	for name := range mapped {
		m := p.collection.Maps[name]
		size := int(m.ValueSize()) * int(m.MaxEntries())
		page := unix.Getpagesize()
		size = (size + page - 1) / page * page
		mapped[name], err = unix.Mmap(m.FD(), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			return fmt.Errorf("map the kernel program's table %s: %w", name, err)
		}
		p.mapped = append(p.mapped, mapped[name])
	}
	p.control = mapped["control"]
	buckets := units / unitsPerBucket
	seed := rand.Uint64()
	binary.LittleEndian.PutUint32(p.control[12:], buckets-1)
	binary.LittleEndian.PutUint64(p.control[16:], seed)
	p.Table = newTable(seed, mapped["buckets"][:buckets*bucketSize], mapped["units"][:units*unitSize], awaitRuns)
	return nil
}

// membarrierGlobal is MEMBARRIER_CMD_GLOBAL of linux/membarrier.h.
const membarrierGlobal = 1

// awaitRuns returns when all runs of programs that have begun have ended: tc
// programs run within RCU read sections, for which this call waits (membarrier(2)).
func awaitRuns() error {
	if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, membarrierGlobal, 0, 0); errno != 0 {
		// Kernels with nohz_full have no such call. No run takes a second.
		time.Sleep(time.Second)
	}
	return nil
}

// Listen has the program answer queries to the address and port from the records of
// the group.
func (p *Program) Listen(addr netip.AddrPort, group uint8) error {
	if group > MaxListeners {
		return fmt.Errorf("group %d of listen addresses: at most %d", group, MaxListeners)
	}
	return p.collection.Maps["listeners"].Put(listenerKey(addr), uint32(group))
}

// Ignore has the program pass on queries to the address and port.
func (p *Program) Ignore(addr netip.AddrPort) error {
	err := p.collection.Maps["listeners"].Delete(listenerKey(addr))
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	return err
}

func listenerKey(addr netip.AddrPort) (key [24]byte) {
	ip := addr.Addr().As16()
	copy(key[:], ip[:])
	binary.BigEndian.PutUint16(key[16:], addr.Port())
	return key
}

// Open has the program answer until the time, in nanoseconds of CLOCK_MONOTONIC.
// Zero closes it.
func (p *Program) Open(until uint64) {
	atomic.StoreUint64((*uint64)(unsafe.Pointer(&p.control[0])), until)
}

// Now is the time of CLOCK_MONOTONIC in nanoseconds.
func Now() uint64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // cannot fail for this clock
	return uint64(ts.Nano())
}

// Count returns how many packets are counted at the index, summed over the CPUs.
func (p *Program) Count(index uint32) (n uint64, err error) {
	var perCPU []uint64
	if err := p.collection.Maps["counts"].Lookup(index, &perCPU); err != nil {
		return 0, err
	}
	for _, c := range perCPU {
		n += c
	}
	return n, nil
}

// Close unloads the program, once no device has it.
func (p *Program) Close() (err error) {
	for _, b := range p.mapped {
		err = errors.Join(err, unix.Munmap(b))
	}
	p.collection.Close()
	return err
}
