package take

import (
	"testing"

	"github.com/trackless-dns/trackless/iptables/control"
	"github.com/trackless-dns/trackless/node/snapshot"
)

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
