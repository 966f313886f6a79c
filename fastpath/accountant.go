package fastpath

import (
	"cmp"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/conntrack/ledger"
)

// An Accountant counts the queries of a process, whichever way they are answered. Its
// methods may be called from several goroutines at once.
type Accountant struct {
	// Ledger gets the flows. It must be set before the first query.
	Ledger *ledger.Ledger
	// Untracked reports whether queries to the server are untracked, and Idle whether the
	// kernel would track nothing without us either. They must be set before the first
	// query.
	Untracked func(server netip.Addr) bool
	Idle      func() bool

	// OnHits gets the flows of the queries that a fast path has answered, in the kernel or
	// in this process; nil: nobody. It must be set before the first query, and keeps none
	// of them.
	OnHits func(flows []ledger.Flow, inKernel bool)

	arrived, answered, overTCP atomic.Uint64

	mu      sync.Mutex
	limit   int // of classes; 0: Classes
	indexes map[classOf]uint16
	classes []*account // nil: free
	wake    func()     // nil: nobody collects

	// collecting is held while counts are read. It is taken before mu.
	collecting sync.Mutex
	// seen are the hits that were counted at each index. The counter of an index goes on
	// when the index is used for another class.
	seen [Classes][4]uint64
}

// Begin counts a query that arrives at CoreDNS. End must follow.
func (a *Accountant) Begin(proto uint8) {
	a.arrived.Add(1)
	if proto == unix.IPPROTO_TCP {
		a.overTCP.Add(1)
	}
}

// End counts that a query is done with.
func (a *Accountant) End() { a.answered.Add(1) }

// Note records a query in the ledger. Response of the result is to be called when the
// response leaves.
func (a *Accountant) Note(client, server netip.AddrPort, proto uint8) ledger.Pending {
	if !a.Untracked(server.Addr()) || a.Idle() {
		return ledger.Pending{}
	}
	return a.Ledger.Query(ledger.Flow{Proto: proto, Client: client, Server: server})
}

// Flows records queries over UDP that the kernel has answered.
func (a *Accountant) Flows(flows []ledger.Flow) { a.record(flows, true) }

func (a *Accountant) record(flows []ledger.Flow, inKernel bool) {
	if a.OnHits != nil {
		a.OnHits(flows, inKernel)
	}
	if a.Idle() {
		return
	}
	n := 0
	for _, f := range flows {
		if a.Untracked(f.Server.Addr()) {
			flows[n] = f
			n++
		}
	}
	a.Ledger.Answered(flows[:n]...)
}

// Hits counts queries over UDP that a fast path in this process has answered, and records
// them as Flows does. It may change the order of the flows.
func (a *Accountant) Hits(flows []ledger.Flow) {
	n := uint64(len(flows))
	a.arrived.Add(n)
	a.answered.Add(n)
	a.record(flows, false)
}

// Arrived is the number of queries so far, over all loads of a Corefile.
func (a *Accountant) Arrived() uint64 { return a.arrived.Load() }

// Answered is the number of queries that are done with.
func (a *Accountant) Answered() uint64 { return a.answered.Load() }

// OverTCP is the number of queries that arrived over TCP.
func (a *Accountant) OverTCP() uint64 { return a.overTCP.Load() }

// Classes is the most classes by which a fast path counts.
const Classes = 512

// A Class is what the queries have in common that are counted together.
type Class struct {
	Listener netip.AddrPort
	Zone     string // as Block.Zone returns it
	Type     uint16
	Rcode    int
	DO       bool
	Denial   bool
	// Query and Reply are sizes in bytes without an OPT record, rounded.
	Query, Reply int
}

// Counters are the metrics of one class.
type Counters interface {
	// Add counts n queries. Their messages have an OPT record if edns is set.
	Add(n uint64, edns, ipv6 bool)
}

// classOf is a class of one announcer.
type classOf struct {
	announcer *Announcer
	Class
}

// account is what was counted in a class.
type account struct {
	of       classOf
	counters Counters  // nil before the first query
	retired  time.Time // when the announcer was closed; zero: it was not
}

// Sizes are rounded, so that the classes suffice, and rounded more when fewer than a quarter
// are left.
const (
	fineSize   = 16
	coarseSize = 256
)

// Limit sets the number of classes, at most Classes. It is called while there are none.
func (a *Accountant) Limit(classes int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.limit = classes
}

// class returns the index of the class, or false if there is none left.
func (a *Accountant) class(of *Announcer, c Class) (uint16, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.indexes == nil {
		a.indexes, a.classes = make(map[classOf]uint16), make([]*account, cmp.Or(a.limit, Classes))
	}
	for _, size := range [...]int{fineSize, coarseSize} {
		rounded := c
		rounded.Query, rounded.Reply = round(c.Query, size), round(c.Reply, size)
		key := classOf{of, rounded}
		if i, known := a.indexes[key]; known {
			return i, true
		}
		if size == fineSize && len(a.indexes) >= len(a.classes)-len(a.classes)/4 {
			continue
		}
		for i := range a.classes {
			if a.classes[i] == nil {
				a.classes[i], a.indexes[key] = &account{of: key}, uint16(i)
				return uint16(i), true
			}
		}
	}
	return 0, false
}

// round returns the middle of the range of sizes that n lies in.
func round(n, size int) int { return n/size*size + size/2 }

// announcer returns the announcer of a class, or nil.
func (a *Accountant) announcer(class uint16) *Announcer {
	a.mu.Lock()
	defer a.mu.Unlock()
	if int(class) >= len(a.classes) || a.classes[class] == nil {
		return nil
	}
	return a.classes[class].of.announcer
}

// retire frees the classes of an announcer that is closed, after the last query was
// counted.
func (a *Accountant) retire(of *Announcer) {
	a.mu.Lock()
	for _, c := range a.classes {
		if c != nil && c.of.announcer == of {
			c.retired = time.Now()
		}
	}
	wake := a.wake
	a.mu.Unlock()
	if wake != nil {
		wake()
	}
}

// OnRetire has wake called when Due may return another time. Nil ends that.
func (a *Accountant) OnRetire(wake func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.wake = wake
}

// Due returns when Collect can free classes of closed announcers, or zero if there are none.
// Without queries nothing else asks for a call.
func (a *Accountant) Due() (at time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range a.classes {
		if c == nil || c.retired.IsZero() {
			continue
		}
		if free := c.retired.Add(2 * lingers); at.IsZero() || free.Before(at) {
			at = free
		}
	}
	return at
}

// A Meter reads how many queries a fast path has answered in a class so far: without
// and with EDNS over IPv4, then over IPv6.
type Meter interface {
	Hits(class uint16) ([4]uint64, error)
}

// lingers is longer than a fast path may still be at a query with a record that was
// withdrawn.
const lingers = time.Second

// Collect counts the queries that a fast path has answered since the call before. It reads
// the meter and adds to metrics without the lock for which answers and withdrawals wait.
func (a *Accountant) Collect(m Meter) error {
	a.collecting.Lock()
	defer a.collecting.Unlock()
	a.mu.Lock()
	classes, over := slices.Clone(a.classes), [Classes]bool{}
	for i, c := range classes {
		over[i] = c != nil && !c.retired.IsZero() && time.Since(c.retired) > lingers
	}
	a.mu.Unlock()
	for i, c := range classes {
		if c == nil {
			continue
		}
		hits, err := m.Hits(uint16(i))
		if err != nil {
			return err
		}
		a.add(c, &a.seen[i], hits)
		if over[i] {
			a.free(i)
		}
	}
	return nil
}

func (a *Accountant) free(class int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.indexes, a.classes[class].of)
	a.classes[class] = nil
}

// Forget frees all classes. It is called when the fast path has ended and its last hits were
// collected: the next one counts from zero again.
func (a *Accountant) Forget() {
	a.collecting.Lock()
	defer a.collecting.Unlock()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.indexes, a.classes, a.seen = nil, nil, [Classes][4]uint64{}
}

func (a *Accountant) add(c *account, seen *[4]uint64, hits [4]uint64) {
	for v, n := range hits {
		more := n - seen[v]
		seen[v] = n
		if more == 0 {
			continue
		}
		if c.counters == nil {
			c.counters = c.of.announcer.block.Counters(c.of.Class)
		}
		c.counters.Add(more, v&1 != 0, v&2 != 0)
		a.arrived.Add(more)
		a.answered.Add(more)
	}
}
