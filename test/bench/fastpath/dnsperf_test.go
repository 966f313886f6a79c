package main

import (
	"testing"
	"time"

	"github.com/trackless-dns/trackless/test/bench/fastpath/generator"
)

func TestDNSPerfResult(t *testing.T) {
	for _, row := range []struct {
		name, out string
		want      *generator.Result
	}{
		{"all answered", "  Queries sent:         5000\n  Queries completed:    5000 (100.00%)\n  Queries lost:         0 (0.00%)\n\n  Response codes:       NOERROR 5000 (100.00%)\n  Run time (s):         1.500000\n",
			&generator.Result{Sent: 5000, Answered: 5000, Took: 1500 * time.Millisecond}},
		{"lost and failed", "  Queries sent:         5000\n  Queries completed:    4990 (99.80%)\n  Response codes:       SERVFAIL 10 (0.20%), NOERROR 4980 (99.80%)\n  Run time (s):         1.000000\n",
			&generator.Result{Sent: 5000, Answered: 4980, Wrong: 10, Took: time.Second}},
		{"none answered", "  Queries sent:         2\n  Queries completed:    0 (0.00%)\n  Response codes:       \n  Run time (s):         1.000000\n", nil},
	} {
		got, err := dnsperfResult(row.out)
		if (err == nil) != (row.want != nil) || err == nil && *got != *row.want {
			t.Errorf("%s: %+v, %v", row.name, got, err)
		}
	}
}
