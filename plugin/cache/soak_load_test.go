//go:build load

package cache

import (
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coredns/coredns/plugin/test"
	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/plugin/cache/engine"
	"github.com/trackless-dns/trackless/plugin/cache/store"
	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

var (
	soak  = flag.Duration("soak", time.Second, "how long everything happens at once")
	names = flag.Int("names", 200_000, "distinct names through the memory budget")
)

// addressOf is the address that a name has in these tests.
func addressOf(name string) net.IP {
	h := fnv.New32a()
	h.Write([]byte(strings.ToLower(name)))
	return binary.BigEndian.AppendUint32(nil, h.Sum32())
}

// TestEverythingAtOnce has readers of messages and of bytes, misses, evictions,
// refreshes, sweeps and reloads at once. Every answer must be its name's.
func TestEverythingAtOnce(t *testing.T) {
	up := &upstream{f: func(_ context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
		m := new(dns.Msg)
		m.SetReply(r)
		q := r.Question[0]
		switch ip := addressOf(q.Name); ip[3] % 16 {
		case 1:
			return dns.RcodeServerFailure, errTest
		case 2:
			m.Rcode = dns.RcodeNameError
			m.Ns = []dns.RR{&dns.SOA{Hdr: dns.RR_Header{Name: "example.org.", Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: 1}, Ns: "ns.example.org.", Mbox: "root.example.org."}}
		default:
			for range 1 + rand.IntN(8) {
				m.Answer = append(m.Answer, &dns.A{Hdr: dns.RR_Header{Name: q.Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: uint32(rand.IntN(6))}, A: ip})
			}
		}
		return dns.RcodeSuccess, w.WriteMsg(m)
	}}
	open := func(variant int) *Cache {
		c := New()
		c.Next = up
		c.size = store.MinBytes * (1 + variant%2)
		c.pcap = 4096
		c.minpttl, c.minnttl, c.failttl = 0, 0, time.Second
		c.prefetch, c.percentage = 2, 30
		c.staleUpTo = time.Second
		c.verifyStale = variant%3 == 1
		c.Jitter = func(time.Duration) time.Duration { return 0 }
		if err := c.prepare(); err != nil {
			t.Fatal(err)
		}
		if err := c.acquire("soak"); err != nil {
			t.Fatal(err)
		}
		return c
	}
	var current atomic.Pointer[Cache]
	current.Store(open(0))
	done := make(chan struct{})
	time.AfterFunc(*soak, func() { close(done) })
	running := func() bool {
		select {
		case <-done:
			return false
		default:
			return true
		}
	}
	const distinct = 20_000
	var served, fast atomic.Int64
	var wg sync.WaitGroup
	for range 4 { // through the plugin interface
		wg.Go(func() {
			for running() {
				name := fmt.Sprintf("n%d.Example.org.", rand.IntN(1+rand.IntN(distinct)))
				w := &client{}
				_, _ = current.Load().ServeDNS(context.Background(), w, question(name, nil))
				for _, m := range w.got {
					served.Add(1)
					checkAnswers(t, name, m)
				}
			}
		})
	}
	for range 2 { // through the wire interface
		wg.Go(func() {
			var q wire.Query
			dst := make([]byte, 4096)
			for running() {
				name := fmt.Sprintf("n%d.example.ORG.", rand.IntN(1+rand.IntN(distinct)))
				msg, err := question(name, nil).Pack()
				if err != nil || q.Parse(msg) != wire.Plain {
					t.Error("query is not plain")
					return
				}
				n, result := current.Load().Engine().Reply(dst, msg, &q, time.Now())
				if result != engine.Success && result != engine.Denial {
					continue
				}
				fast.Add(1)
				m := new(dns.Msg)
				if err := m.Unpack(dst[:n]); err != nil {
					t.Errorf("reply %x: %v", dst[:n], err)
					return
				}
				checkAnswers(t, name, m)
			}
		})
	}
	wg.Go(func() { // sweeps
		for running() {
			e := current.Load().Engine()
			e.Store().Sweep(e.Store().Time(time.Now()))
			if n := e.Store().Bytes(); n > 2*store.MinBytes {
				t.Errorf("%d bytes in use", n)
			}
			time.Sleep(time.Millisecond)
		}
	})
	wg.Go(func() { // reloads
		for i := 1; running(); i++ {
			old := current.Swap(open(i))
			time.Sleep(5 * time.Millisecond)
			old.disown()
		}
	})
	wg.Wait()
	current.Load().disown()
	if served.Load() == 0 || fast.Load() == 0 {
		t.Errorf("%d replies as messages and %d as bytes", served.Load(), fast.Load())
	}
	t.Logf("%d replies as messages, %d as bytes", served.Load(), fast.Load())
}

func checkAnswers(t *testing.T, name string, m *dns.Msg) {
	if m.Question[0].Name != name {
		t.Errorf("asked for %s, answered about %s", name, m.Question[0].Name)
	}
	for _, rr := range m.Answer {
		if a, ok := rr.(*dns.A); !ok || !a.A.Equal(addressOf(name)) || a.Hdr.Name != name {
			t.Errorf("%s has the answer %v", name, rr)
		}
	}
}

// TestMemoryIsBounded sends distinct names through a budget of 32 MiB. The resident set must
// grow by at most 48 MiB.
func TestMemoryIsBounded(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector's own memory is not bounded")
	}
	c := newCache(t, replies(nil), func(c *Cache) { c.size, c.pcap, c.ncap = 32<<20, noCap, noCap })
	c.Next = &upstream{f: func(_ context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
		m := new(dns.Msg)
		m.SetReply(r)
		m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: r.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 3600}, A: addressOf(r.Question[0].Name)}}
		return dns.RcodeSuccess, w.WriteMsg(m)
	}}
	before := residentSet(t)
	most := before
	w := &test.ResponseWriter{}
	for i := range *names {
		r := question("n"+strconv.Itoa(i)+".some.namespace.svc.cluster.local.", nil)
		if _, err := c.ServeDNS(context.Background(), w, r); err != nil {
			t.Fatal(err)
		}
		if i%50_000 == 0 {
			most = max(most, residentSet(t))
		}
	}
	most = max(most, residentSet(t))
	grown := (most - before) / (1 << 20)
	t.Logf("%d names: resident set grew by %d MiB; %d answers in %d bytes", *names, grown, c.Engine().Store().Len(store.Positive), c.Engine().Store().Bytes())
	if grown > 48 {
		t.Errorf("resident set grew by %d MiB, at most 48", grown)
	}
	if n := c.Engine().Store().Bytes(); n > 32<<20 {
		t.Errorf("%d bytes in use, the budget is 32 MiB", n)
	}
}

// residentSet is the process's memory in bytes (proc_pid_statm(5)).
func residentSet(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Fatal(err)
	}
	pages, err := strconv.Atoi(strings.Fields(string(b))[1])
	if err != nil {
		t.Fatal(err)
	}
	return pages * os.Getpagesize()
}
