package podmetrics

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coredns/caddy"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/conntrack/groups"
	"github.com/trackless-dns/trackless/internal/testwait"
	"github.com/trackless-dns/trackless/kubeapi/names"
)

func TestParse(t *testing.T) {
	for _, tc := range []struct {
		text  string
		want  int
		fails string
	}{
		{"podmetrics", 20, ""},
		{"podmetrics 5", 5, ""},
		{"podmetrics 0", 0, "from 1 to 1000"},
		{"podmetrics 1001", 0, "from 1 to 1000"},
		{"podmetrics many", 0, "from 1 to 1000"},
		{"podmetrics 5 6", 0, "want `podmetrics [N]`"},
		{"podmetrics {\n top 5\n}", 0, "want `podmetrics [N]`"},
		{"podmetrics 5\npodmetrics", 0, "only one podmetrics directive"},
	} {
		got, err := parse(caddy.NewTestController("dns", tc.text))
		if got != tc.want || (err != nil) != (tc.fails != "") || err != nil && !strings.Contains(err.Error(), tc.fails) {
			t.Errorf("%q: %d, %v; want %d, %q", tc.text, got, err, tc.want, tc.fails)
		}
	}
}

// The README has the directive as it is parsed.
func TestReadme(t *testing.T) {
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, example, _ := strings.Cut(string(text), "~~~ corefile\n. {\n")
	line, _, ok := strings.Cut(example, "\n")
	if _, err := parse(caddy.NewTestController("dns", line)); err != nil || !ok {
		t.Errorf("%q: %v", line, err)
	}
}

// table counts flows from pods with these numbers, pod n with entries(n) of them, half of
// them DNS.
func table(book *names.Book, pods []int, entries func(n int) int) *groups.Collector {
	c := groups.New(book, groups.Pod)
	e := &conntrack.Entry{}
	for _, n := range pods {
		for i := range entries(n) {
			e.Original = conntrack.Tuple{Src: podAddress(n), Dst: netip.MustParseAddr("192.0.2.1"), DstPort: uint16(53 + i%2), Proto: conntrack.UDP}
			e.Reply = e.Original.Mirror()
			_ = c.Add(e)
		}
	}
	return c
}

func podAddress(n int) netip.Addr { return netip.AddrFrom4([4]byte{10, 244, byte(n >> 8), byte(n)}) }

func owners(pods []int) map[netip.Addr]names.Owner {
	out := map[netip.Addr]names.Owner{}
	for _, n := range pods {
		out[podAddress(n)] = names.Owner{Kind: names.Pod, Namespace: "shop", Name: fmt.Sprintf("pod-%d", n)}
	}
	return out
}

func numbers(from, n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = from + i
	}
	return out
}

// scrape returns the series of a metric.
func scrape(t *testing.T, c prometheus.Collector, metric string) []string {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(c)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var series []string
	for _, f := range families {
		if f.GetName() != metric {
			continue
		}
		for _, m := range f.GetMetric() {
			series = append(series, fmt.Sprintf("%s/%s=%v", m.GetLabel()[1].GetValue(), m.GetLabel()[0].GetValue(), m.GetGauge().GetValue()+m.GetCounter().GetValue()))
		}
	}
	return series
}

// faked returns a counter of a table that the test has.
func faked(pods []int, read func(book *names.Book) (*groups.Collector, error)) *counter {
	c := newCounter()
	c.rest = time.Millisecond
	c.read = func(_ context.Context, book *names.Book) (*groups.Collector, error) { return read(book) }
	c.watch = func(_ context.Context, tell func(map[netip.Addr]names.Owner)) { tell(owners(pods)) }
	return c
}

func TestMetrics(t *testing.T) {
	pods := numbers(1, 3)
	c := faked(pods, func(book *names.Book) (*groups.Collector, error) {
		return table(book, numbers(1, 4), func(n int) int { return 10 - 2*n }), nil
	})
	if got := scrape(t, c, "coredns_conntrack_pod_entries"); got != nil {
		t.Errorf("exported without the directive: %v", got)
	}
	c.start(2)
	want := "/(rest)=6 shop/pod-1=8 shop/pod-2=6"
	testwait.Until(t, time.Minute, want, func() error {
		if got := strings.Join(scrape(t, c, "coredns_conntrack_pod_entries"), " "); got != want {
			return errors.New(got)
		}
		return nil
	})
	if got := strings.Join(scrape(t, c, "coredns_conntrack_pod_dns_entries"), " "); got != "/(rest)=3 shop/pod-1=4 shop/pod-2=3" {
		t.Errorf("DNS: %s", got)
	}
	// A reload starts the next configuration before it stops the last one.
	c.start(10)
	c.stop()
	want = "/10.244.0.4=2 shop/pod-1=8 shop/pod-2=6 shop/pod-3=4"
	testwait.Until(t, time.Minute, want, func() error {
		if got := strings.Join(scrape(t, c, "coredns_conntrack_pod_entries"), " "); got != want {
			return errors.New(got)
		}
		return nil
	})
	if got, unknown := c.podAt(netip.MustParseAddr("10.244.0.1")), c.podAt(netip.MustParseAddr("10.244.0.4")); got != "shop/pod-1" || unknown != "" {
		t.Errorf("the pods are called %q and %q", got, unknown)
	}
	if problems, err := testutil.GatherAndLint(lintable(t, c)); err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
	c.stop()
	if got := scrape(t, c, "coredns_conntrack_pod_entries"); got != nil {
		t.Errorf("exported after the end: %v", got)
	}
	if got := c.podAt(netip.MustParseAddr("10.244.0.1")); got != "" {
		t.Errorf("after the end a pod is called %q", got)
	}
}

func lintable(t *testing.T, c prometheus.Collector) prometheus.Gatherer {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(c)
	return registry
}

// A churn of 5,000 pods makes no more than N + 1 series.
func TestSeriesAreBounded(t *testing.T) {
	c := newCounter()
	c.top.Store(20)
	for from := 1; from < 5000; from += 250 {
		pods := numbers(from, 250)
		rows := table(names.New(owners(pods)), pods, func(n int) int { return 1 + n%7 }).Rows(groups.Pod)
		c.latest.Store(&rows)
		for _, metric := range []string{"coredns_conntrack_pod_entries", "coredns_conntrack_pod_dns_entries"} {
			if n := len(scrape(t, c, metric)); n != 21 {
				t.Fatalf("%d series of %s", n, metric)
			}
		}
	}
}

// Nobody scrapes: nothing is read. A table that cannot be read leaves the last figures.
func TestReadsAfterAScrape(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var reads atomic.Int32
		c := faked(nil, func(book *names.Book) (*groups.Collector, error) {
			if reads.Add(1) > 1 {
				return nil, os.ErrPermission
			}
			return table(book, []int{1}, func(int) int { return 1 }), nil
		})
		c.rest = shortestRest
		c.start(2)
		defer c.stop()
		for _, step := range []struct {
			name    string
			wait    time.Duration
			scraped bool
			want    int32 // readings since the start
		}{
			{"without a scrape", time.Hour, false, 0},
			{"after a scrape", 0, true, 1},
			{"again too soon", shortestRest / 2, true, 1},
			{"after the rest", shortestRest, false, 2},
			{"without a further scrape", time.Hour, false, 2},
		} {
			if step.scraped {
				scrape(t, c, "")
			}
			time.Sleep(step.wait)
			synctest.Wait()
			if got := reads.Load(); got != step.want {
				t.Errorf("%s: %d readings, want %d", step.name, got, step.want)
			}
		}
		if got := scrape(t, c, "coredns_conntrack_pod_entries"); len(got) != 1 || got[0] != "/10.244.0.1=1" {
			t.Errorf("series %v", got)
		}
	})
}

// Only the first of several failures is logged, but again after a reading that worked.
func TestFailuresAreLoggedOnce(t *testing.T) {
	var logged int
	c := newCounter()
	c.complain = true
	c.warn = func(string, ...any) { logged++ }
	for i, step := range []struct {
		fails bool
		want  int
	}{{false, 0}, {true, 1}, {true, 1}, {false, 1}, {true, 2}} {
		c.read = func(_ context.Context, book *names.Book) (*groups.Collector, error) {
			if step.fails {
				return nil, os.ErrPermission
			}
			return groups.New(book, groups.Pod), nil
		}
		c.count(t.Context(), names.New(nil, nil))
		if logged != step.want {
			t.Errorf("step %d: %d lines, want %d", i, logged, step.want)
		}
	}
}

func BenchmarkScrape(b *testing.B) {
	c := newCounter()
	c.top.Store(20)
	pods := numbers(1, 5000)
	rows := table(names.New(owners(pods)), pods, func(int) int { return 1 }).Rows(groups.Pod)
	c.latest.Store(&rows)
	registry := prometheus.NewRegistry()
	registry.MustRegister(c)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := registry.Gather(); err != nil {
			b.Fatal(err)
		}
	}
}
