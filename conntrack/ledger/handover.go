package ledger

import (
	"context"
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"
)

// How packets come from the listeners to the table while Run is at work: each
// processor has a buffer, which a query enters with one uncontended atomic
// exchange and leaves with another, and one goroutine empties them all into the
// table. Who finds a buffer in use does not wait but takes another; who finds it
// full empties them all, so that nothing is lost however late Run is.

// record is a packet on its way to the table.
type record struct {
	key uint64 // hash, in its low byte the packet and the class
	at  int64  // milliseconds of the ledger's age
}

// buffer holds the packets that one processor has noted lately.
type buffer struct {
	busy    atomic.Bool // somebody adds records or takes them away
	records []record    // len: how many there are; cap: how many there may be

	_ [88]byte // no line, and no pair of lines, is shared with the next
}

const (
	// handOver is how often Run empties the buffers while there is traffic, and
	// so how coarse its clock is: as the kernel's own, whose jiffies are 1 to
	// 10 ms.
	handOver = 10 * time.Millisecond

	// restAfter is how often Run finds nothing before it sleeps until the next
	// packet.
	restAfter = 100

	// bufferRecords holds 10 ms of 25,000 queries a second on one processor;
	// from half of that on Run is woken.
	bufferRecords = 512

	maxBuffers = 64
)

// makeBuffers makes a buffer for each of so many processors, and returns what
// they take, which exceeds maxBytes only where that is too little for any.
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

// Run moves what was noted into the table and keeps the clock by which packets are
// noted, until ctx ends. While there is no traffic it sleeps. One Run at a time.
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
	for quiet := 0; quiet < restAfter && ctx.Err() == nil; quiet++ {
		l.tick.Store(l.milliseconds() + 1)
		select {
		case <-ticker.C:
		case <-l.wake:
		case <-ctx.Done():
		}
		l.mu.Lock()
		if l.drain() {
			quiet = 0
		}
		l.mu.Unlock()
	}
	l.tick.Store(0)
	// Those that read the clock before it stopped.
	l.mu.Lock()
	l.drain()
	l.mu.Unlock()
}

// note hands one packet over, through the given buffer if it is not nil, and
// returns the one it took, nil if it went into the table at once.
func (l *Ledger) note(b *buffer, key uint64) *buffer {
	tick := l.tick.Load()
	if tick == 0 {
		l.noteAtOnce(record{key, l.milliseconds()})
		return nil
	}
	r := record{key, tick - 1}
	if b == nil {
		b = l.pool.Get().(*buffer)
		l.pool.Put(b) // nobody owns a buffer; the pool only says which is near
	}
	if b.busy.Swap(true) {
		// Its user was stopped amid these few instructions, or it is being
		// emptied.
		l.noteAtOnce(r)
		return nil
	}
	b.records = append(b.records, r)
	l.leave(b)
	return b
}

// noteAll hands over the same packets of many flows.
func (l *Ledger) noteAll(flows []Flow, packets uint64) {
	b := l.pool.Get().(*buffer)
	l.pool.Put(b)
	for len(flows) > 0 {
		tick := l.tick.Load()
		if tick == 0 || b.busy.Swap(true) {
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

// leave gives up a buffer, and sees to it that it is emptied in time.
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

// noteAtOnce puts a packet into the table.
func (l *Ledger) noteAtOnce(r record) {
	l.mu.Lock()
	l.apply(r)
	l.mu.Unlock()
	l.awake()
}

// drain empties all buffers into the table and reports whether there was
// anything. The caller holds the lock.
func (l *Ledger) drain() (any bool) {
	for i := range l.buffers {
		b := &l.buffers[i]
		for b.busy.Swap(true) {
			runtime.Gosched()
		}
		records := b.records
		b.records = l.spare[:0]
		b.busy.Store(false)
		l.applyAll(records)
		l.spare = records
		any = any || len(records) > 0
	}
	return any
}

// applyAll applies records in their order. A query and its response, which
// mostly stand side by side, go through the table together.
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
