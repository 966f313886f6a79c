package notrack

import (
	"sync"

	"github.com/coredns/caddy"

	"github.com/trackless-dns/trackless/iptables"
)

var planning sync.Mutex

// PlanOf returns the merged plan and the backend of all notrack blocks of a Corefile, or the
// error that a start would return. It starts nothing, and changes or reads nothing on the
// node. A Corefile without the directive has the zero Plan.
//
// The DNS server type must be registered; the result is undefined while another
// Corefile is loaded by the same process.
func PlanOf(corefile caddy.Input) (plan iptables.Plan, backend string, err error) {
	planning.Lock()
	defer planning.Unlock()
	parsed.Store(nil)
	if err := caddy.ValidateAndExecuteDirectives(corefile, nil, true); err != nil {
		return plan, "", err
	}
	config := parsed.Swap(nil)
	if config == nil {
		return plan, "", nil
	}
	return config.plan, config.backend.Name, nil
}
