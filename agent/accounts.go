package agent

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"

	"github.com/trackless-dns/trackless/agent/tablewalk"
	"github.com/trackless-dns/trackless/agent/tally"
	"github.com/trackless-dns/trackless/conntrack/ledger"
	"github.com/trackless-dns/trackless/iptables"
)

// accounts keeps the ledger in step with the kernel and with the Corefile, and watches the
// table, while there is a notrack block.
type accounts struct {
	stop  context.CancelFunc // nil: not running
	tasks sync.WaitGroup
	ends  *ledger.TCPEnds // nil where the kernel does not report them
}

// keepAccounts starts the accounts, or gives them another configuration.
func (p *Agent) keepAccounts(load *Load) {
	p.Table.Follow(tablewalk.NewView(load.Plan, load.Server.Forwards(), p.standing.Pairs()))
	p.Ledger.SetTCPIdle(load.Idle)
	a := &p.accounts
	if a.stop == nil {
		var ctx context.Context
		ctx, a.stop = context.WithCancel(context.Background())
		a.tasks.Go(func() { p.Ledger.Run(ctx) })
		a.tasks.Go(func() { p.Table.Run(ctx) })
		ends, err := p.Ledger.FollowTCP(0, func(server netip.AddrPort) bool { return p.Covers(server.Addr()) })
		switch {
		case errors.Is(err, errors.ErrUnsupported):
			p.log.Infof("the ends of TCP connections are estimated: %v", err)
		case err != nil:
			p.log.Warningf("the ends of TCP connections are estimated: %v", err)
		}
		a.ends = ends
	}
	if a.ends != nil {
		if err := a.ends.SetPorts(tcpPorts(load.Plan)...); err != nil {
			p.log.Warningf("the ends of TCP connections are estimated: %v", err)
		}
	}
}

// closeAccounts stops the accounts.
func (p *Agent) closeAccounts() {
	a := &p.accounts
	if a.stop == nil {
		return
	}
	a.stop()
	a.tasks.Wait()
	a.stop = nil
	if a.ends != nil {
		if err := a.ends.Close(); err != nil {
			p.log.Debugf("stop following TCP connections: %v", err)
		}
		a.ends = nil
	}
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

// tallyHits counts the queries that a fast path has answered, for `trackless dns top` and for
// metrics by pod.
func (p *Agent) tallyHits(flows []ledger.Flow, inKernel bool) {
	if !p.Tally.Running() && !p.Tally.Clients.Running() {
		return
	}
	tier := tally.Socket
	if inKernel {
		tier = tally.Kernel
	}
	for _, f := range flows {
		p.Tally.Early(tier, f.Client.Addr())
	}
}
