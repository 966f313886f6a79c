package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/agent/probes"
	"github.com/trackless-dns/trackless/conntrack/ledger"
	"github.com/trackless-dns/trackless/internal/figure"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/control"
	"github.com/trackless-dns/trackless/iptables/reconcile"
)

// Measured is the agent of this process as the control socket shows it.
type Measured interface {
	control.Controlled
	control.Prober
	control.QueryCounter
	// Figures and Corefile are methods of control.Inspected.
	Figures() (control.Figures, error)
	Corefile() (control.Corefile, error)
}

type controlled struct {
	agent   *Agent
	version string
}

var errNoBlock = errors.New("the Corefile in force has no notrack block")

// Status implements control.Controlled.
func (c controlled) Status() control.Status {
	s := control.Status{Version: c.version, State: reconcile.Detached.String()}
	if c.agent.FastPath != nil {
		s.FastPath = c.agent.FastPath()
	}
	reconciler, backend := c.agent.reconciler.Load(), c.agent.inForce()
	if reconciler == nil || backend == nil {
		s.Reason = errNoBlock.Error()
		return s
	}
	standing := reconciler.Standing()
	s.Backend, s.Table = backend.Name(), backend.Table()
	s.State, s.Since, s.ByHand = standing.State.String(), standing.Since, standing.ByHand
	if standing.Reason != nil {
		s.Reason = standing.Reason.Error()
	}
	for a, attached := range reconciler.Status() {
		s.Addresses = append(s.Addresses, control.AddressStatus{Address: a, Attached: attached})
	}
	slices.SortFunc(s.Addresses, func(a, b control.AddressStatus) int { return netip.Addr.Compare(a.Address, b.Address) })
	return s
}

// Attach implements control.Controlled.
func (c controlled) Attach(ctx context.Context) error {
	if k := c.agent.reconciler.Load(); k != nil {
		return k.AttachByHand(ctx)
	}
	return errNoBlock
}

// Detach implements control.Controlled.
func (c controlled) Detach(context.Context) error {
	if k := c.agent.reconciler.Load(); k != nil {
		return k.DetachByHand()
	}
	return errNoBlock
}

// Figures implements part of control.Inspected. It returns figures of the metrics.
func (c controlled) Figures() (control.Figures, error) {
	reconciler := c.agent.reconciler.Load()
	if reconciler == nil {
		return control.Figures{}, errNoBlock
	}
	var f control.Figures
	entries := c.agent.Ledger.Entries()
	f.EntriesAvoidedError = entries.Error
	flows := ClassesOf(c.agent.Ledger.Flows())
	for i, class := range ClassesOf(entries.Counts) {
		f.Classes = append(f.Classes, control.ClassFigures{
			Protocol: class.Proto.String(), Family: class.Family.String(), EntriesAvoided: class.N, FlowsAvoided: flows[i].N,
		})
	}
	if count := c.agent.config.Search; count != nil {
		f.Search = count()
	}
	counters, err := reconciler.Counters()
	if err != nil {
		c.agent.log.Warningf("packet counters are missing from the figures: %v", err)
		return f, nil
	}
	f.Packets = control.PacketsOf(counters)
	return f, nil
}

// Corefile implements control.Inspected.
func (c controlled) Corefile() (control.Corefile, error) {
	load := c.agent.serving.Load()
	if load == nil {
		return control.Corefile{}, errNoBlock
	}
	return load.Corefile, nil
}

// CountQueries implements control.QueryCounter.
func (c controlled) CountQueries(ctx context.Context, d time.Duration) (control.QueryCounts, error) {
	return c.agent.Tally.During(ctx, d)
}

// Ready implements [control.Prober]. Detached by hand and dry-run count as ready: the
// operator chose them, and a rollout would wait for ever otherwise. In a dry run the
// reconciler has checked the listeners before.
func (c controlled) Ready(ctx context.Context, name string) (string, error) {
	if _, ok := dns.IsDomainName(name); !ok || name == "" {
		return "", fmt.Errorf("%q is not a domain name", name)
	}
	reconciler, load := c.agent.reconciler.Load(), c.agent.serving.Load()
	if reconciler == nil || load == nil {
		if err := probes.AskAll(ctx, name, c.agent.config.Listeners(), nil); err != nil {
			return "", err
		}
		return fmt.Sprintf("%s is answered; %v", name, errNoBlock), nil
	}
	standing := reconciler.Standing()
	switch {
	case standing.ByHand:
		return "detached by hand: DNS goes to the cluster until `trackless rules attach`", nil
	case standing.DryRun:
		return "dry-run: nothing is untracked", nil
	case standing.Reason != nil:
		return "", fmt.Errorf("the rules are not in force: %w", standing.Reason)
	case standing.State != reconcile.Attached:
		return "", fmt.Errorf("the rules are not in force: %s", standing.State)
	}
	for a, attached := range reconciler.Status() {
		if !attached {
			return "", fmt.Errorf("DNS to %s is not untracked", a)
		}
	}
	if err := probes.AskAll(ctx, name, load.plain(), &c.agent.Asked); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s is answered, and DNS to %s is untracked", name, figure.Joined(load.Plan.Addresses())), nil
}

// Live implements [control.Prober]. It sends a check to every server block inside the
// process, through `cache` if the block has one. It sends no packets: a restart would
// not help against other programs' rules.
func (c controlled) Live(ctx context.Context) error {
	load := c.agent.serving.Load()
	if load == nil {
		return nil // without a notrack block an answering control socket is enough
	}
	return c.agent.live.Probe(ctx, load.Server.Ask)
}

// Controlled returns the agent as the control socket shows it.
func (p *Agent) Controlled(version string) Measured { return controlled{p, version} }

// Class is a number of the ledger with its labels.
type Class struct {
	Proto  iptables.Proto
	Family iptables.Family
	N      uint64
}

// ClassesOf returns the numbers of all protocols and families.
func ClassesOf(n ledger.Counts) []Class {
	return []Class{
		{iptables.UDP, iptables.IPv4, n.UDP4},
		{iptables.UDP, iptables.IPv6, n.UDP6},
		{iptables.TCP, iptables.IPv4, n.TCP4},
		{iptables.TCP, iptables.IPv6, n.TCP6},
	}
}
