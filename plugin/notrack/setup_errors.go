package notrack

import (
	"github.com/coredns/coredns/plugin"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// SetupErrors counts failures to change the node, under node-cache's name for the metric:
// "iptables_lock" where another program holds the xtables lock, "iptables" for other
// failures of iptables' programs.
var SetupErrors = promauto.NewCounterVec(prometheus.CounterOpts{
	Namespace: plugin.Namespace,
	Subsystem: "nodecache",
	Name:      "setup_errors_total",
	Help:      "Counter of errors while the node and the Corefile were set up, by their kind.",
}, []string{"errortype"})

func init() {
	for _, t := range []string{"iptables", "iptables_lock"} {
		SetupErrors.WithLabelValues(t)
	}
}
