// Package ledger counts the conntrack entries that untracked traffic would have: how many
// entries would there be now if the kernel tracked it?
//
// A NOTRACK rule counts packets, and packets say nothing about entries. Forty queries from
// forty source ports are forty entries, each for at least half a minute. Forty queries
// from one port are one entry. The ledger gets each query and each response of the DNS
// listeners. For every flow it keeps the state that the kernel would keep: which side sent
// first, whether both sides sent, and when the entry expires. It applies the timeouts of
// nf_conntrack_proto_udp.c and nf_conntrack_proto_tcp.c.
//
// The number is exact while all live flows fit into the memory (about 170,000 in the
// default 4 MB). Above that it is an estimate with a stated error: the ledger keeps one
// half, one quarter, ... of all flows, chosen by a hash of the tuple, so that it sees
// every packet of a chosen flow and no packet of the others. It keeps more flows again
// when there is room.
//
// The ledger does not know:
//
//   - packets that did not reach the listener, for example because its socket buffer was
//     full;
//   - TCP connections without a query, unless the kernel reports their end (FollowTCP);
//   - timeout policies that rules attach to single flows (nft ct timeout);
//   - the kernel's limit, nf_conntrack_max, at which it would have dropped packets.
package ledger

import (
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// DefaultMaxBytes is the memory of a ledger if Config.MaxBytes is 0.
const DefaultMaxBytes = 4_000_000

// DefaultTCPIdle is how long CoreDNS keeps a silent TCP connection open
// (plugin timeouts, option idle).
const DefaultTCPIdle = 10 * time.Second

// Config configures a Ledger. The zero value is a complete configuration.
type Config struct {
	// Timeouts are the timeouts of the kernel's table. A zero field is the kernel's
	// default. See ReadTimeouts.
	Timeouts Timeouts

	// TCPIdle is how long the listeners keep a silent TCP connection open; 0 means
	// DefaultTCPIdle. SetTCPIdle changes it.
	TCPIdle time.Duration

	// MaxBytes is the memory of the ledger; 0 means DefaultMaxBytes, and values below
	// 128 KiB mean 128 KiB. Each live flow takes 16 bytes, and at most 70 in 100 places
	// are used.
	MaxBytes int

	// Now is the clock. It must not go backwards. nil means the monotonic clock of
	// package time.
	Now func() time.Time
}

// Ledger holds the flows that would have been tracked. New makes one. Its methods may be
// called from many goroutines at once.
//
// Each packet goes into the table at once, under a lock. At a high rate and while Run runs,
// noting a packet takes no lock: it puts 16 bytes into a buffer of its processor.
type Ledger struct {
	now   func() time.Time // nil: time.Since(start)
	start time.Time
	keys  atomic.Pointer[hashKeys]

	// tick is the age of the ledger in milliseconds plus one, which Run updates; 0 while
	// Run rests or does not run.
	tick    atomic.Int64
	wake    chan struct{} // holds a token if Run is to go to work, or to drain the buffers
	pool    sync.Pool     // of *buffer: the one that this processor used last
	buffers []buffer
	nextBuf atomic.Uint32

	// unwanted has, for each shard, the sample bits that must be zero in a flow that is
	// kept. It is read without the lock, and is not in the cache lines that each packet
	// writes.
	unwanted [shards]atomic.Uint32

	mu    sync.Mutex
	spare []record // swapped with the records of a buffer

	// noted is how many packets came into the table: while Run rests, in the window that
	// ends at windowEnd, in milliseconds of the ledger's age; otherwise since Run's last
	// round.
	noted     int
	windowEnd int64

	shards   [shards]shard
	timeouts *timeouts
	times    Timeouts
	tcp      tcpEnds
}

// New returns an empty ledger. It allocates all memory at once: nothing is allocated later.
func New(cfg Config) *Ledger {
	var keys hashKeys
	for i := range keys {
		keys[i] = rand.Uint64()
	}
	return newLedger(cfg, keys)
}

func newLedger(cfg Config, keys hashKeys) *Ledger {
	l := &Ledger{now: cfg.Now, start: time.Now(), wake: make(chan struct{}, 1)}
	l.keys.Store(&keys)
	if l.now != nil {
		l.start = l.now()
	}
	l.times, l.tcp.idle = cfg.Timeouts, cfg.TCPIdle
	l.changed()

	maxBytes := cfg.MaxBytes
	if maxBytes <= 0 {
		maxBytes = DefaultMaxBytes
	}
	maxBytes = max(maxBytes, 128<<10)
	maxBytes -= l.makeBuffers(runtime.GOMAXPROCS(0), maxBytes/8)
	each := slotsPerShard(maxBytes)
	slots := make([]slot, shards*each)
	for i := range l.shards {
		s := &l.shards[i]
		s.slots, s.unwanted, s.tidy = slots[i*each:(i+1)*each:(i+1)*each], &l.unwanted[i], tidyEvery
	}
	return l
}

// SetTimeouts changes the timeouts. An existing entry keeps its expiry until its next
// packet, as in the kernel, which reads the sysctls at each packet.
func (l *Ledger) SetTimeouts(t Timeouts) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drain()
	l.times = t
	l.changed()
}

// SetTCPIdle changes Config.TCPIdle.
func (l *Ledger) SetTCPIdle(idle time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drain()
	l.tcp.idle = idle
	l.changed()
}

// changed computes the timeouts of the slots from the settings.
func (l *Ledger) changed() {
	next := l.times.inMilliseconds(l.tcp)
	if l.timeouts != nil {
		next.longest = max(next.longest, l.timeouts.longest)
	}
	l.timeouts = next
}

// Query notes that a query of the flow arrived now. Call Response of the result when its
// response leaves. If there is no response, do not call it.
func (l *Ledger) Query(f Flow) Pending {
	key, ok := l.wanted(&f)
	if !ok {
		return Pending{}
	}
	return Pending{ledger: l, key: key, buffer: l.note(nil, key|packetQuery)}
}

// Pending is a query that waits for its response.
type Pending struct {
	ledger *Ledger
	buffer *buffer // the buffer of the query, so that the response comes after it
	key    uint64
}

// Response notes that the response left now. It does the same as Ledger.Response, in half
// the time.
func (p Pending) Response() {
	if p.ledger != nil {
		p.ledger.note(p.buffer, p.key|packetResponse)
	}
}

// Response notes that a response to a query of the flow left now.
func (l *Ledger) Response(f Flow) {
	if key, ok := l.wanted(&f); ok {
		l.note(nil, key|packetResponse)
	}
}

// Answered notes a query that arrived now and its response that left at once, for each of
// the flows. It is for cache hits: it does the same as Query and Response, in less than
// half the time.
func (l *Ledger) Answered(flows ...Flow) {
	l.noteAll(flows, packetQuery|packetResponse)
}

// Close notes that a TCP connection was closed now in both directions: its entry goes to
// TIME_WAIT. Flows that are not TCP, or not known, do not change. With FollowTCP the
// kernel reports this.
func (l *Ledger) Close(f Flow) { l.end(f, packetFIN) }

// Reset notes that either side reset a TCP connection now: its entry goes to CLOSE.
// Otherwise it is like Close.
func (l *Ledger) Reset(f Flow) { l.end(f, packetRST) }

func (l *Ledger) end(f Flow, packets uint64) {
	key, ok := l.wanted(&f)
	if !ok || !class(key).isTCP() {
		return
	}
	// After the queries of this connection, whichever buffers they are in.
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drain()
	l.apply(record{key | packets, l.milliseconds()})
}

// wanted returns the hash and class of a flow, with clear packet bits, and reports whether
// the ledger keeps the flow.
func (l *Ledger) wanted(f *Flow) (key uint64, ok bool) {
	h, c, ok := l.keys.Load().identify(f)
	return h&^stateMask | uint64(c), ok && sampleBits(h)&l.unwanted[shardOf(h)].Load() == 0
}

// apply enters a record into the table. The caller holds the lock.
func (l *Ledger) apply(r record) {
	l.shards[shardOf(r.key)].note(r.key&^stateMask, class(r.key)&classMask, r.at, packet(r.key)&packetMask, l.timeouts)
}

// milliseconds returns the age of the ledger.
func (l *Ledger) milliseconds() int64 {
	if l.now == nil {
		return time.Since(l.start).Milliseconds()
	}
	return l.now().Sub(l.start).Milliseconds()
}
