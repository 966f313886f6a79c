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
