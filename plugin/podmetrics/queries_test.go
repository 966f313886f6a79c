package podmetrics

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/common/expfmt"

	"github.com/trackless-dns/trackless/agent/tally"
	"github.com/trackless-dns/trackless/conntrack/groups"
	"github.com/trackless-dns/trackless/internal/testgolden"
	"github.com/trackless-dns/trackless/kubeapi/names"
)

const queriesTotal = "coredns_podmetrics_queries_total"

// asked returns a counter without a watch of pods, and what counts for it.
func asked(tb testing.TB, top int) (*counter, *tally.Tally) {
	t, c := &tally.Tally{}, newCounter()
	c.queries.source = &t.Clients
	c.top.Store(int64(top))
	c.queries.start()
	tb.Cleanup(c.queries.stop)
	return c, t
}

// ask counts n queries of a client, of which the kernel answers every third.
func ask(t *tally.Tally, client netip.Addr, n int) {
	for i := range n {
		if i%3 == 2 {
			t.Early(tally.Kernel, client)
			continue
		}
		t.Clients.Add(client)
	}
}

func know(c *counter, pods map[netip.Addr]names.Owner) { c.pods.Store(&pods) }

// A series starts at zero, or where it ended. Queries that count for no pod's series count
// for the rest.
func TestQueries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, tally := asked(t, 2)
		node := map[netip.Addr]names.Owner{netip.MustParseAddr("192.0.2.1"): {Kind: names.Node}}
		c.node.Store(&node)
		six := netip.MustParseAddr("fd00::1")
		known := func(pods ...int) map[netip.Addr]names.Owner {
			m := owners(pods)
			m[six] = m[podAddress(1)]
			return m
		}
		for _, step := range []struct {
			name  string
			after time.Duration
			pods  map[netip.Addr]names.Owner
			asks  map[netip.Addr]int
			want  string
		}{
			{"nobody asked", 0, nil, nil, "/(rest)=0"},
			{"names are not known yet", 0, nil, map[netip.Addr]int{podAddress(1): 10}, "/(rest)=10 /10.244.0.1=0"},
			{"they are now", 0, known(1, 2, 3), map[netip.Addr]int{podAddress(1): 10, podAddress(2): 20}, "/(rest)=40 shop/pod-1=0 shop/pod-2=0"},
			{"both addresses of a pod", 0, known(1, 2, 3), map[netip.Addr]int{podAddress(1): 10, six: 7, podAddress(2): 20}, "/(rest)=40 shop/pod-1=17 shop/pod-2=20"},
			{"not more than another", 0, known(1, 2, 3), map[netip.Addr]int{podAddress(3): 30}, "/(rest)=70 shop/pod-1=17 shop/pod-2=20"},
			{"more than another", 0, known(1, 2, 3), map[netip.Addr]int{podAddress(3): 30}, "/(rest)=100 shop/pod-2=20 shop/pod-3=0"},
			{"the series of one that left", 0, known(1, 2, 3), map[netip.Addr]int{podAddress(1): 100, podAddress(3): 5}, "/(rest)=200 shop/pod-1=17 shop/pod-3=5"},
			{"goes on", 0, known(1, 2, 3), map[netip.Addr]int{podAddress(1): 3}, "/(rest)=200 shop/pod-1=20 shop/pod-3=5"},
			{"a pod that has ended since", 0, known(1, 2), map[netip.Addr]int{podAddress(3): 3}, "/(rest)=200 shop/pod-1=20 shop/pod-3=8"},
			{"new ones after an hour", time.Hour, known(1, 2), map[netip.Addr]int{
				netip.MustParseAddr("192.0.2.1"): 20, netip.MustParseAddr("127.0.0.1"): 20, netip.MustParseAddr("10.1.1.1"): 9,
			}, "/(node)=0 /(rest)=249 /10.1.1.1=0"},
			{"silent for hours", 4 * time.Hour, known(1, 2), nil, "/(rest)=249"},
		} {
			time.Sleep(step.after)
			know(c, step.pods)
			for client, n := range step.asks {
				ask(tally, client, n)
			}
			if got := strings.Join(scrape(t, c, queriesTotal), " "); got != step.want {
				t.Errorf("%s: %s, want %s", step.name, got, step.want)
			}
		}
	})
}

// No query is counted without a server block.
func TestQueriesAreCountedForABlock(t *testing.T) {
	counted := &tally.Tally{}
	c := newCounter()
	c.queries.source = &counted.Clients
	c.watch = func(context.Context, func(map[netip.Addr]names.Owner)) {}
	c.read = func(_ context.Context, book *names.Book) (*groups.Collector, error) {
		return groups.New(book, groups.Pod), nil
	}
	check := func(name string, running bool, want int) {
		t.Helper()
		ask(counted, podAddress(1), 1)
		if got := len(scrape(t, c, queriesTotal)); got != want || counted.Clients.Running() != running {
			t.Errorf("%s: %d series, counted %t", name, got, counted.Clients.Running())
		}
	}
	check("before", false, 0)
	c.start(5)
	check("with a block", true, 2)
	c.start(5) // a reload
	c.stop()
	check("after a reload", true, 2)
	c.stop()
	check("after the end", false, 0)
}

// In a churn of 5,000 pods there are no more than N + 1 series, none falls, also when a pod
// comes back, and all together have every query.
func TestQueriesInAChurn(t *testing.T) {
	const top, readings = 20, 200
	synctest.Test(t, func(t *testing.T) {
		c, tally := asked(t, top)
		random := rand.New(rand.NewPCG(1, 2))
		last, before, total := map[string]float64{}, map[string]bool{}, 0
		left, back := map[string]bool{}, 0
		for i := range readings {
			// A window of 250 pods moves over 5,000 and back.
			from := 1 + min(i, readings-i)*4750/(readings/2)
			pods := numbers(from, 250)
			know(c, owners(pods))
			for _, n := range pods {
				queries := random.IntN(4)
				if n%50 == i/5%50 || n%7 == 0 && random.IntN(5) == 0 {
					queries += 20 + random.IntN(100)
				}
				total += queries
				ask(tally, podAddress(n), queries)
			}
			time.Sleep(30 * time.Second)
			series := scrape(t, c, queriesTotal)
			if len(series) > top+1 {
				t.Fatalf("%d series", len(series))
			}
			now, sum := map[string]bool{}, 0.0
			for _, s := range series {
				var value float64
				name, text, _ := strings.Cut(s, "=")
				if _, err := fmt.Sscan(text, &value); err != nil {
					t.Fatal(err)
				}
				if value < last[name] {
					t.Fatalf("%s fell from %v to %v", name, last[name], value)
				}
				if left[name] && !before[name] && value > 0 {
					back++
				}
				last[name], now[name] = value, true
			}
			for name := range before {
				left[name] = left[name] || !now[name]
			}
			before = now
			for _, value := range last {
				sum += value
			}
			if int(sum) != total {
				t.Fatalf("reading %d: %v queries in all series, want %d", i, sum, total)
			}
		}
		if len(last) < 100 || back < 10 {
			t.Errorf("%d pods had series, %d came back: that is no churn", len(last), back)
		}
	})
}

// A flood of addresses takes bounded memory, and a pod without a series keeps its total.
func TestQueriesAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, tally := asked(t, 1)
		know(c, owners(numbers(1, 2)))
		for range 2 {
			ask(tally, podAddress(1), 100)
			scrape(t, c, "")
		}
		for range 2 {
			ask(tally, podAddress(2), 1000)
			scrape(t, c, "")
		}
		for i := range 20 {
			for n := range 2000 {
				ask(tally, netip.AddrFrom4([4]byte{192, byte(i), byte(n >> 8), byte(n)}), 2)
			}
			scrape(t, c, "")
			if n := len(c.queries.pods); n > maxKept {
				t.Fatalf("%d pods are kept", n)
			}
		}
		ask(tally, podAddress(1), 5000)
		if got := strings.Join(scrape(t, c, queriesTotal), " "); got != "/(rest)=86100 shop/pod-1=100" {
			t.Error(got)
		}
	})
}

// The page as Prometheus gets it.
func TestPage(t *testing.T) {
	c, tally := asked(t, 2)
	pods := numbers(1, 3)
	know(c, owners(pods))
	rows := table(names.New(owners(pods)), pods, func(n int) int { return 2 * n }).Rows(groups.Pod)
	c.latest.Store(&rows)
	for range 2 {
		for _, n := range pods {
			ask(tally, podAddress(n), 10*n)
		}
		scrape(t, c, "")
	}
	registry := lintable(t, c)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var page bytes.Buffer
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(&page, f); err != nil {
			t.Fatal(err)
		}
	}
	testgolden.Compare(t, "metrics.txt", page.String())
	if problems, err := testutil.GatherAndLint(registry); err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
}

// A scrape after each of as many clients as are told apart has asked: those of a node with
// 250 pods, and those of a flood.
func BenchmarkScrapeOfQueries(b *testing.B) {
	for _, clients := range []int{250, 5000} {
		b.Run(fmt.Sprint(clients), func(b *testing.B) {
			c, tally := asked(b, 20)
			pods := numbers(1, clients)
			know(c, owners(pods))
			registry := prometheus.NewRegistry()
			registry.MustRegister(c)
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				for _, n := range pods {
					ask(tally, podAddress(n), 3)
				}
				b.StartTimer()
				if _, err := registry.Gather(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
