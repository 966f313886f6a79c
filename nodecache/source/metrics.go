package source

import (
	"errors"
	"net/http"
	"time"

	"github.com/coredns/caddy"
	clog "github.com/coredns/coredns/plugin/pkg/log"
	"github.com/coredns/coredns/plugin/pkg/reuseport"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/trackless-dns/trackless/plugin/notrack"
)

// Kinds of error as node-cache counts them. Those of rules are counted by the
// iptables backend too; the rest stays 0, but dashboards find it all the same.
const (
	errorConfigMap    = "configmap"
	errorIPTables     = "iptables"
	errorInterfaceAdd = "interface_add"
)

var errorTypes = []string{errorIPTables, "iptables_lock", errorInterfaceAdd, "interface_check", errorConfigMap}

// errorCount is the metric of node-cache itself.
type errorCount struct{ total *prometheus.CounterVec }

func newErrorCount() *errorCount {
	e := &errorCount{notrack.SetupErrors}
	for _, t := range errorTypes {
		e.total.WithLabelValues(t)
	}
	return e
}

func (e *errorCount) count(errortype string) { e.total.WithLabelValues(errortype).Inc() }

// serveMetrics serves all metrics at the address. Two instances may
// share it while one replaces the other. Serving DNS does not depend on it.
func serveMetrics(address string) {
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
