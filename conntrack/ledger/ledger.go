// Package ledger answers the question that untracked traffic leaves open: how
// many conntrack entries would there be now, had the kernel tracked it?
//
// A NOTRACK rule counts packets, and packets say nothing about entries: forty
// queries from forty source ports are forty entries for at least half a minute
// each, forty queries from one port are a single one. The ledger is told each
// query and each response of the DNS listeners, keeps for every flow what the
// kernel would have kept (who spoke first, whether both sides spoke, until when
// the entry lives) and applies the timeouts of nf_conntrack_proto_udp.c and
// nf_conntrack_proto_tcp.c to it.
//
// It is exact while the flows alive fit its memory (about 170,000 in the default
// 4 MB) and an estimate with a stated error above: it then keeps one half, one
// quarter, ... of all flows, chosen by a hash of the tuple, so that every packet
// of a chosen flow is seen and none of the others, and returns to more when the
// load has gone.
//
// What it cannot know: packets that never reached the listener, as those a full
// socket buffer dropped; TCP connections that carried no query, unless the kernel
// reports their end (FollowTCP); timeout policies
// that rules attach to single flows (nft ct timeout); and the kernel's own limit,
// nf_conntrack_max, at which it would have dropped packets instead.
package ledger

import (
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// DefaultMaxBytes is the memory of a ledger whose Config names none.
const DefaultMaxBytes = 4_000_000

// DefaultTCPIdle is how long CoreDNS keeps a silent TCP connection open
// (plugin timeouts, option idle).
const DefaultTCPIdle = 10 * time.Second

// Config sets up a Ledger; its zero value is a complete configuration.
type Config struct {
	// Timeouts are those of the kernel's table; a zero field is the kernel's
	// default. See ReadTimeouts.
	Timeouts Timeouts

	// TCPIdle is how long the listeners keep a silent TCP connection open
	// before they close it; 0 means DefaultTCPIdle. It can be set anew later.
	TCPIdle time.Duration

	// MaxBytes bounds the memory of the ledger; 0 means DefaultMaxBytes, and
	// values below 128 KiB are raised to it. Each flow alive takes 16 bytes, and
	// at most 70 in 100 places are used.
	MaxBytes int

	// Now is the clock, which must not go backwards; nil means the monotonic
	// clock of package time.
	Now func() time.Time
}

// Ledger holds the flows that would have been tracked. All its methods may be
// called from many goroutines at a time. Make one with New.
//
// While Run is at work, noting a packet takes no lock: it puts 16 bytes into a
// buffer of the processor it runs on. Else each packet goes into the table at
// once, under a lock.
type Ledger struct {
	now   func() time.Time // nil: time.Since(start)
	start time.Time
	keys  hashKeys

	// tick is the age of the ledger in milliseconds plus one, kept by Run; 0
	// while nobody keeps it.
	tick    atomic.Int64
	wake    chan struct{} // holds a token when Run is to look
	pool    sync.Pool     // of *buffer: one that this processor used last
	buffers []buffer
	nextBuf atomic.Uint32

	// unwanted has, for each shard, the sample bits that must be zero for a
	// flow to be kept: what shard.keep says, readable without the lock and
	// away from the lines that each packet writes.
	unwanted [shards]atomic.Uint32

	mu       sync.Mutex
	spare    []record // changes places with a buffer's
	shards   [shards]shard
	timeouts *timeouts
	times    Timeouts
	tcp      tcpEnds
}

// New returns an empty ledger and takes the whole of its memory at once, so that
// nothing is allocated afterwards.
func New(cfg Config) *Ledger {
	var keys hashKeys
	for i := range keys {
		keys[i] = rand.Uint64()
	}
	return newLedger(cfg, keys)
}

func newLedger(cfg Config, keys hashKeys) *Ledger {
	l := &Ledger{now: cfg.Now, start: time.Now(), keys: keys, wake: make(chan struct{}, 1)}
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

// SetTimeouts puts other timeouts in force. As in the kernel, where the sysctls
// are read at each packet, entries that exist keep their expiry until their next
// packet.
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

// changed computes what follows from the settings.
func (l *Ledger) changed() {
	next := l.times.inMilliseconds(l.tcp)
	if l.timeouts != nil {
		next.longest = max(next.longest, l.timeouts.longest)
	}
	l.timeouts = next
}

// Query notes that a query of the flow arrived now. Call Response of the result
// when its response leaves; where none does, do not.
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
	buffer *buffer // that of the query, so that the response stays behind it
	key    uint64
}

// Response notes that the response left now. It is the same as Ledger.Response
// at half the cost.
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

// Answered notes, for each of the flows, a query that arrived now and its
// response that left at once, as a cache hit does: the same as Query and Response
// at less than half the cost.
func (l *Ledger) Answered(flows ...Flow) {
	l.noteAll(flows, packetQuery|packetResponse)
}

// Close notes that a TCP connection was closed now in both directions: its entry
// goes to TIME_WAIT. Flows that are not TCP, or not known, are left alone. With
// FollowTCP the kernel says so itself.
func (l *Ledger) Close(f Flow) { l.end(f, packetFIN) }

// Reset notes that a TCP connection was reset now by either side: its entry goes
// to CLOSE. Otherwise it is like Close.
func (l *Ledger) Reset(f Flow) { l.end(f, packetRST) }

func (l *Ledger) end(f Flow, packets uint64) {
	key, ok := l.wanted(&f)
	if !ok || !class(key).isTCP() {
		return
	}
	// Behind the queries of this connection, whichever buffers they are in.
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drain()
	l.apply(record{key | packets, l.milliseconds()})
}

// wanted returns the hash and class of a flow, the packet bits clear, and whether
// the ledger keeps it.
func (l *Ledger) wanted(f *Flow) (key uint64, ok bool) {
	h, c, ok := l.keys.identify(f)
	return h&^stateMask | uint64(c), ok && sampleBits(h)&l.unwanted[shardOf(h)].Load() == 0
}

// apply puts what a record says into the table. The caller holds the lock.
func (l *Ledger) apply(r record) {
	l.shards[shardOf(r.key)].note(r.key&^stateMask, class(r.key)&classMask, r.at, packet(r.key)&packetMask, l.timeouts)
}

// milliseconds is the age of the ledger.
func (l *Ledger) milliseconds() int64 {
	if l.now == nil {
		return time.Since(l.start).Milliseconds()
	}
	return l.now().Sub(l.start).Milliseconds()
}
