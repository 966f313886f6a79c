package tally

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/iptables/control"
)

func client(n int) netip.Addr { return netip.AddrFrom4([4]byte{10, 244, byte(n >> 8), byte(n)}) }

// counted runs load while a tally counts.
func counted(t *testing.T, load func(*Tally)) (counts control.QueryCounts) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		tally := &Tally{}
		done := make(chan struct{})
		go func() {
			defer close(done)
			var err error
			if counts, err = tally.During(t.Context(), time.Minute); err != nil {
				t.Error(err)
			}
		}()
		synctest.Wait()
		load(tally)
		<-done
	})
	return counts
}

// texts writes rows as key=queries/misses.
func texts(rows []control.QueryCount) (out []string) {
	for _, r := range rows {
		text := fmt.Sprintf("%s=%d/%d", r.Key, r.Queries, r.Misses)
		if r.Kernel+r.Socket > 0 {
			text += fmt.Sprintf(" early %d+%d", r.Kernel, r.Socket)
		}
		out = append(out, text)
	}
	return out
}

func TestCounts(t *testing.T) {
	counts := counted(t, func(tally *Tally) {
		for i := range 10 {
			q := &Query{Client: client(1), Name: "api.shop.svc.cluster.local.", Type: dns.TypeA}
			if i%2 == 1 {
				q.Name, q.Type, q.Rcode = "Www.Example.org.", dns.TypeAAAA, dns.RcodeNameError
			}
			if i >= 8 {
				q.Client, q.TCP = client(2), true
			}
			if i == 3 {
				tally.Missed(q.Client, q.Name)
			}
			tally.Answered(q)
		}
		tally.Answered(&Query{Client: client(2), Name: "www.example.ORG.", Type: 65280, Rcode: 4000})
		tally.Missed(client(3), "never.answered.example.")
		for range 3 {
			tally.Early(Kernel, client(2))
		}
		tally.Early(Socket, client(4))
	})
	for _, tc := range []struct {
		name string
		rows []control.QueryCount
		want []string
	}{
		{"total", []control.QueryCount{counts.Total}, []string{"=15/2 early 3+1"}},
		{"clients", counts.Clients, []string{"10.244.0.1=8/1", "10.244.0.2=6/0 early 3+0", "10.244.0.4=1/0 early 0+1"}},
		{"names", counts.Names, []string{"www.example.org.=6/1", "api.shop.svc.cluster.local.=5/0", "(fast path)=4/0 early 3+1"}},
		{"zones", counts.Zones, []string{"example.org.=6/1", "shop.svc.cluster.local.=5/0", "(fast path)=4/0 early 3+1"}},
		{"types", counts.Types, []string{"A=5/0", "AAAA=5/0", "(fast path)=4/0 early 3+1", "other=1/0"}},
		{"rcodes", counts.Rcodes, []string{"NOERROR=5/0", "NXDOMAIN=5/0", "(fast path)=4/0 early 3+1", "other=1/0"}},
		{"transports", counts.Transports, []string{"udp=13/0 early 3+1", "tcp=2/0"}},
	} {
		if got := texts(tc.rows); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
	if counts.Seconds != 60 {
		t.Errorf("counted for %v s", counts.Seconds)
	}
}

// The top 20 names and clients are right within 2 %, from several goroutines, beside a flood
// of names that come once and more clients than there is room for.
func TestTheTopIsRight(t *testing.T) {
	want := map[string]uint64{}
	for i := range 200 {
		want[fmt.Sprintf("name-%d.shop.svc.cluster.local.", i)] = uint64(20_000 / (i + 1))
	}
	wantClients := map[string]uint64{}
	var queries []*Query
	for name, n := range want {
		for range n {
			queries = append(queries, &Query{Client: client(rand.IntN(40)), Name: name, Type: dns.TypeA})
		}
	}
	for i := range 100_000 {
		queries = append(queries, &Query{Client: client(i % 20_000), Name: fmt.Sprintf("%x.example.org.", i), Type: dns.TypeA})
	}
	for _, q := range queries {
		wantClients[q.Client.String()]++
	}
	rand.Shuffle(len(queries), func(i, j int) { queries[i], queries[j] = queries[j], queries[i] })
	counts := counted(t, func(tally *Tally) {
		var wg sync.WaitGroup
		for part := range slices.Chunk(queries, len(queries)/4+1) {
			wg.Go(func() {
				for _, q := range part {
					tally.Answered(q)
				}
			})
		}
		wg.Wait()
	})
	for _, tc := range []struct {
		name string
		rows []control.QueryCount
		want map[string]uint64
	}{{"names", counts.Names, want}, {"clients", counts.Clients, wantClients}} {
		top := slices.SortedFunc(maps.Keys(tc.want), func(a, b string) int { return int(tc.want[b]) - int(tc.want[a]) })
		sum := uint64(0)
		for _, r := range tc.rows {
			sum += r.Queries
		}
		if sum != uint64(len(queries)) || len(tc.rows) > maxRows+1 {
			t.Errorf("%s: %d rows add up to %d queries, want %d", tc.name, len(tc.rows), sum, len(queries))
		}
		for _, key := range top[:20] {
			i := slices.IndexFunc(tc.rows, func(r control.QueryCount) bool { return r.Key == key })
			if i < 0 || i > 21 {
				t.Errorf("%s: %s is in place %d", tc.name, key, i)
				continue
			}
			if got := tc.rows[i].Queries; got > tc.want[key] || got*100 < tc.want[key]*98 {
				t.Errorf("%s: %d queries of %s, want %d", tc.name, got, key, tc.want[key])
			}
		}
	}
}

// A flood of keys makes no more memory than the bound.
func TestBounded(t *testing.T) {
	b := newBounded(128, func(k int) int { return k })
	hash := func(k int) uint64 { return uint64(k+1)*0x9e3779b97f4a7c15 | 1 }
	for range 3 {
		for k := range 10_000 {
			b.add(hash(k), k, count{queries: 1})
			b.add(hash(k), k, count{queries: 1})
			b.addMiss(hash(k), k)
		}
	}
	total, keys := b.rest, map[int]bool{}
	b.each(func(k int, c count) {
		keys[k] = true
		total.add(c)
	})
	if len(keys) > 128 || len(keys) != b.used || total != (count{queries: 60_000, misses: 30_000}) {
		t.Errorf("%d keys, %d used, %+v in all", len(keys), b.used, total)
	}
}

// Nobody asks: nothing is kept. One asks at a time, and may go away.
func TestAskers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tally := &Tally{}
		tally.Answered(&Query{Client: client(1), Name: "a."})
		tally.Missed(client(1), "a.")
		if tally.Running() {
			t.Error("it counts for nobody")
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() {
			_, err := tally.During(ctx, time.Hour)
			ended <- err
		}()
		synctest.Wait()
		if _, err := tally.During(t.Context(), time.Second); !errors.Is(err, ErrBusy) {
			t.Errorf("a second asker gets %v", err)
		}
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) || tally.Running() {
			t.Errorf("%v; it still counts: %t", err, tally.Running())
		}
		if counts, err := tally.During(t.Context(), time.Second); err != nil || counts.Total.Queries != 0 {
			t.Errorf("%+v, %v", counts, err)
		}
	})
}

func BenchmarkAnswered(b *testing.B) {
	names := make([]string, 1<<16)
	for i := range names {
		names[i] = fmt.Sprintf("name-%d.shop.svc.cluster.local.", i)
	}
	for _, bc := range []struct {
		name    string
		names   int
		running bool
	}{{"nobody asks", 100, false}, {"100 names", 100, true}, {"a flood of names", 1 << 16, true}} {
		b.Run(bc.name, func(b *testing.B) {
			tally := &Tally{}
			if bc.running {
				tally.current.Store(newSketch())
			}
			q := &Query{Type: dns.TypeA}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				q.Client, q.Name = client(i%50), names[i%bc.names]
				tally.Answered(q)
			}
		})
	}
}
