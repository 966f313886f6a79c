package upstream

import (
	"github.com/coredns/coredns/plugin"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// known counts the addresses. coredns_proxy_* with proxy_name="upstream" shows how they
// answer.
var known = promauto.NewGaugeVec(prometheus.GaugeOpts{
	Namespace: plugin.Namespace,
	Subsystem: directive,
	Name:      "addresses",
	Help:      "The number of addresses known of an upstream.",
}, []string{"upstream"})

var (
	retries = promauto.NewCounterVec(prometheus.CounterOpts{
		Namespace: plugin.Namespace,
		Subsystem: directive,
		Name:      "retries_total",
		Help:      "Tries of a query after the first one: after an error, after an answer with a response code of failover, or beside a try whose answer was late.",
	}, []string{"upstream", "reason"})
	rejects = promauto.NewCounterVec(prometheus.CounterOpts{
		Namespace: plugin.Namespace,
		Subsystem: directive,
		Name:      "max_concurrent_rejects_total",
		Help:      "Queries refused because max_concurrent was reached.",
	}, []string{"upstream"})
)
