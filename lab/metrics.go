package lab

import (
	"context"
	"fmt"
	"net"
	"net/http"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// Metrics are what a server's prometheus plugin shows, by metric name.
type Metrics map[string]*dto.MetricFamily

// Sum adds up the counters, gauges and untyped values of a metric over all
// label sets. It is false if the server has no such metric.
func (m Metrics) Sum(name string) (float64, bool) {
	family, ok := m[name]
	if !ok {
		return 0, false
	}
	sum := 0.0
	for _, metric := range family.GetMetric() {
		sum += metric.GetCounter().GetValue() + metric.GetGauge().GetValue() + metric.GetUntyped().GetValue()
	}
	return sum, true
}

// Metrics scrapes the server at the address and port of its prometheus
// directive, from inside the server's namespace.
func (s *Server) Metrics(ctx context.Context, address string) (Metrics, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/metrics", nil)
	if err != nil {
		return nil, fmt.Errorf("scrape %s: %w", s.name, err)
	}
	response, err := s.client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("scrape %s: %w", s.name, err)
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("scrape %s at %s: %s", s.name, address, response.Status)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(response.Body)
	if err != nil {
		return nil, fmt.Errorf("scrape %s at %s: %w", s.name, address, err)
	}
	return families, nil
}

// httpClient returns a client whose connections begin inside the namespace.
func (ns *Namespace) httpClient() *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			var conn net.Conn
			err := ns.Do(func() error {
				var err error
				conn, err = new(net.Dialer).DialContext(ctx, network, address)
				return err
			})
			return conn, err
		},
	}}
}
