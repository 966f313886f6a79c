package fastpath

import (
	"testing"
	"time"

	"github.com/coredns/coredns/plugin/metrics"
	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/trackless-dns/trackless/fastpath/socket"
	"github.com/trackless-dns/trackless/plugin/cache"
)

// A hit at a socket is counted in all metrics, and that allocates nothing.
func TestHitsAreCounted(t *testing.T) {
	const server = "dns://127.0.0.1:5399"
	c := cache.New()
	d := &decided{cache: c, metrics: metrics.New("localhost:0")}
	counter := d.counterAt(server)(socket.Kind{Zone: ".", Type: dns.TypeA, DO: true, Denial: true})
	count := func() map[string]float64 {
		return map[string]float64{
			"of the cache":     testutil.ToFloat64(c.Counters(server).Requests),
			"of the fast path": testutil.ToFloat64(requestsTotal.WithLabelValues(server, "socket")),
		}
	}
	before := count()
	counter.Add(40, 90, 20*time.Microsecond)
	for name, now := range count() {
		if got := now - before[name]; got != 1 {
			t.Errorf("%s: %v queries", name, got)
		}
	}
	if n := testing.AllocsPerRun(1000, func() { counter.Add(40, 90, 20*time.Microsecond) }); n > 0 {
		t.Errorf("a hit that is counted allocates %v times", n)
	}
}
