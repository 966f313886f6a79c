package notrack

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"

	"github.com/trackless-dns/trackless/agent/tablewalk"
	"github.com/trackless-dns/trackless/conntrack/ledger"
	"github.com/trackless-dns/trackless/iptables"
)

// accounts keeps the ledger in step with the kernel and with the Corefile, and
// looks at the table, while there is a notrack block.
type accounts struct {
	stop  context.CancelFunc // nil: not at work
	tasks sync.WaitGroup
	ends  *ledger.TCPEnds // nil where the kernel does not report them
}

// keepAccounts begins, or goes on with another configuration.
func (p *contract) keepAccounts(config *configuration) {
	p.table.Follow(tablewalk.NewView(config.plan, forwardEndpoints(config), p.standing.Pairs()))
	p.ledger.SetTCPIdle(config.idle)
	a := &p.accounts
	if a.stop == nil {
		var ctx context.Context
		ctx, a.stop = context.WithCancel(context.Background())
		a.tasks.Go(func() { p.ledger.Run(ctx) })
		a.tasks.Go(func() { p.table.Run(ctx) })
		ends, err := p.ledger.FollowTCP(0, func(server netip.AddrPort) bool { return p.covers(server.Addr()) })
		switch {
		case errors.Is(err, errors.ErrUnsupported):
			log.Infof("when TCP connections end is estimated: %v", err)
		case err != nil:
			log.Warningf("when TCP connections end is estimated: %v", err)
		}
		a.ends = ends
	}
	if a.ends != nil {
		if err := a.ends.SetPorts(tcpPorts(config.plan)...); err != nil {
			log.Warningf("when TCP connections end is estimated: %v", err)
		}
	}
}

// closeAccounts ends what keepAccounts began.
func (p *contract) closeAccounts() {
	a := &p.accounts
	if a.stop == nil {
		return
	}
	a.stop()
	a.tasks.Wait()
	a.stop = nil
	if a.ends != nil {
		if err := a.ends.Close(); err != nil {
			log.Debugf("stop following TCP connections: %v", err)
		}
		a.ends = nil
	}
}

// note tells the ledger of a query, unless the kernel tracks nothing anyway.
func (p *contract) note(f ledger.Flow) ledger.Pending {
	if p.table.Idle() {
		return ledger.Pending{}
	}
	return p.ledger.Query(f)
}

func tcpPorts(plan iptables.Plan) []uint16 {
	var ports []uint16
	for _, e := range plan.Listen {
		if e.Proto == iptables.TCP && !slices.Contains(ports, e.Port) {
			ports = append(ports, e.Port)
		}
	}
	return ports
}
