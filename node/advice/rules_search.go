package advice

import (
	"fmt"

	"github.com/trackless-dns/trackless/internal/figure"
)

// A share of the search path in the queries is told from a few queries on.
const (
	searchQueries = 1000
	searchNotable = 20 // percent
)

func searchPath(m *Measurements) []Finding {
	s := m.Search
	percent := figure.Percent(s.OnPath, s.Queries)
	if s.Queries < searchQueries || percent < searchNotable {
		return nil
	}
	f := Finding{
		Severity: Info,
		Title:    fmt.Sprintf("%.0f %% of the DNS queries are for external names below a domain of the search path", percent),
		Evidence: []string{fmt.Sprintf("%s of %s queries since Trackless started; the denial of another question answered %s queries, and %s replies were for a whole search path",
			figure.Thousands(s.OnPath), figure.Thousands(s.Queries), figure.Thousands(s.Cut), figure.Thousands(s.OnePass))},
		Remedy: []string{"nothing to do"},
	}
	if s.OnePass == 0 {
		f.Remedy = []string{"let one reply do for the whole search path: searchPath.onePass=true in the chart, or the directive searchpath (docs/search-path.md)"}
	}
	return []Finding{f}
}
