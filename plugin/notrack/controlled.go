package notrack

import (
	"context"
	"errors"
	"net/netip"
	"slices"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/control"
)

// Controlled returns this process's contract as the control socket shows it.
func Controlled(version string) control.Controlled { return controlled{&process, version} }

type controlled struct {
	process *contract
	version string
}

// errNoBlock says that the Corefile in force has no notrack block.
var errNoBlock = errors.New("the Corefile in force has no notrack block")

// Status implements control.Controlled.
func (c controlled) Status() control.Status {
	s := control.Status{Version: c.version, State: iptables.Detached.String()}
	keeper, backend := c.process.keeper.Load(), c.process.backend.Load()
	if keeper == nil || backend == nil {
		s.Reason = errNoBlock.Error()
		return s
	}
	standing := keeper.Standing()
	s.Backend, s.Table = backend.Name(), backend.Table()
	s.State, s.Since, s.ByHand = standing.State.String(), standing.Since, standing.ByHand
	if standing.Reason != nil {
		s.Reason = standing.Reason.Error()
	}
	for a, attached := range keeper.Status() {
		s.Addresses = append(s.Addresses, control.AddressStatus{Address: a, Attached: attached})
	}
	slices.SortFunc(s.Addresses, func(a, b control.AddressStatus) int { return netip.Addr.Compare(a.Address, b.Address) })
	return s
}

// Attach implements control.Controlled.
func (c controlled) Attach(ctx context.Context) error {
	if k := c.process.keeper.Load(); k != nil {
		return k.AttachByHand(ctx)
	}
	return errNoBlock
}

// Detach implements control.Controlled.
func (c controlled) Detach(context.Context) error {
	if k := c.process.keeper.Load(); k != nil {
		return k.DetachByHand()
	}
	return errNoBlock
}
