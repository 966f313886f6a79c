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
// socket buffer dropped; TCP connections that carried no query; timeout policies
// that rules attach to single flows (nft ct timeout); and the kernel's own limit,
// nf_conntrack_max, at which it would have dropped packets instead.
package ledger

import (
	"math/rand/v2"
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
	// before they close it; 0 means DefaultTCPIdle.
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
type Ledger struct {
	now      func() time.Time // nil: time.Since(start)
	start    time.Time
	tcpIdle  time.Duration
	timeouts atomic.Pointer[timeouts]
	keys     hashKeys

	// unwanted has, for each shard, the sample bits that must be zero for a
	// flow to be kept: what shard.keep says, readable without the lock and
	// away from the lines that each packet writes.
	unwanted [shards]atomic.Uint32
	shards   [shards]shard
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
	l := &Ledger{now: cfg.Now, start: time.Now(), tcpIdle: cfg.TCPIdle, keys: keys}
	if l.now != nil {
		l.start = l.now()
	}
	if l.tcpIdle <= 0 {
		l.tcpIdle = DefaultTCPIdle
	}
	l.SetTimeouts(cfg.Timeouts)

	each := slotsPerShard(cfg.MaxBytes)
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
	next := t.inMilliseconds(l.tcpIdle)
	if last := l.timeouts.Load(); last != nil {
		next.longest = max(next.longest, last.longest)
	}
	l.timeouts.Store(next)
}

// Query notes that a query of the flow arrived now.
func (l *Ledger) Query(f Flow) {
	if h, class, ok := l.wanted(&f); ok {
		l.note(h, class, l.milliseconds(), packetQuery)
	}
}

// Response notes that the response to a query of the flow left now.
func (l *Ledger) Response(f Flow) {
	if h, class, ok := l.wanted(&f); ok {
		l.note(h, class, l.milliseconds(), packetResponse)
	}
}

// Answered notes, for each of the flows, a query that arrived now and its
// response that left at once, as a cache hit does. It is the same as Query and
// Response at about half the cost, and reads the clock once for all the flows.
func (l *Ledger) Answered(flows ...Flow) {
	now := int64(-1)
	for i := range flows {
		h, class, ok := l.wanted(&flows[i])
		if !ok {
			continue
		}
		if now < 0 {
			now = l.milliseconds()
		}
		l.note(h, class, now, packetQuery|packetResponse)
	}
}

// Close notes that a TCP connection was closed now in both directions: its entry
// goes to TIME_WAIT. Without this call the ledger assumes a time; see the comment
// of rules.go. Flows that are not TCP, or not known, are left alone.
func (l *Ledger) Close(f Flow) {
	if h, class, ok := l.wanted(&f); ok && class.isTCP() {
		l.note(h, class, l.milliseconds(), packetFIN)
	}
}

// Reset notes that a TCP connection was reset now by either side: its entry goes
// to CLOSE. Flows that are not TCP, or not known, are left alone.
func (l *Ledger) Reset(f Flow) {
	if h, class, ok := l.wanted(&f); ok && class.isTCP() {
		l.note(h, class, l.milliseconds(), packetRST)
	}
}

// wanted returns the hash and class of a flow, and whether the ledger keeps it.
func (l *Ledger) wanted(f *Flow) (h uint64, c class, ok bool) {
	h, c, ok = l.keys.identify(f)
	return h, c, ok && sampleBits(h)&l.unwanted[shardOf(h)].Load() == 0
}

func (l *Ledger) note(h uint64, class class, now int64, p packet) {
	s := &l.shards[shardOf(h)]
	t := l.timeouts.Load()
	s.mu.Lock()
	s.note(h, class, now, p, t)
	s.mu.Unlock()
}

// milliseconds is the age of the ledger.
func (l *Ledger) milliseconds() int64 {
	if l.now == nil {
		return time.Since(l.start).Milliseconds()
	}
	return l.now().Sub(l.start).Milliseconds()
}
