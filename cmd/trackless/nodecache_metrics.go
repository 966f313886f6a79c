package main

import (
	"errors"
	"net/http"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/plugin"
	clog "github.com/coredns/coredns/plugin/pkg/log"
	"github.com/coredns/coredns/plugin/pkg/reuseport"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Kinds of error as node-cache counts them. Those of rules end the start here,
// and are repaired later, so that they stay 0; dashboards find them all the same.
const (
	errorConfigMap    = "configmap"
	errorInterfaceAdd = "interface_add"
)

var nodeCacheErrorTypes = []string{"iptables", "iptables_lock", errorInterfaceAdd, "interface_check", errorConfigMap}

// nodeCacheErrors is the metric of node-cache itself.
type nodeCacheErrors struct{ total *prometheus.CounterVec }

func newNodeCacheErrors() *nodeCacheErrors {
	e := &nodeCacheErrors{prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: plugin.Namespace,
		Subsystem: "nodecache",
		Name:      "setup_errors_total",
		Help:      "Counter of errors while the node and the Corefile were set up, by their kind.",
	}, []string{"errortype"})}
	for _, t := range nodeCacheErrorTypes {
		e.total.WithLabelValues(t)
	}
	return e
}

func (e *nodeCacheErrors) count(errortype string) { e.total.WithLabelValues(errortype).Inc() }

// serveNodeCacheMetrics registers the metric, which the prometheus plugin shows
// too, and serves all metrics at the address. Two instances may share it while
// one replaces the other. Serving DNS does not depend on it.
func serveNodeCacheMetrics(address string, e *nodeCacheErrors) {
	if err := prometheus.Register(e.total); err != nil {
		clog.Warningf("register metrics: %v", err)
	}
	if address == "" {
		return
	}
	listener, err := reuseport.Listen("tcp", address)
	if err != nil {
		clog.Errorf("-metrics-listen-address %s: %v", address, err)
		return
	}
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.Handler())
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	caddy.OnProcessExit = append(caddy.OnProcessExit, func() { _ = server.Close() })
	go func() {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			clog.Errorf("-metrics-listen-address %s: %v", address, err)
		}
	}()
}
