package ledger

import (
	"context"
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"
)

// At a low rate each packet goes into the table at once, under the lock, and nothing ticks.
//
// At a high rate Run is at work, and packets come from the listeners to the table through
// buffers. Each processor has one. A query locks it with one uncontended atomic exchange,
// adds its record, and unlocks it. Run empties all buffers into the table. A query that
// finds the buffer locked does not wait, but goes into the table at once. A query that
// fills a buffer empties all of them, so that nothing is lost if Run is late.

// record is a packet on its way to the table.
type record struct {
	key uint64 // the hash; the packet and the class are in its low byte
	at  int64  // milliseconds of the ledger's age
}

// buffer holds the packets that one processor has noted since it was emptied.
type buffer struct {
	busy    atomic.Bool // locked: records are being added or removed
	records []record    // never grows beyond its capacity

	_ [88]byte // no cache line, and no pair of lines, is shared with the next buffer
}

const (
	// handOver is how often Run empties the buffers while it is at work. Its clock is as
	// coarse as that, like the kernel's, whose jiffies are 1 to 10 ms.
	handOver = 10 * time.Millisecond

	// busyPackets is how many packets within busyWindow put Run to work: with fewer, its
	// wake-ups cost more than the lock.
	busyPackets = 1000
	busyWindow  = 100 // milliseconds

	// Run counts the packets of restAfter of its rounds. With fewer than restPackets it
	// rests.
	restAfter   = 100
	restPackets = 2500

	// bufferRecords is enough for 10 ms of 25,000 queries a second on one processor. A
	// buffer that is half full wakes Run.
	bufferRecords = 512

	maxBuffers = 64
)

// makeBuffers makes a buffer for each processor and returns the bytes that they take. These
// are more than maxBytes only if maxBytes is too small for the smallest buffers.
func (l *Ledger) makeBuffers(processors, maxBytes int) (bytes int) {
	n := min(processors, maxBuffers)
	recordBytes := int(unsafe.Sizeof(record{}))
	each := min(max(maxBytes/(n+1)/recordBytes, 32), bufferRecords)
	records := make([]record, (n+1)*each)
	take := func(i int) []record { return records[i*each : i*each : (i+1)*each] }
	l.buffers = make([]buffer, n)
	for i := range l.buffers {
		l.buffers[i].records = take(i)
	}
	l.spare = take(n)
	l.pool.New = func() any { return &l.buffers[l.nextBuf.Add(1)%uint32(n)] }
	return len(records)*recordBytes + n*int(unsafe.Sizeof(buffer{}))
}

// Run moves noted packets into the table and updates the clock with which they are noted,
// until ctx ends. At a low rate it sleeps. It must not run twice at a time.
func (l *Ledger) Run(ctx context.Context) {
	ticker := time.NewTicker(handOver)
	defer ticker.Stop()
	for ctx.Err() == nil {
		ticker.Stop()
		select {
		case <-l.wake:
		case <-ctx.Done():
			return
		}
		ticker.Reset(handOver)
		l.runBusy(ctx, ticker)
	}
}

func (l *Ledger) runBusy(ctx context.Context, ticker *time.Ticker) {
	for busy := true; busy && ctx.Err() == nil; {
		packets := 0
		for round := 0; round < restAfter && ctx.Err() == nil; round++ {
			l.tick.Store(l.milliseconds() + 1)
			select {
			case <-ticker.C:
			case <-l.wake:
			case <-ctx.Done():
			}
			l.mu.Lock()
			l.drain()
			packets += l.noted
			l.noted = 0
			l.mu.Unlock()
		}
		busy = packets >= restPackets
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tick.Store(0)
	// Nothing is put into a buffer after that: its user finds that the clock has stopped.
	l.drain()
	l.noted = 0
	select {
	case <-l.wake: // by a buffer that was half full
	default:
	}
}

// note puts one packet into the buffer b, or into a buffer of this processor if b is nil.
// It returns the buffer, or nil if the packet went into the table at once.
func (l *Ledger) note(b *buffer, key uint64) *buffer {
	tick := l.tick.Load()
	if tick == 0 {
		l.noteAtOnce(record{key, l.milliseconds()})
		return nil
	}
	if b == nil {
		b = l.pool.Get().(*buffer)
		l.pool.Put(b) // the pool only tells which buffer is near; nobody owns one
	}
	r := record{key, tick - 1}
	if b.busy.Swap(true) {
		// Its user was interrupted within these few instructions, or it is being
		// emptied.
		l.noteAtOnce(r)
		return nil
	}
	if l.tick.Load() == 0 {
		b.busy.Store(false)
		l.noteAtOnce(r)
		return nil
	}
	b.records = append(b.records, r)
	l.leave(b)
	return b
}

// noteAll notes the same packets of many flows.
func (l *Ledger) noteAll(flows []Flow, packets uint64) {
	b := l.pool.Get().(*buffer)
	l.pool.Put(b)
	for len(flows) > 0 {
		locked := l.tick.Load() != 0 && !b.busy.Swap(true)
		tick := l.tick.Load()
		if locked && tick == 0 {
			b.busy.Store(false)
			locked = false
		}
		if !locked {
			if key, ok := l.wanted(&flows[0]); ok {
				l.noteAtOnce(record{key | packets, l.milliseconds()})
			}
			flows = flows[1:]
			continue
		}
		for len(flows) > 0 && len(b.records) < cap(b.records) {
			if key, ok := l.wanted(&flows[0]); ok {
				b.records = append(b.records, record{key | packets, tick - 1})
			}
			flows = flows[1:]
		}
		l.leave(b)
	}
}

// leave unlocks a buffer, and makes sure that it is emptied in time.
func (l *Ledger) leave(b *buffer) {
	n, room := len(b.records), cap(b.records)
	b.busy.Store(false)
	switch n {
	case room / 2:
		l.awake()
	case room:
		l.mu.Lock()
		l.drain()
		l.mu.Unlock()
	}
}

func (l *Ledger) awake() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// noteAtOnce enters a packet into the table, and wakes Run if there are many.
func (l *Ledger) noteAtOnce(r record) {
	l.mu.Lock()
	l.apply(r)
	if r.at >= l.windowEnd && l.tick.Load() == 0 {
		l.windowEnd, l.noted = r.at+busyWindow, 0
	}
	l.noted++
	busy := l.noted == busyPackets
	l.mu.Unlock()
	if busy {
		l.awake()
	}
}

// drain empties all buffers into the table. The caller holds the lock.
func (l *Ledger) drain() {
	for i := range l.buffers {
		b := &l.buffers[i]
		for b.busy.Swap(true) {
			runtime.Gosched()
		}
		records := b.records
		b.records = l.spare[:0]
		b.busy.Store(false)
		l.applyAll(records)
		l.noted += len(records)
		l.spare = records
	}
}

// applyAll applies records in their order. A query and its response are mostly adjacent.
// They are applied together then.
func (l *Ledger) applyAll(records []record) {
	for i := 0; i < len(records); i++ {
		r := records[i]
		if next := i + 1; next < len(records) && records[next] == (record{r.key ^ packetQuery ^ packetResponse, r.at}) && r.key&packetQuery != 0 {
			r.key |= packetResponse
			i = next
		}
		l.apply(r)
	}
}
