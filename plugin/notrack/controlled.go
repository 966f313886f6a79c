package notrack

import (
	"context"
	"errors"
	"net/netip"
	"slices"

	"github.com/coredns/caddy"

	"github.com/trackless-dns/trackless/iptables/control"
	"github.com/trackless-dns/trackless/iptables/reconcile"
)

// Measured is this process's contract as the control socket shows it.
type Measured interface {
	control.Controlled
	control.Prober
	// Figures and Corefile are control.Inspected's.
	Figures() (control.Figures, error)
	Corefile() (control.Corefile, error)
}

// Controlled returns this process's contract as the control socket shows it.
func Controlled(version string) Measured { return controlled{&process, version} }

type controlled struct {
	process *contract
	version string
}

// errNoBlock says that the Corefile in force has no notrack block.
var errNoBlock = errors.New("the Corefile in force has no notrack block")

// Status implements control.Controlled.
func (c controlled) Status() control.Status {
	s := control.Status{Version: c.version, State: reconcile.Detached.String()}
	keeper, backend := c.process.keeper.Load(), c.process.inForce()
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

// Figures implements part of control.Inspected with what the metrics show.
func (c controlled) Figures() (control.Figures, error) {
	keeper := c.process.keeper.Load()
	if keeper == nil {
		return control.Figures{}, errNoBlock
	}
	var f control.Figures
	entries := c.process.ledger.Entries()
	f.EntriesAvoidedError = entries.Error
	flows := classesOf(c.process.ledger.Flows())
	for i, class := range classesOf(entries.Counts) {
		f.Classes = append(f.Classes, control.ClassFigures{
			Protocol: class.proto.String(), Family: class.family.String(), EntriesAvoided: class.n, FlowsAvoided: flows[i].n,
		})
	}
	counters, err := keeper.Counters()
	if err != nil {
		log.Warningf("packet counters are missing from the figures: %v", err)
		return f, nil
	}
	f.Packets = control.PacketsOf(counters)
	return f, nil
}

// Corefile implements control.Inspected.
func (c controlled) Corefile() (control.Corefile, error) {
	config := c.process.serving.Load()
	if config == nil {
		return control.Corefile{}, errNoBlock
	}
	return config.corefile, nil
}

// loadedCorefile returns the Corefile that caddy is starting or has started last.
// Only caddy's own callbacks may ask: it changes its list without a lock.
func loadedCorefile() control.Corefile {
	for _, instance := range slices.Backward(caddy.Instances()) {
		if in := instance.Caddyfile(); in != nil {
			return control.Corefile{Path: in.Path(), Contents: string(in.Body())}
		}
	}
	return control.Corefile{}
}
