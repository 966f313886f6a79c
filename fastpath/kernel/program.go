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
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
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

// Offsets in struct control.
const (
	atPorts     = 16 // of listeners
	atOpenUntil = 24 // the listeners' times
)

// DefaultSize is the default memory of the table in bytes, enough for 14,000
// typical answers.
const DefaultSize = 4 << 20

// Load loads the program with a table of about size bytes: the largest power of two
// that is not larger, since the kernel rounds so.
func Load(size int) (*Program, error) {
	spec, err := loadAnswer()
	if err != nil {
		return nil, fmt.Errorf("read the kernel program: %w", err)
	}
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return nil, err
	}
	units, err := resize(spec, size, cpus)
	if err != nil {
		return nil, err
	}
	locked := liftLockedMemory()
	collection, err := ebpf.NewCollection(spec)
	if err != nil {
		return nil, explain(err, locked)
	}
	p := &Program{collection: collection}
	if err := p.mapTable(units); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// perCPUMemory is the most that the counters of classes and the scratches take in bytes, over
// all CPUs, unless the fewest classes need more.
const (
	perCPUMemory = 900_000
	fewClasses   = 32
)

// resize sets the sizes of the tables, and returns the number of units.
func resize(spec *ebpf.CollectionSpec, size, cpus int) (units uint32, err error) {
	units = 1
	for int(units)*2*unitSize <= size {
		units *= 2
	}
	if units/segments < 2*maxUnits {
		return 0, fmt.Errorf("a table of %d bytes is too small: at least %d are needed", size, 2*maxUnits*segments*unitSize)
	}
	scratches := cpus * int(spec.Maps["scratches"].ValueSize)
	classes := max(fewClasses, min(Classes, (perCPUMemory-scratches)/(8*variants*cpus)))
	spec.Maps["units"].MaxEntries = units
	spec.Maps["buckets"].MaxEntries = units / unitsPerBucket
	spec.Maps["counts"].MaxEntries = firstClass + uint32(classes)*variants
	return units, nil
}

// capBPF is CAP_BPF of linux/capability.h.
const capBPF = 39

// liftLockedMemory lifts the limit of locked memory, as which kernels before 5.11 count
// tables. A container without CAP_SYS_RESOURCE may not do that for itself.
func liftLockedMemory() error {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return err
	}
	var major, minor int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(name.Release[:]), "%d.%d", &major, &minor); err != nil || major > 5 || major == 5 && minor >= 11 {
		return err
	}
	return unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY})
}

// explain says why the program was not loaded. locked is why the limit of locked memory
// could not be lifted. The library takes a system call that seccomp refuses for a lack of
// it.
func explain(err, locked error) error {
	denied := errors.Is(err, unix.EPERM)
	switch have, known := capabilities(); {
	case denied && known && have&(1<<capBPF|1<<unix.CAP_SYS_ADMIN) == 0:
		return errors.New("load the kernel program: the process lacks CAP_BPF; add BPF to the container's capabilities")
	case denied && known && have&(1<<unix.CAP_NET_ADMIN) == 0:
		return errors.New("load the kernel program: the process lacks CAP_NET_ADMIN; add NET_ADMIN to the container's capabilities")
	case denied && locked != nil:
		return errors.New("load the kernel program: before Linux 5.11 its tables count as locked memory, and the limit is too low; raise it for the container runtime (LimitMEMLOCK=infinity in its unit)")
	case denied:
		return errors.New("load the kernel program: the system call bpf is refused although the process has CAP_BPF, as by a seccomp profile; allow bpf in the profile")
	case errors.Is(err, unix.ENOMEM):
		return errors.New("load the kernel program: its tables do not fit into the memory limit of the container; raise the limit, or give kernel a smaller SIZE")
	}
	return fmt.Errorf("load the kernel program: %w", err)
}

// capabilities returns the effective capabilities of this thread.
func capabilities() (have uint64, known bool) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return 0, false
	}
	return uint64(data[1].Effective)<<32 | uint64(data[0].Effective), true
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
	binary.LittleEndian.PutUint64(p.control, seed)
	binary.LittleEndian.PutUint32(p.control[8:], buckets-1)
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

// BPF returns the program, to be attached at tc ingress of devices.
func (p *Program) BPF() *ebpf.Program { return p.collection.Programs["trackless_answer"] }

// Listen has the program answer queries to the address and port from the records of
// the listener, while it is open. Size is the largest UDP size that a client may
// advertise there.
func (p *Program) Listen(addr netip.AddrPort, listener uint8, size uint16) error {
	if listener >= Listeners {
		return fmt.Errorf("%s is one listen address too many for the kernel program: it knows %d", addr, Listeners)
	}
	if err := p.collection.Maps["listeners"].Put(listenerKey(addr), uint32(size)<<16|uint32(listener)); err != nil {
		return err
	}
	atomic.OrUint64((*uint64)(unsafe.Pointer(&p.control[atPorts])), 1<<(addr.Port()%64))
	return nil
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

// Bridge has the program answer frames from a bridge's port, by the index of its device, that
// are to the hardware address of the bridge. Without an address it forgets the port.
func (p *Program) Bridge(port int, mac net.HardwareAddr) error {
	bridges := p.collection.Maps["bridges"]
	if len(mac) != 6 {
		if err := bridges.Delete(uint32(port)); !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
		return nil
	}
	var value [8]byte
	copy(value[:], mac)
	return bridges.Put(uint32(port), value)
}

// Open has the program answer at the listener until the time. One that has passed
// closes it.
func (p *Program) Open(listener uint8, until time.Time) {
	var at uint64
	if left := time.Until(until); left > 0 {
		at = now() + uint64(left)
	}
	atomic.StoreUint64((*uint64)(unsafe.Pointer(&p.control[atOpenUntil+8*int(listener)])), at)
}

// now is the time of CLOCK_MONOTONIC in nanoseconds.
func now() uint64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // cannot fail for this clock
	return uint64(ts.Nano())
}

// base is one moment on both clocks, so that a time is always the same one on ours. That
// clock is read first: a delay between the two lets answers expire earlier, not later.
var base = struct {
	at   uint64
	time time.Time
}{now(), time.Now()}

// monotonic is a time on that clock.
func monotonic(t time.Time) uint64 { return base.at + uint64(t.Sub(base.time)) }

// Classes is the number of classes: fewer where there are many CPUs, each of which counts.
func (p *Program) Classes() int {
	return int(p.collection.Maps["counts"].MaxEntries()-firstClass) / variants
}

// Hits implements [fastpath.Meter].
func (p *Program) Hits(class uint16) (n [variants]uint64, err error) {
	for v := range n {
		if n[v], err = p.count(firstClass + uint32(class)*variants + uint32(v)); err != nil {
			return n, err
		}
	}
	return n, nil
}

// Passes are the reasons for which a query to a listen address was passed on to the
// server, as labels of a metric, in the order of bpf/answer.c.
var Passes = [...]string{"other", "miss", "closed", "header", "name", "edns", "class", "stale", "large", "fragment", "failed"}

// Passed returns how many queries were passed on for the reason at the index of Passes.
func (p *Program) Passed(reason int) (uint64, error) { return p.count(uint32(reason)) }

// Unreported is the number of hits whose flows were lost.
func (p *Program) Unreported() (uint64, error) { return p.count(uint32(len(Passes))) }

// count returns the count at the index, summed over the CPUs.
func (p *Program) count(index uint32) (n uint64, err error) {
	var perCPU []uint64
	if err := p.collection.Maps["counts"].Lookup(index, &perCPU); err != nil {
		return 0, fmt.Errorf("read the kernel program's count %d: %w", index, err)
	}
	for _, c := range perCPU {
		n += c
	}
	return n, nil
}

// A Flow is the transport addresses of a query that was answered.
type Flow struct{ Client, Server netip.AddrPort }

// Flows reads the flows of hits.
func (p *Program) Flows() (*Flows, error) {
	r, err := ringbuf.NewReader(p.collection.Maps["flows"])
	if err != nil {
		return nil, fmt.Errorf("read the kernel program's flows: %w", err)
	}
	return &Flows{r: r}, nil
}

// ErrWoken means that Wake was called.
var ErrWoken = ringbuf.ErrFlushed

// Flows are the flows of hits. It is used by one goroutine at a time, except for Close and
// Wake.
type Flows struct {
	r    *ringbuf.Reader
	rec  ringbuf.Record
	held bool // rec is a flow that Each has not told
}

// Wait returns when there are flows, or an error after Close, ErrWoken after Wake, or
// os.ErrDeadlineExceeded at the time until. Zero: it waits without end.
func (f *Flows) Wait(until time.Time) error {
	f.r.SetDeadline(until)
	err := f.r.ReadInto(&f.rec)
	f.held = err == nil
	return err
}

// Each calls fn for each flow that is there, and for the one for which Wait waited.
func (f *Flows) Each(fn func(Flow)) error {
	if f.held {
		f.held = false
		fn(flowOf(f.rec.RawSample))
	}
	f.r.SetDeadline(time.Unix(1, 0))
	for {
		switch err := f.r.ReadInto(&f.rec); {
		case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, ErrWoken):
			return nil
		case err != nil:
			return err
		}
		fn(flowOf(f.rec.RawSample))
	}
}

// Wake ends one Wait, or one Each.
func (f *Flows) Wake() { _ = f.r.Flush() } // it fails only after Close

// Close ends Wait.
func (f *Flows) Close() error { return f.r.Close() }

// flowOf reads a struct flow of bpf/answer.c.
func flowOf(b []byte) Flow {
	client, server := netip.AddrFrom16([16]byte(b)).Unmap(), netip.AddrFrom16([16]byte(b[16:])).Unmap()
	return Flow{
		Client: netip.AddrPortFrom(client, binary.BigEndian.Uint16(b[32:])),
		Server: netip.AddrPortFrom(server, binary.BigEndian.Uint16(b[34:])),
	}
}

// Close unloads the program, once no device has it.
func (p *Program) Close() (err error) {
	for _, b := range p.mapped {
		err = errors.Join(err, unix.Munmap(b))
	}
	p.collection.Close()
	return err
}
