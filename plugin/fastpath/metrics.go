package fastpath

import (
	"cmp"
	"time"

	"github.com/coredns/coredns/plugin"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/trackless-dns/trackless/fastpath/kernel"
	"github.com/trackless-dns/trackless/iptables/control"
	cachemetrics "github.com/trackless-dns/trackless/plugin/cache/metrics"
	"github.com/trackless-dns/trackless/plugin/querymetrics"
)

var (
	blockInfo = promauto.NewGaugeVec(prometheus.GaugeOpts{
		Namespace: plugin.Namespace, Subsystem: directive, Name: "info",
		Help: "Whether fast paths answer for a server block: 1 if they may, and 0 with the reason if not.",
	}, []string{"server", "reason"})

	requestsTotal = promauto.NewCounterVec(prometheus.CounterOpts{
		Namespace: plugin.Namespace, Subsystem: directive, Name: "requests_total",
		Help: "Counter of queries that a fast path has answered.",
	}, []string{"server", "result"})
)

func init() { prometheus.MustRegister(collector{&process, &sockets}) }

// report shows for which server blocks fast paths answer, and logs why some are not
// eligible. Problem is why no block is answered, or empty.
func report(blocks []*decided, problem string) {
	blockInfo.Reset()
	for _, d := range blocks {
		reason := cmp.Or(d.policy.Reason, problem)
		answers := 0.0
		if reason == "" {
			answers = 1
		}
		if !d.policy.Eligible() {
			log.Infof("%s: CoreDNS answers all queries: %s", d.keys, d.policy.Reason)
		}
		for _, at := range d.listen {
			blockInfo.WithLabelValues(serverAt(at), reason).Set(answers)
		}
	}
}

// counters are the metrics of one class of queries.
type counters struct {
	queries *querymetrics.Batch // nil: the block has no prometheus
	cache   *cachemetrics.Counters
	denial  bool
	hits    prometheus.Counter
}

// Add implements fastpath.Counters.
func (c *counters) Add(n uint64, edns, ipv6 bool) {
	if c.queries != nil {
		c.queries.Add(n, edns, ipv6)
	}
	c.cache.Hits(n, c.denial)
	c.hits.Add(float64(n))
}

// counter are the metrics of one kind of queries that are answered at a socket.
type counter struct {
	queries *querymetrics.Counter // nil: the block has no prometheus
	cache   *cachemetrics.Counters
	denial  bool
	hits    prometheus.Counter
}

// Add implements socket.Counter.
func (c *counter) Add(query, reply int, took time.Duration) {
	if c.queries != nil {
		c.queries.Add(query, reply, took)
	}
	c.cache.Hits(1, c.denial)
	c.hits.Inc()
}

// collector reads the counts of the kernel and of the sockets at each scrape.
type collector struct {
	running *running
	sockets *tier
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(prometheus.BuildFQName(plugin.Namespace, directive, name), help, labels, nil)
}

var (
	puntsDesc   = desc("punts_total", "Counter of queries that the kernel left to CoreDNS, by reason.", "reason")
	lostDesc    = desc("unreported_total", "Counter of queries that the kernel has answered and that the ledger does not know.")
	devicesDesc = desc("devices", "The number of pods' devices, by how the program is attached; none: CoreDNS answers.", "attached")
	leftDesc    = desc("device_left_info", "A device where CoreDNS answers instead of the kernel, or another program may, with the reason.", "device", "reason")
	socketsDesc = desc("sockets", "The number of sockets for cached answers at a listen address.", "server")
	steeredDesc = desc("sockets_steered", "Whether the kernel gives the queries of clients to these sockets: 1 if it does, and 0 if they are spread over all sockets at the address.", "server")
	passedDesc  = desc("sockets_passed_total", "Counter of queries at these sockets that were left to CoreDNS.", "server")
	droppedDesc = desc("sockets_dropped_total", "Counter of queries at these sockets that were dropped, since CoreDNS did not take them in time.", "server")
	recordsDesc = desc("records", "The number of answers that the kernel has.")
)

// Describe implements prometheus.Collector.
func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{puntsDesc, lostDesc, devicesDesc, leftDesc, recordsDesc, socketsDesc, steeredDesc, passedDesc, droppedDesc} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	c.sockets.collect(ch)
	c.running.mu.Lock()
	defer c.running.mu.Unlock()
	p := c.running.path
	if p == nil {
		return
	}
	for i, reason := range kernel.Passes {
		if n, err := p.program.Passed(i); err == nil && i > 0 {
			ch <- prometheus.MustNewConstMetric(puntsDesc, prometheus.CounterValue, float64(n), reason)
		}
	}
	if n, err := p.program.Unreported(); err == nil {
		ch <- prometheus.MustNewConstMetric(lostDesc, prometheus.CounterValue, float64(n))
	}
	ch <- prometheus.MustNewConstMetric(recordsDesc, prometheus.GaugeValue, float64(p.publisher.Len()))
	attached := map[string]int{"tcx": 0, "clsact": 0, "none": 0}
	for _, d := range p.watcher.Devices() {
		how := d.Attached
		if how == "" {
			how = "none"
		}
		attached[how]++
		if d.Problem != "" {
			ch <- prometheus.MustNewConstMetric(leftDesc, prometheus.GaugeValue, 1, d.Name, d.Problem)
		}
	}
	for how, n := range attached {
		ch <- prometheus.MustNewConstMetric(devicesDesc, prometheus.GaugeValue, float64(n), how)
	}
}

// status implements control.Status's FastPath.
func (r *running) status() *control.FastPath {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.current == nil {
		return nil
	}
	s := &control.FastPath{Problem: r.problem, Devices: []control.FastPathDevice{}, Blocks: []control.FastPathBlock{}}
	for _, b := range r.blocks {
		s.Blocks = append(s.Blocks, control.FastPathBlock{Block: b.keys, Reason: b.policy.Reason})
	}
	p := r.path
	if p == nil {
		return s
	}
	if info, err := p.program.BPF().Info(); err == nil {
		id, _ := info.ID()
		s.Program = uint32(id)
	}
	s.Answers = p.publisher.Len()
	for class := range uint16(p.program.Classes()) {
		n, err := p.program.Hits(class)
		if err != nil {
			break
		}
		for _, hits := range n {
			s.Hits += hits
		}
	}
	for _, d := range p.watcher.Devices() {
		s.Devices = append(s.Devices, control.FastPathDevice{Device: d.Name, Attached: d.Attached, Reason: d.Problem})
	}
	return s
}

// collect sends the metrics of the sockets.
func (t *tier) collect(ch chan<- prometheus.Metric) {
	groups := t.groups.Load()
	if groups == nil {
		return
	}
	for _, g := range *groups {
		server, counts, steered := serverAt(g.At()), g.Counts(), 0.0
		if g.Steered() {
			steered = 1
		}
		ch <- prometheus.MustNewConstMetric(socketsDesc, prometheus.GaugeValue, float64(g.Len()), server)
		ch <- prometheus.MustNewConstMetric(steeredDesc, prometheus.GaugeValue, steered, server)
		ch <- prometheus.MustNewConstMetric(passedDesc, prometheus.CounterValue, float64(counts.Passed), server)
		ch <- prometheus.MustNewConstMetric(droppedDesc, prometheus.CounterValue, float64(counts.Dropped), server)
	}
}
