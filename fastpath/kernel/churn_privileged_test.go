//go:build privileged

package kernel

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/conntrack/ledger"
	"github.com/trackless-dns/trackless/fastpath"
	"github.com/trackless-dns/trackless/plugin/cache/engine"
	"github.com/trackless-dns/trackless/plugin/cache/store"
	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// quiet is a log that nobody reads.
type quiet struct{}

func (quiet) Debugf(string, ...any)   {}
func (quiet) Infof(string, ...any)    {}
func (quiet) Warningf(string, ...any) {}
func (quiet) Errorf(string, ...any)   {}

// uncounted are metrics that nobody reads.
type uncounted struct{}

func (uncounted) Add(uint64, bool, bool) {}

// changing is an answer whose address is its version. A writer replaces it again and again.
type changing struct {
	key     wire.Key
	answer  wire.Answer
	version atomic.Uint32 // that the cache has at least
}

func newChanging(t *testing.T, i int) *changing {
	t.Helper()
	name := fmt.Sprintf("w%d.example.", i)
	key, answer := message(t, name, dns.TypeA, dns.RcodeSuccess, 0, []string{name + " 60 IN A 0.0.0.0"}, nil)
	return &changing{key: key, answer: answer}
}

// replace puts the next version.
func (c *changing) replace(e *engine.Engine) {
	v := c.version.Load() + 1
	binary.BigEndian.PutUint32(c.answer.Body[len(c.answer.Body)-4:], v)
	e.Put(c.key, store.Positive, &store.Entry{Stored: e.Store().Time(time.Now()), TTL: 60, Answer: c.answer, Answering: true}, engine.Asked{})
	c.version.Store(v)
}

// remove takes the answer away: a version that no reply has.
func (c *changing) remove(e *engine.Engine) {
	e.Store().Remove(c.key, store.Positive)
	c.version.Add(1)
}

// removeEvery is how many changes have one removal among them. It divides no number of names,
// so that each name is removed at times.
const removeEvery = 17

// While answers are replaced and removed, memory of old ones is used again, and answers come
// and go, no reply is older than the answer that the cache had when the query was sent, and
// none is mixed of two.
func TestChurn(t *testing.T) {
	t.Parallel()
	churn(t, 8, 20_000, 8_000, time.Minute)
}

// churn asks for names until so many replies have come, while their answers change at the rate,
// in changes a second.
func churn(t *testing.T, names, enough, rate int, patience time.Duration) {
	p := load(t)
	e, err := engine.New(engine.Options{Store: store.Options{Bytes: store.MinBytes}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	accountant := &fastpath.Accountant{Ledger: ledger.New(ledger.Config{})}
	publisher := fastpath.NewPublisher(p.Table, accountant, quiet{})
	to := netip.AddrPortFrom(node4, 53)
	n, err := publisher.Listener(to)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Listen(to, n, 1<<16-1); err != nil {
		t.Fatal(err)
	}
	p.Open(n, time.Now().Add(time.Hour))
	announcer := publisher.Announce(fastpath.Block{
		Engine: e, Listeners: map[netip.AddrPort]uint8{to: n}, Denials: true,
		Zone: func([]byte) string { return "." }, Counters: func(fastpath.Class) fastpath.Counters { return uncounted{} },
	})
	ctx, cancel := context.WithCancel(context.Background())
	var tasks sync.WaitGroup
	tasks.Go(func() { publisher.Run(ctx) })
	defer func() { cancel(); tasks.Wait() }()

	answers, queries := make([]*changing, names), make([][]byte, names)
	from := netip.AddrPortFrom(pod4, 40000)
	for i := range answers {
		answers[i] = newChanging(t, i)
		query, err := new(dns.Msg).SetQuestion(fmt.Sprintf("w%d.example.", i), dns.TypeA).Pack()
		if err != nil {
			t.Fatal(err)
		}
		queries[i] = packet(from, to, query)
	}
	began := time.Now()
	var changes atomic.Int64
	tasks.Go(func() {
		client, server := net.UDPAddrFromAddrPort(from), net.UDPAddrFromAddrPort(to)
		for ctx.Err() == nil {
			// A stall is made up for.
			for due := int64(time.Since(began).Seconds() * float64(rate)); changes.Load() < due && ctx.Err() == nil; {
				n := changes.Add(1)
				c := answers[int(n)%names]
				if n%removeEvery == 0 {
					c.remove(e)
					continue
				}
				c.replace(e)
				announcer.Hit(client, server, c.key)
			}
			time.Sleep(100 * time.Microsecond)
		}
	})
	answered := 0
	for i := 0; answered < enough && time.Since(began) < patience; i++ {
		c := answers[i%names]
		least := c.version.Load()
		verdict, out, err := p.run(queries[i%names])
		if err != nil {
			t.Fatal(err)
		}
		if verdict != redirect {
			continue
		}
		answered++
		reply, err := unpack(out, to, from)
		if err != nil {
			t.Fatalf("reply %d: %v", answered, err)
		}
		if got := binary.BigEndian.Uint32(reply[len(reply)-4:]); got < least || got > c.version.Load()+1 {
			t.Fatalf("reply %d has version %d, and the cache had %d", answered, got, least)
		}
	}
	t.Logf("%d replies, %d changes, %.0f a second", answered, changes.Load(), float64(changes.Load())/time.Since(began).Seconds())
	if answered < enough {
		t.Errorf("%d replies of %d came from the kernel", answered, enough)
	}
}
