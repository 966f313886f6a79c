package fairness

import (
	"github.com/coredns/coredns/plugin"
	"github.com/prometheus/client_golang/prometheus"
)

// topSources is how many sources have series of their own.
const topSources = 10

// ownSource is the label of queries without a client, as of a prefetch.
const ownSource = "cache"

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(prometheus.BuildFQName(plugin.Namespace, directive, name), help, labels, nil)
}

var (
	missesDesc  = desc("misses", "Queries that wait for an upstream: under_way, or waiting for a place.", "state")
	limitDesc   = desc("limit", "Queries that may be under way to upstreams. It is lower while goroutines run late.")
	sourcesDesc = desc("sources", "Clients that have queries under way to upstreams, or waiting.")
	shedDesc    = desc("shed_total", "Queries beyond the share of their client: answered SERVFAIL, dropped, or TCP connections that were closed.", "how")
	thinnedDesc = desc("thinned_sources", "Clients of whose queries the kernel drops a part, since they hold up others.")
	sourceDesc  = desc("source_shed_total", "Queries beyond the share of their client, of the ten clients that lost most.", "source", "name")
)

// collector reads existing figures at each scrape.
type collector struct{}

func init() { prometheus.MustRegister(collector{}) }

// Describe implements prometheus.Collector.
func (collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{missesDesc, limitDesc, sourcesDesc, shedDesc, thinnedDesc, sourceDesc} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (collector) Collect(ch chan<- prometheus.Metric) {
	send := func(d *prometheus.Desc, t prometheus.ValueType, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, t, value, labels...)
	}
	f := Queries.Misses().Figures()
	send(missesDesc, prometheus.GaugeValue, float64(f.UnderWay), "under_way")
	send(missesDesc, prometheus.GaugeValue, float64(f.Waiting), "waiting")
	send(limitDesc, prometheus.GaugeValue, float64(f.Limit))
	send(sourcesDesc, prometheus.GaugeValue, float64(f.Sources))
	send(shedDesc, prometheus.CounterValue, float64(f.Shed), "servfail")
	send(shedDesc, prometheus.CounterValue, float64(Queries.Dropped()), "dropped")
	send(shedDesc, prometheus.CounterValue, float64(Queries.ClosedConnections()), "closed")
	send(thinnedDesc, prometheus.GaugeValue, float64(Queries.Thinned()))
	for _, o := range Queries.Offenders.Top(topSources) {
		source := ownSource
		if o.Source.IsValid() {
			source = o.Source.String()
		}
		send(sourceDesc, prometheus.CounterValue, float64(o.Lost), source, o.Name)
	}
}
