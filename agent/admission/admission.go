// Package admission bounds the queries that are here at once, and follows the CPU
// limit of this process.
package admission

import (
	"errors"
	"hash/maphash"
	"net/netip"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
)

// Queries bounds the queries that are here at once. CoreDNS starts a goroutine
// for every packet that it reads, and each holds memory until it ends: without a
// bound one client that asks for names that nobody has asked for before has the
// kernel kill us, and all others wait behind it. The zero value is ready.
//
// A query is either busy, or it is a miss that waits for an upstream. Some of the busy
// ones only wait, in the cache, for the answer to another. No client may have all of
// either. Nothing here locks: a lock for which hundreds of goroutines
// wait is handed from one to the next at the pace of the scheduler.
type Queries struct {
	busy, misses shares
	waiting      shares        // of the busy ones, those that wait for another query
	shed         atomic.Uint64 // queries that were dropped
	refused      atomic.Uint64 // misses that were

	watching, late atomic.Bool // goroutines are waited for; they run late

	limit throttling

	// Crowded is called, if it is set, by a query for which many others wait: while
	// they do, goroutines that wait for a timer run as late as they.
	Crowded func()

	// begun are the misses, and the queries that wait, that began to lately: in two
	// windows of the time beginWindow, the present one by the count of windows. Windows
	// change while goroutines are waited for.
	begun   [2]shares
	windows atomic.Uint32

	// Misses are counted in two generations. The former are those that have been
	// under way for at least the time slow; when none of them is left the present
	// ones become the former.
	generations [2]atomic.Int32
	former      atomic.Int32 // 0 or 1
	ticking     atomic.Bool
}

// slow is how long a miss has taken, or at most twice as long, when it is looked for
// whether its Service is gone. The kernel announces most changes of rules, but not
// those of legacy iptables.
const slow = 125 * time.Millisecond

const (
	// queryMemory is what a query costs while it is under way: a goroutine with its
	// stack, two messages, the writers of the plugins, and for a miss a socket.
	queryMemory = 64 << 10

	// The bounds of the number of queries under way, whatever the memory limit.
	minUnderWay = 256
	maxUnderWay = 16384

	// clientShare is the part of all misses under way, and of all busy queries, that
	// one client may have. Busy queries may be twice as many as misses: they have no
	// socket.
	clientShare = 2
	busyShare   = 2

	// clientHere is how many queries one client may have here while goroutines run
	// late: so few that the others need not wait for them. Without that they may all
	// wait for the answer to one of them. What has waited for some time, for an upstream
	// or for another query, needs no processor, and does not count: an upstream that is
	// away makes no client greedy.
	clientHere = 64

	// clientThrottled is the same while a CPU limit is used up. All goroutines run late
	// then, and what waits is answered late: that so many wait for long has another
	// consequence, see package iptables.
	clientThrottled = 1024

	// latePause is a time to sleep, and lateBy by how much more the sleep takes when
	// goroutines run late.
	latePause = 5 * time.Millisecond
	lateBy    = 3 * time.Millisecond
	// crowd is at how many busy queries, and at each multiple of that, crowded is called.
	crowd = 64

	// lateFor is how long after that they count as late.
	lateFor = 100 * time.Millisecond

	// beginWindow is the least time for which a query counts as one that began to wait
	// lately: with clientHere, 640 of a client may begin in a second.
	beginWindow = 50 * time.Millisecond
)

var (
	errTooManyMisses = errors.New("more queries wait for an upstream than the memory limit allows: it is slow or silent, or somebody asks for very many names")
	errGreedyClient  = errors.New("this client waits for half of all answers that may be waited for: it asks for very many names, or the upstream is slow or silent")
)

// queryLimit is how many queries may be busy, and how many misses under way, where
// the Go runtime may use so many bytes (package runtime/debug, SetMemoryLimit).
func queryLimit(memory int64) int32 {
	return int32(min(max(memory/queryMemory, minUnderWay), maxUnderWay))
}

// memoryLimit is that of the process. It is set before the first query comes.
var memoryLimit = sync.OnceValue(func() int64 { return debug.SetMemoryLimit(-1) })

// Take notes a query that came over UDP, until done. It reports false for one to be
// dropped, as the kernel drops what does not fit into a socket's buffer.
func (u *Queries) Take(client netip.Addr) bool {
	limit := busyShare * queryLimit(memoryLimit())
	all, own := u.busy.add(client, 1)
	here := own - u.waiting.of(client) + u.begun[0].of(client) + u.begun[1].of(client)
	greedy := here > clientHere && here > u.clientMay() // the clock is read for few
	if greedy && u.watching.CompareAndSwap(false, true) {
		go u.watch()
	}
	if all%crowd == 0 && u.Crowded != nil {
		u.Crowded()
	}
	if all <= limit && own <= limit/clientShare && (!greedy || !u.late.Load()) {
		return true
	}
	u.busy.add(client, -1)
	u.shed.Add(1)
	return false
}

// Dropped is how many queries were dropped.
func (u *Queries) Dropped() uint64 { return u.shed.Load() }

// Refused is how many misses were refused.
func (u *Queries) Refused() uint64 { return u.refused.Load() }

// Throttled tells whether a CPU limit was used up a moment ago.
func (u *Queries) Throttled() bool { return u.limit.lately(time.Now()) }

// clientMay is how many queries one client may have here while goroutines run late.
func (u *Queries) clientMay() int32 {
	if u.limit.lately(time.Now()) {
		return clientThrottled
	}
	return clientHere
}

// watch finds out whether goroutines run late, while very many queries are busy.
func (u *Queries) watch() {
	var last time.Time // when they ran late
	u.nextWindow()
	u.nextWindow()
	window := time.Now()
	for u.busy.all.Load()+u.misses.all.Load() > clientHere/2 || time.Since(last) < lateFor {
		began := time.Now()
		time.Sleep(latePause)
		now := time.Now()
		if now.Sub(began) > latePause+lateBy {
			last = now
			u.limit.look()
		}
		u.late.Store(now.Sub(last) < lateFor)
		if now.Sub(window) >= beginWindow {
			window = now
			u.nextWindow()
		}
	}
	u.late.Store(false)
	u.watching.Store(false)
}

// nextWindow forgets the misses that began before the present window.
func (u *Queries) nextWindow() {
	next := u.windows.Load() + 1
	u.begun[next%2].clear()
	u.windows.Store(next)
}

// Done is for a query that was taken.
func (u *Queries) Done(client netip.Addr) { u.busy.add(client, -1) }

// Begin notes a miss, until end is called. One that was taken is not busy meanwhile.
// It fails where there are too many. While misses are under way that began some
// time ago, late is called now and then.
func (u *Queries) Begin(client netip.Addr, taken bool, late func()) (end func(), err error) {
	limit := queryLimit(memoryLimit())
	all, own := u.misses.add(client, 1)
	if all > limit || own > limit/clientShare {
		u.misses.add(client, -1)
		u.refused.Add(1)
		if all > limit {
			return nil, errTooManyMisses
		}
		return nil, errGreedyClient
	}
	if taken {
		u.busy.add(client, -1)
	}
	lately := u.begins(client)
	generation := &u.generations[1-u.former.Load()]
	generation.Add(1)
	if u.ticking.CompareAndSwap(false, true) {
		time.AfterFunc(slow, func() { u.tick(late) })
	}
	return func() {
		generation.Add(-1)
		lately()
		u.misses.add(client, -1)
		if taken {
			u.busy.add(client, 1)
		}
	}, nil
}

// Wait notes that a query that was taken waits for another, until end is called.
func (u *Queries) Wait(client netip.Addr) (end func()) {
	u.waiting.add(client, 1)
	lately := u.begins(client)
	return func() {
		lately()
		u.waiting.add(client, -1)
	}
}

// begins counts a query among those that began to wait lately, until end is called or
// that is some time ago.
func (u *Queries) begins(client netip.Addr) (end func()) {
	window := u.windows.Load()
	u.begun[window%2].add(client, 1)
	return func() {
		if u.windows.Load()-window < 2 {
			u.begun[window%2].add(client, -1)
		}
	}
}

// tick runs once in the time slow while there are misses.
func (u *Queries) tick(late func()) {
	former := u.former.Load()
	if u.generations[former].Load() > 0 {
		late()
	} else {
		u.former.Store(1 - former)
	}
	if u.misses.all.Load() > 0 {
		time.AfterFunc(slow, func() { u.tick(late) })
		return
	}
	u.ticking.Store(false) // a miss that begins just now waits for the next one's
}

// shares counts queries, in all and by client. Two of very many clients may by
// chance share a counter.
type shares struct {
	all      atomic.Int32
	byClient [1024]atomic.Int32
}

var shareSeed = maphash.MakeSeed()

func (s *shares) of(client netip.Addr) int32 {
	return s.byClient[maphash.Comparable(shareSeed, client)%uint64(len(s.byClient))].Load()
}

func (s *shares) add(client netip.Addr, n int32) (all, own int32) {
	slot := maphash.Comparable(shareSeed, client) % uint64(len(s.byClient))
	return s.all.Add(n), s.byClient[slot].Add(n)
}

func (s *shares) clear() {
	s.all.Store(0)
	for i := range s.byClient {
		s.byClient[i].Store(0)
	}
}
