package take

import (
	"testing"

	"github.com/trackless-dns/trackless/iptables/control"
	"github.com/trackless-dns/trackless/node/snapshot"
)

// The share of the search path is that of the window, over all instances.
func TestSearch(t *testing.T) {
	var before, after snapshot.Search
	for range 2 {
		addSearch(&before, control.SearchFigures{Queries: 100, Search: 50, Cut: 10, OnePass: 1})
		addSearch(&after, control.SearchFigures{Queries: 200, Search: 130, Cut: 40, OnePass: 6})
	}
	after.Since(before, 10)
	if after.SearchPercent == nil || *after.SearchPercent != 80 || after.SavedPerSecond == nil || *after.SavedPerSecond != 7 {
		t.Errorf("%+v", after)
	}
	for name, other := range map[string]snapshot.Search{"an instance was replaced": {QueriesTotal: 1}, "no query": before} {
		other.Since(before, 10)
		if other.SearchPercent != nil {
			t.Errorf("%s: %+v", name, other)
		}
	}
}

// The savings of instances are added by class.
func TestAddFigures(t *testing.T) {
	var sum snapshot.Ledger
	for range 2 {
		addFigures(&sum, control.Figures{EntriesAvoidedError: 1, Classes: []control.ClassFigures{
			{Protocol: "udp", Family: "ipv4", EntriesAvoided: 3, FlowsAvoided: 30}, {Protocol: "tcp", Family: "ipv4", EntriesAvoided: 1, FlowsAvoided: 10},
		}})
	}
	if sum.Instances != 2 || sum.EntriesAvoided != 8 || sum.FlowsAvoidedTotal != 80 || len(sum.Classes) != 2 || sum.Classes[0].EntriesAvoided != 6 {
		t.Errorf("%+v", sum)
	}
}
