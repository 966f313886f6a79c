package measure

import (
	"context"
	"fmt"
	"net/netip"
	"net/url"
	"time"

	"github.com/trackless-dns/trackless/node/advice"
	"github.com/trackless-dns/trackless/node/host"
)

// metricsTimeout bounds the question to a Trackless that may not be there.
const metricsTimeout = 500 * time.Millisecond

// CheckMetrics refuses a --metrics that cannot be asked.
func CheckMetrics(metrics string) error {
	if metrics == "auto" || metrics == "off" {
		return nil
	}
	u, err := url.Parse(metrics)
	if err == nil {
		_, err = netip.ParseAddr(u.Hostname())
	}
	if err != nil || u.Scheme != "http" {
		return fmt.Errorf("--metrics %q: it takes auto, off, or http:// with an address, such as http://127.0.0.1:9253/metrics", metrics)
	}
	return nil
}

// measureSaved asks the Trackless of this node what it saves: at the given
// URL, or with "auto" where it usually answers, if a cache listens at all.
func (m *Node) measureSaved(ctx context.Context, metrics string) {
	var urls []string
	switch metrics {
	case "off":
		return
	case "auto":
		if len(m.Listeners) == 0 {
			return
		}
		for _, a := range append([]netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}, m.Listeners...) {
			urls = append(urls, "http://"+netip.AddrPortFrom(a, 9253).String()+"/metrics")
		}
	default:
		urls = []string{metrics}
	}
	ctx, cancel := context.WithTimeout(ctx, metricsTimeout)
	defer cancel()
	var failed error
	for _, url := range urls {
		saved, err := host.Saved(ctx, url)
		if err == nil {
			m.Avoided = &saved.Entries
			m.Search = advice.Search{Queries: saved.Queries, OnPath: saved.Search, Cut: saved.Cut, OnePass: saved.OnePass}
			return
		}
		failed = err
	}
	if metrics != "auto" {
		m.miss(failed)
	}
}
