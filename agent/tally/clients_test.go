package tally

import (
	"fmt"
	"maps"
	"net/netip"
	"sync"
	"testing"
)

// taken returns what a call of Take tells.
func taken(c *Clients) (counts map[netip.Addr]uint64, rest uint64) {
	counts = map[netip.Addr]uint64{}
	rest = c.Take(func(a netip.Addr, n uint64) { counts[a] += n })
	return counts, rest
}

// Each query is taken once, whichever way it was answered, and none without Start.
func TestClients(t *testing.T) {
	tally := &Tally{}
	ask := func() {
		tally.Clients.Add(client(1))
		tally.Answered(&Query{Client: client(1), Name: "a."}) // which Add has counted
		tally.Clients.Add(client(1))
		tally.Early(Kernel, client(2))
		tally.Early(Socket, client(1))
		tally.Missed(client(3), "a.")
	}
	for _, step := range []struct {
		name   string
		before func()
		asks   int
		want   map[netip.Addr]uint64
	}{
		{"not started", func() {}, 1, nil},
		{"started", tally.Clients.Start, 2, map[netip.Addr]uint64{client(1): 6, client(2): 2}},
		{"nobody asked since", func() {}, 0, nil},
		{"asked again", func() {}, 1, map[netip.Addr]uint64{client(1): 3, client(2): 1}},
		{"stopped", tally.Clients.Stop, 1, nil},
		{"started again", tally.Clients.Start, 0, nil},
	} {
		step.before()
		for range step.asks {
			ask()
		}
		if got, rest := taken(&tally.Clients); !maps.Equal(got, step.want) || rest != 0 {
			t.Errorf("%s: %v and %d, want %v", step.name, got, rest, step.want)
		}
		if tally.Running() {
			t.Errorf("%s: it counts for an asker too", step.name)
		}
	}
}

// No query is lost or counted twice while others ask and a flood of clients comes. The
// clients that ask most are exact, but for one query each time.
func TestClientsInAFlood(t *testing.T) {
	const steady, each, flood, takes = 20, 5000, 100_000, 50
	c := &Clients{}
	c.Start()
	var asking sync.WaitGroup
	for part := range 4 {
		asking.Go(func() {
			for i := range flood / 4 {
				c.Add(netip.AddrFrom4([4]byte{192, byte(part), byte(i >> 8), byte(i)}))
				if i < each*steady/4 {
					c.Add(client(i % steady))
				}
			}
		})
	}
	got, most, sum := map[netip.Addr]uint64{}, 0, uint64(0)
	take := func() {
		counts, rest := taken(c)
		most = max(most, len(counts))
		sum += rest
		for a, n := range counts {
			got[a] += n
			sum += n
		}
	}
	for range takes {
		take()
	}
	asking.Wait()
	take()
	if sum != flood+each*steady || most > shards*maxClients {
		t.Errorf("%d queries, want %d; %d clients at once", sum, flood+each*steady, most)
	}
	for n := range steady {
		if got := got[client(n)]; got > each || got < each-takes-1 {
			t.Errorf("%d queries of client %d, want %d", got, n, each)
		}
	}
}

// A scrape takes the counts of as many clients as there may be.
func BenchmarkTake(b *testing.B) {
	c := &Clients{}
	c.Start()
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		for i := range 2 * shards * maxClients {
			c.Add(client(i / 2))
		}
		b.StartTimer()
		c.Take(func(netip.Addr, uint64) {})
	}
}

func BenchmarkAdd(b *testing.B) {
	for _, started := range []bool{false, true} {
		b.Run(fmt.Sprintf("started %t", started), func(b *testing.B) {
			c := &Clients{}
			if started {
				c.Start()
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				c.Add(client(i % 50))
			}
		})
	}
}
