package measure

import (
	"context"
	"time"

	"github.com/trackless-dns/trackless/node/advice"
)

// A Report is what is wrong with a node. Its JSON names do not change.
type Report struct {
	Time            time.Time        `json:"time"`
	Worst           string           `json:"worst"` // ok, info, warning, critical
	Findings        []advice.Finding `json:"findings"`
	Missing         []string         `json:"missing,omitempty"`
	Entries         uint64           `json:"entries"`
	Limit           uint64           `json:"limit"`
	IntervalSeconds float64          `json:"interval_seconds"`
}

// Check measures a node and says what is wrong with it; blind means that the entries
// of its table could not be read.
func Check(ctx context.Context, o Options) (r *Report, blind bool, err error) {
	m, err := Take(ctx, o)
	if err != nil {
		return nil, false, err
	}
	r = &Report{
		Time: time.Now().UTC(), Findings: advice.Check(&m.Measurements), Missing: m.Missing,
		Entries: m.Entries, Limit: m.Limit, IntervalSeconds: m.Interval.Seconds(), Worst: "ok",
	}
	if len(r.Findings) > 0 {
		r.Worst = advice.Worst(r.Findings).String()
	}
	return r, m.Table == nil, nil
}
