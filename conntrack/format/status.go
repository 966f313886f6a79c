package format

import (
	"sync"

	"github.com/trackless-dns/trackless/conntrack"
)

var statusCache sync.Map // conntrack.Status -> []string

// statusNames returns Status.Names without an allocation for each entry: a table has only
// few combinations.
func statusNames(s conntrack.Status) []string {
	if names, ok := statusCache.Load(s); ok {
		return names.([]string)
	}
	names := s.Names()
	statusCache.Store(s, names)
	return names
}
