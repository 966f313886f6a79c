package upstream

import (
	"github.com/coredns/coredns/plugin"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// known is how many addresses were told last. How they answer is in
// coredns_proxy_*, with proxy_name="upstream".
var known = promauto.NewGaugeVec(prometheus.GaugeOpts{
	Namespace: plugin.Namespace,
	Subsystem: directive,
	Name:      "addresses",
	Help:      "The number of addresses known of an upstream.",
}, []string{"upstream"})

// retries and rejects are what forward has as well, and why.
var (
	retries = promauto.NewCounterVec(prometheus.CounterOpts{
		Namespace: plugin.Namespace,
		Subsystem: directive,
		Name:      "retries_total",
		Help:      "Tries of a query after the first: after an error, after an answer with a code of failover, or beside a try whose answer was late.",
	}, []string{"upstream", "reason"})
	rejects = promauto.NewCounterVec(prometheus.CounterOpts{
		Namespace: plugin.Namespace,
		Subsystem: directive,
		Name:      "max_concurrent_rejects_total",
		Help:      "Queries refused because max_concurrent was reached.",
	}, []string{"upstream"})
)
