package fastpath

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/trackless-dns/trackless/internal/logger"
	"github.com/trackless-dns/trackless/plugin/cache/engine"
	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// A Publisher brings answers of the cache into a fast path. An answer is announced when
// the cache has given it to a client whom the fast path could have answered. It is
// withdrawn before the cache would give another answer.
//
// A withdrawal runs in the goroutine that changes the cache, under its lock, and does no
// I/O. Answers are published by one goroutine, which reads them again under the lock of
// the cache: an answer that has changed since it was announced is published as it is now.
type Publisher struct {
	sink       Sink
	accountant *Accountant
	log        logger.Logger
	queue      chan announcement

	mu        sync.Mutex // held while the sink changes
	ended     bool       // the sink may be gone
	listeners []netip.AddrPort
	wanted    map[netip.AddrPort]uint8

	told bool // that there is no class left; only Run uses it

	counted time.Time   // when CountUses counted last
	prompt  atomic.Bool // a cache asks again for answers that are used often (prefetch)
}

const (
	// maxName is the longest name that is announced, in bytes of wire format.
	maxName = 128
	// maxListeners is the number of listen addresses and ports that a process can have,
	// over all loads of a Corefile.
	maxListeners = 128
	// queueSize is how many announcements wait. Those that find no room are dropped:
	// the answer is announced again with a later use.
	queueSize = 256
)

// errNoClass is logged once: it stays so for all answers of new kinds.
var errNoClass = errors.New("all classes in which queries are counted are in use; a reload of the Corefile frees them")

// announcement is an answer to be published.
type announcement struct {
	announcer *Announcer
	listener  uint8
	size      uint8
	key       [maxName + 8]byte
}

// NewPublisher returns a publisher. Run must be called.
func NewPublisher(sink Sink, accountant *Accountant, log logger.Logger) *Publisher {
	return &Publisher{
		sink: sink, accountant: accountant, log: log,
		queue: make(chan announcement, queueSize), wanted: make(map[netip.AddrPort]uint8),
	}
}

// Listener returns the number of a listen address and port. It never changes.
func (p *Publisher) Listener(addr netip.AddrPort) (uint8, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n, known := p.wanted[addr]; known {
		return n, nil
	}
	if len(p.listeners) >= maxListeners {
		return 0, fmt.Errorf("%s is one listen address too many for fast paths: %d were used since the start; restart the process", addr, maxListeners)
	}
	n := uint8(len(p.listeners))
	p.listeners = append(p.listeners, addr)
	p.wanted[addr] = n
	return n, nil
}

// EachListener calls fn for the numbers of an address, with all ports.
func (p *Publisher) EachListener(a netip.Addr, fn func(listener uint8)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for n, l := range p.listeners {
		if l.Addr() == a {
			fn(uint8(n))
		}
	}
}

// Block is a server block whose answers are announced.
type Block struct {
	Engine *engine.Engine
	// Listeners are its addresses and ports, with their numbers.
	Listeners map[netip.AddrPort]uint8
	// Denials tells that denials of names (NXDOMAIN) are announced, too.
	Denials bool
	// Zone returns the label of the metrics for the zone of a name in wire format.
	Zone func(name []byte) string
	// Counters returns the metrics of a class.
	Counters func(Class) Counters
}

// An Announcer announces the answers of one server block. Close ends that.
type Announcer struct {
	publisher *Publisher
	block     Block
	closed    atomic.Bool
}

// Announce returns an announcer for a server block.
func (p *Publisher) Announce(b Block) *Announcer {
	b.Engine.OnWithdraw(p.withdraw)
	if b.Engine.Prefetches() {
		p.prompt.Store(true)
	}
	return &Announcer{publisher: p, block: b}
}

// Hit is told that the cache has answered a query from the client to the server with a
// fresh answer. It does not wait.
func (a *Announcer) Hit(client, server net.Addr, key wire.Key) {
	if _, udp := client.(*net.UDPAddr); !udp {
		return
	}
	local, udp := server.(*net.UDPAddr)
	if !udp {
		return
	}
	at := local.AddrPort()
	a.HitAt(netip.AddrPortFrom(at.Addr().Unmap().WithZone(""), at.Port()), key)
}

// HitAt is told of such a query over UDP that a fast path in this process has answered at the
// listen address. It allocates nothing.
func (a *Announcer) HitAt(at netip.AddrPort, key wire.Key) {
	if a.closed.Load() || len(key.Name()) > maxName || key.Bits()&^wire.DO != 0 || key.Class() != 1 {
		return
	}
	listener, known := a.block.Listeners[at]
	if !known || !a.block.Engine.Claim(key, time.Now()) {
		return
	}
	out := announcement{announcer: a, listener: listener}
	out.size = uint8(copy(out.key[:], key))
	select {
	case a.publisher.queue <- out:
	default:
	}
}

// Close withdraws all answers, and those of other announcers with them, which announce
// them again. Nothing is published for this announcer afterwards.
func (a *Announcer) Close() {
	if a.closed.Swap(true) {
		return
	}
	p := a.publisher
	p.locked(p.clear)
	p.accountant.retire(a)
}

// clear withdraws all answers. The lock is held.
func (p *Publisher) clear() {
	if !p.ended {
		p.sink.Clear()
	}
}

// Len returns the number of answers that the fast path has.
func (p *Publisher) Len() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return 0
	}
	return p.sink.Len()
}

func (p *Publisher) locked(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
}

// withdraw takes the answer to a question out of the fast path, at all listeners. It runs
// under a lock of the cache.
func (p *Publisher) withdraw(key wire.Key) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return
	}
	for n := range p.listeners {
		p.sink.Withdraw(uint8(n), key)
	}
}

// Run publishes what is announced, until the context ends. Then it withdraws all, and
// does not use the sink any more.
func (p *Publisher) Run(ctx context.Context) {
	defer p.locked(func() {
		p.clear()
		p.ended = true
	})
	for {
		select {
		case <-ctx.Done():
			return
		case a := <-p.queue:
			p.publish(&a)
		}
	}
}

func (p *Publisher) publish(a *announcement) {
	err := p.try(a)
	if errors.Is(err, ErrNoRoom) {
		if err = p.sink.MakeRoom(p.locked); err == nil {
			err = p.try(a)
		}
	}
	switch {
	case errors.Is(err, errNoClass):
		if p.told {
			return
		}
		p.told = true
	case err == nil, errors.Is(err, ErrTooLarge), errors.Is(err, ErrFull):
		return // the cache answers such a question itself
	}
	p.log.Warningf("an answer stays out of the fast path, and CoreDNS gives it: %v", err)
}

// try publishes the answer as it is in the cache now.
func (p *Publisher) try(a *announcement) (err error) {
	key := wire.Key(a.key[:a.size])
	block := &a.announcer.block
	block.Engine.Announce(key, time.Now(), func(found *engine.Announced) {
		p.mu.Lock()
		defer p.mu.Unlock()
		if a.announcer.closed.Load() || p.ended || found.NameError() && !block.Denials {
			return
		}
		query := queryHead + len(key.Name()) + queryTail
		class, ok := p.accountant.class(a.announcer, Class{
			Listener: p.listeners[a.listener], Zone: block.Zone(key.Name()), Type: key.Type(),
			Rcode: found.Answer.Flags.Rcode(), DO: key.Bits()&wire.DO != 0, Denial: found.Denial,
			Query: query, Reply: query + len(found.Answer.Body),
		})
		if !ok {
			err = errNoClass
			return
		}
		err = p.sink.Publish(&Record{
			Listener: a.listener, Key: key, Answer: found.Answer,
			Stored: found.Stored, TTL: found.TTL, Serve: found.Serve, Class: class,
		})
	})
	return err
}

// Sizes of a query (RFC 1035 section 4.1): the header, and type and class.
const (
	queryHead = 12
	queryTail = 4
)

// usesEvery is how often uses are counted where only eviction asks for them: to read all
// records takes longer than to read all counts.
const usesEvery = 5 * time.Second

// CountUses tells the cache of the uses of its answers by the fast path, if it was not told
// shortly before. It is called by one goroutine.
func (p *Publisher) CountUses() {
	now := time.Now()
	if !p.prompt.Load() && now.Sub(p.counted) < usesEvery {
		return
	}
	p.counted = now
	p.sink.Uses(p.locked, func(class uint16, _ uint8, key wire.Key, n uint32) {
		if a := p.accountant.announcer(class); a != nil {
			a.block.Engine.Used(key, n, now)
		}
	})
}
