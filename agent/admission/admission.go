// Package admission bounds the queries under way, and watches the CPU limit of this
// process.
package admission

import (
	"context"
	"math"
	"net/netip"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/trackless-dns/trackless/agent/fairness"
)

// Queries bounds the queries under way. CoreDNS starts a goroutine for every packet that
// it reads, and each holds memory until it ends. Without a bound one client that asks for
// ever new names would exhaust our memory, and the kernel would kill this process. The
// zero value is ready.
//
// A query is either busy, or it is a miss that waits for an upstream. Some busy queries
// wait in the cache for the answer to another query. One client may have a part of the busy
// queries, not all: there are no locks for these, since hundreds of waiting goroutines would
// get a lock only as fast as the scheduler runs them. Package fairness divides the misses.
type Queries struct {
	// Offenders has the clients that lost queries.
	Offenders fairness.Offenders

	busy    shares
	waiting shares        // busy queries that wait for another query
	shed    atomic.Uint64 // dropped queries

	under  atomic.Int32  // misses under way
	closed atomic.Uint64 // connections that were too many

	once   sync.Once
	misses *fairness.Misses

	watching, late atomic.Bool // watch runs; goroutines run late, and clients are several

	limit throttling

	// Crowded, if set, is called when many queries are busy: goroutines that wait for a
	// timer run late then.
	Crowded func()

	// Late, if set, is called with true when goroutines have run late for some time because of
	// the queries of one client, and with false when it no longer has so many.
	Late      func(bool)
	lateSince time.Time // these two are of the goroutine that watches
	told      bool      // that they run late

	// Slow, if set, is called now and then while old misses are under way.
	Slow func()

	// Overflow, if set, returns how many packets found no room in buffers so far, and Thin
	// has the kernel drop all but a part of the packets of some clients, none without any.
	Overflow func() uint64
	Thin     func(from []netip.Addr, pass float64)
	thin     thinning // of the goroutine that watches
	thinned  atomic.Int32
	came     [slots]atomic.Int32 // while watch runs, the queries over UDP in the present window

	// begun counts the queries that began to wait in the last two windows of length
	// beginWindow. The windows advance while watch runs.
	begun   [2]shares
	before  stuck
	windows atomic.Uint32
	since   atomic.Int64 // when the former window began, in nanoseconds of the Unix time
	window  time.Time    // when the present one began; of the goroutine that watches

	// last is the slot of the last client that asked, plus one, and mixed the time until which
	// clients count as several, in nanoseconds of the Unix time, since another one asked: one
	// that is alone keeps nobody waiting. They are kept at all times: a flood may hold up the
	// queries of the others before they come here.
	last  atomic.Uint32
	mixed atomic.Int64

	// Misses are counted in two generations. Misses of the former one have been under
	// way for at least the time slow. When none of them is left, the present generation
	// becomes the former one.
	generations [2]atomic.Int32
	former      atomic.Int32 // 0 or 1
	ticking     atomic.Bool
}

// slow is the age of a miss, or at most twice that, at which we check whether its Service
// still exists. The kernel announces most changes of rules, but not those of legacy
// iptables.
const slow = 125 * time.Millisecond

const (
	// queryMemory is the memory of a query that is under way: a goroutine with its stack,
	// two messages, the writers of the plugins, and for a miss a socket.
	queryMemory = 64 << 10

	// The bounds of queryLimit, for any memory limit.
	minUnderWay = 256
	maxUnderWay = 16384

	// One client may have 1/clientShare of the busy queries. There may be busyShare times as
	// many busy queries as misses: they have no socket.
	clientShare = 2
	busyShare   = 2

	// One client may have 1/clientConnections of the TCP connections, within bounds.
	clientConnections = 4
	minConnections    = 64
	maxConnections    = 256

	// clientHere bounds the queries of one client while goroutines run late, so that
	// other clients need not wait for them. Queries that have waited for some time do not
	// count, for an upstream, for another query or for a lock: they need no processor. So
	// an upstream that does not answer makes no client greedy.
	clientHere = 64

	// clientThrottled is the same bound while a CPU limit is used up. All goroutines run
	// late then. If many queries wait for long, the lease ends: see package lease.
	clientThrottled = 1024

	// watch sleeps for latePause. Goroutines run late if the sleep takes longer by
	// lateBy.
	latePause = 5 * time.Millisecond
	lateBy    = 3 * time.Millisecond
	// Crowded is called at each multiple of crowd busy queries.
	crowd = 64

	// Goroutines count as late for lateFor after watch found them late.
	lateFor = 100 * time.Millisecond

	// Buffers become short when goroutines have run late for shortAfter: it did not help that
	// the kernel drops queries of the client that floods, or it does not. They stay short for
	// shortFor. Before, a burst needs their room.
	shortAfter = 250 * time.Millisecond
	shortFor   = 5 * time.Second

	// beginWindow is the shortest time for which a query counts as one that has just
	// begun to wait. With clientHere, 1,280 of one client may begin in a second.
	beginWindow = 50 * time.Millisecond

	// maxWindows bounds the windows that a longer one counts as.
	maxWindows = 16

	// A client is alone again when nobody else has asked for mixedFor.
	mixedFor = time.Second
)

// queryLimit returns how many misses may be under way with a memory limit of the Go
// runtime in bytes (SetMemoryLimit in runtime/debug).
func queryLimit(memory int64) int32 {
	return int32(min(max(memory/queryMemory, minUnderWay), maxUnderWay))
}

// memoryLimit is the memory limit of the process. It is set before the first query comes.
var memoryLimit = sync.OnceValue(func() int64 { return debug.SetMemoryLimit(-1) })

// Take counts a query over UDP until [Queries.Done]. It returns false for a query that
// must be dropped, as the kernel drops packets that do not fit into a socket's buffer.
func (u *Queries) Take(client netip.Addr) bool {
	limit := busyShare * queryLimit(memoryLimit())
	slot := slotOf(client)
	all, own := u.busy.add(slot, 1)
	here := own - u.waiting.of(slot) + u.begun[0].of(slot) + u.begun[1].of(slot)
	if u.watching.Load() {
		here -= u.before.of(slot)
		u.came[slot].Add(1)
	}
	u.asks(slot)
	greedy := here > clientHere && here > u.clientMay() // few queries read the clock
	if greedy && u.watching.CompareAndSwap(false, true) {
		go u.watch()
	}
	if all%crowd == 0 && u.Crowded != nil {
		u.Crowded()
	}
	if all <= limit && own <= limit/clientShare && (!greedy || !u.late.Load()) {
		if greedy {
			u.Offenders.Presses(client)
		}
		return true
	}
	u.busy.add(slot, -1)
	u.shed.Add(1)
	u.Offenders.Lost(client)
	return false
}

// Dropped returns how many queries were dropped.
func (u *Queries) Dropped() uint64 { return u.shed.Load() }

// Thinned returns of how many clients the kernel drops a part of the queries.
func (u *Queries) Thinned() int { return int(u.thinned.Load()) }

// Misses divides the misses among the clients.
func (u *Queries) Misses() *fairness.Misses {
	u.once.Do(func() {
		u.misses = fairness.New(int(queryLimit(memoryLimit())))
		u.misses.OnShed = u.Offenders.Lost
	})
	return u.misses
}

// AtMost bounds the misses under way besides the memory limit: with more, a plugin below
// would refuse those of every client. 0 is no bound.
func (u *Queries) AtMost(n int) {
	limit := int(queryLimit(memoryLimit()))
	if n > 0 {
		limit = min(limit, n)
	}
	u.Misses().SetLimit(limit)
}

// Throttled reports whether a CPU limit was used up in the last second.
func (u *Queries) Throttled() bool { return u.limit.lately(time.Now()) }

// clientMay returns how many queries one client may have while goroutines run late. Windows are
// longer when watch is held up, too.
func (u *Queries) clientMay() int32 {
	now := time.Now()
	if u.limit.lately(now) {
		return clientThrottled
	}
	if !u.watching.Load() {
		return clientHere
	}
	windows := float64(now.UnixNano()-u.since.Load()) / float64(beginWindow)
	return int32(clientHere * min(max(windows, 1), maxWindows))
}

// watch measures whether goroutines run late, while very many queries are busy.
func (u *Queries) watch() {
	var last time.Time // when goroutines ran late
	u.nextWindow()
	u.nextWindow()
	u.Offenders.Recent(math.MaxInt, u.floods) // what was lost before the first window is no flood
	u.thin.begin()
	for u.isCrowded() || time.Since(last) < lateFor {
		began := time.Now()
		time.Sleep(latePause)
		now := time.Now()
		lateNow := now.Sub(began) > latePause+lateBy
		if lateNow {
			last = now
			u.limit.look(now)
		}
		mixed := u.isMixed()
		late := now.Sub(last) < lateFor && mixed
		u.note(now, late)
		u.Misses().Pace(now, lateNow && mixed)
		if now.Sub(last) >= shortFor {
			u.endNotes()
		}
		switch {
		case now.Sub(u.window) >= beginWindow:
			u.thinOut(!last.Before(u.window) && mixed)
			u.nextWindow()
		case late && len(u.thin.from) == 0 && u.Offenders.Floods(floodsAt, u.floods):
			u.thinOut(late) // the sooner the fewer packets of others find no room
		}
	}
	u.endNotes()
	u.Misses().EndPace()
	u.watching.Store(false)
}

// thinOut has the kernel drop queries of the clients that flood, if these hold up others.
func (u *Queries) thinOut(late bool) {
	if u.Thin == nil || u.Overflow == nil {
		return
	}
	floods := u.Offenders.Recent(floodsAt, u.floods)
	if !u.isMixed() {
		floods = nil // nobody else asks
	}
	var changed bool
	if u.limit.lately(time.Now()) {
		// A CPU limit is used up: all goroutines run late then, and packets that the
		// kernel drops would end the lease (see package lease).
		changed = u.thin.end()
	} else {
		changed = u.thin.next(window{
			late: late, overflow: u.Overflow, floods: floods,
			pressed: slices.ContainsFunc(u.thin.from, u.floods),
		})
	}
	if changed {
		u.Thin(u.thin.from, u.thin.pass)
		u.thinned.Store(int32(len(u.thin.from)))
	}
}

// floods reports whether a source has sent so much in the present window that it floods, whether
// or not all of it passed.
func (u *Queries) floods(source netip.Addr) bool {
	windows := max(1, float64(time.Since(u.window))/float64(beginWindow))
	return float64(u.came[slotOf(source)].Load()) >= floodsWith*windows*u.thin.passOf(source)
}

// isCrowded reports whether very many queries are under way.
func (u *Queries) isCrowded() bool {
	return len(u.thin.from) > 0 || u.busy.all.Load()+u.under.Load() > clientHere/2 || u.Misses().Figures().Waiting > 0
}

// Asks notes a query of a client over TCP, which is not taken.
func (u *Queries) Asks(client netip.Addr) { u.asks(slotOf(client)) }

// asks notes a query of a client.
func (u *Queries) asks(slot uint32) {
	if last := u.last.Load(); last != slot+1 {
		u.last.Store(slot + 1)
		if last != 0 {
			u.mixed.Store(time.Now().Add(mixedFor).UnixNano())
		}
	}
}

// isMixed reports whether several clients have asked lately.
func (u *Queries) isMixed() bool { return time.Now().UnixNano() < u.mixed.Load() }

// note notes whether goroutines run late, and reports it when they have for some time.
func (u *Queries) note(now time.Time, late bool) {
	if !u.late.Swap(late) {
		u.lateSince = now
	}
	if late && !u.told && now.Sub(u.lateSince) >= shortAfter {
		u.told = true
		u.tell(true)
	}
}

// endNotes ends the notes when the queries are no longer watched.
func (u *Queries) endNotes() {
	u.late.Store(false)
	if u.told {
		u.told = false
		u.tell(false)
	}
}

func (u *Queries) tell(late bool) {
	if u.Late != nil {
		u.Late(late)
	}
}

// nextWindow forgets the queries that began to wait before the present window.
func (u *Queries) nextWindow() {
	next := u.windows.Load() + 1
	u.begun[next%2].clear()
	u.before.begin(&u.busy, &u.waiting)
	for i := range u.came {
		u.came[i].Store(0)
	}
	u.windows.Store(next)
	u.since.Store(u.window.UnixNano())
	u.window = time.Now()
}

// ConnectionLimits returns how many TCP connections one client may have, and all together.
func ConnectionLimits() (perClient, all int) {
	all = int(queryLimit(memoryLimit()))
	return min(max(all/clientConnections, minConnections), maxConnections), all
}

// Closed counts a connection that was closed since its client has too many.
func (u *Queries) Closed(client netip.Addr) {
	u.closed.Add(1)
	u.Offenders.LostConnection(client)
}

// ClosedConnections returns how many connections were closed.
func (u *Queries) ClosedConnections() uint64 { return u.closed.Load() }

// Done ends a query that Take has counted.
func (u *Queries) Done(client netip.Addr) { u.done(slotOf(client)) }

func (u *Queries) done(slot uint32) {
	u.busy.add(slot, -1)
	if u.watching.Load() {
		u.before.gone[slot].Add(1)
	}
}

// A Miss is a query that the cache cannot answer.
type Miss struct {
	Client netip.Addr
	Taken  bool // [Queries.Take] has counted it
	InTurn bool // see [fairness.Misses.Do]
}

// Pass calls pass, which asks an upstream, when the client of a miss has a place, and returns
// what it returns; see [fairness.Misses.Do]. A query that was taken is not busy meanwhile.
func (u *Queries) Pass(ctx context.Context, m Miss, pass func(context.Context) (int, error)) (int, error) {
	slot := slotOf(m.Client)
	if m.Taken {
		u.done(slot)
		defer u.busy.add(slot, 1)
	}
	defer u.begins(slot)()
	if m.Client.IsValid() { // not the cache, which asks in advance for its clients
		u.asks(slot)
	}
	return u.Misses().Do(ctx, m.Client, m.InTurn, func(ctx context.Context) (int, error) {
		generation := &u.generations[1-u.former.Load()]
		generation.Add(1)
		defer generation.Add(-1)
		if u.ticking.CompareAndSwap(false, true) {
			time.AfterFunc(slow, u.tick)
		}
		if u.under.Add(1) > clientHere && u.watching.CompareAndSwap(false, true) {
			go u.watch()
		}
		defer u.under.Add(-1)
		return pass(ctx)
	})
}

// Wait counts a taken query as waiting for another one, until end is called.
func (u *Queries) Wait(client netip.Addr) (end func()) {
	slot := slotOf(client)
	u.waiting.add(slot, 1)
	lately := u.begins(slot)
	return func() {
		lately()
		u.waiting.add(slot, -1)
	}
}

// begins counts a query as one that has just begun to wait, until end is called or two
// windows have passed.
func (u *Queries) begins(slot uint32) (end func()) {
	window := u.windows.Load()
	u.begun[window%2].add(slot, 1)
	return func() {
		if u.windows.Load()-window < 2 {
			u.begun[window%2].add(slot, -1)
		}
	}
}

// tick runs every slow while there are misses.
func (u *Queries) tick() {
	former := u.former.Load()
	if u.generations[former].Load() == 0 {
		u.former.Store(1 - former)
	} else if u.Slow != nil {
		u.Slow()
	}
	if u.generations[0].Load()+u.generations[1].Load() > 0 {
		time.AfterFunc(slow, u.tick)
		return
	}
	u.ticking.Store(false) // the next miss starts the ticks again
}
