package format

import (
	"sync"

	"github.com/trackless-dns/trackless/conntrack"
)

var statusCache sync.Map // conntrack.Status -> []string

// statusNames is Status.Names without an allocation for each entry: a table
// knows only a handful of combinations.
func statusNames(s conntrack.Status) []string {
	if names, ok := statusCache.Load(s); ok {
		return names.([]string)
	}
	names := s.Names()
	statusCache.Store(s, names)
	return names
}
