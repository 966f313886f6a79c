package notrack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/coredns/caddy"
	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/agent/probes"
	"github.com/trackless-dns/trackless/agent/sockets"
	"github.com/trackless-dns/trackless/iptables"
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

// Ready implements [control.Prober]. Detached by hand and dry-run are ready: the
// operator wants it so, and a rollout must not wait for what will not come. The
// keeper has seen the listeners answer before it came to a dry run.
func (c controlled) Ready(ctx context.Context, name string) (string, error) {
	if _, ok := dns.IsDomainName(name); !ok || name == "" {
		return "", fmt.Errorf("%q is not a domain name", name)
	}
	keeper, config := c.process.keeper.Load(), c.process.serving.Load()
	if keeper == nil || config == nil {
		if err := probes.AskAll(ctx, name, listeners(), nil); err != nil {
			return "", err
		}
		return fmt.Sprintf("%s is answered; %v", name, errNoBlock), nil
	}
	standing := keeper.Standing()
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
	for a, attached := range keeper.Status() {
		if !attached {
			return "", fmt.Errorf("DNS to %s is not untracked", a)
		}
	}
	if err := probes.AskAll(ctx, name, config.plain(), &c.process.asked); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s is answered, and DNS to %s is untracked", name, joined(config.plan.Addresses())), nil
}

// plain are the endpoints that speak plain DNS over UDP.
func (c *configuration) plain() []netip.AddrPort {
	var out []netip.AddrPort
	for _, e := range c.plan.Listen {
		if e.Proto == iptables.UDP && c.zones[e] != "" {
			out = append(out, e.AddrPort())
		}
	}
	return out
}

// listeners are the UDP sockets of the running servers, as a client of this
// node reaches them.
func listeners() []netip.AddrPort {
	var out []netip.AddrPort
	for _, i := range caddy.Instances() {
		for _, s := range i.Servers() {
			local, ok := s.LocalAddr().(*net.UDPAddr)
			if !ok {
				continue
			}
			ap := sockets.Unmap(local.AddrPort())
			switch ap.Addr() {
			case netip.IPv4Unspecified():
				ap = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), ap.Port())
			case netip.IPv6Unspecified():
				ap = netip.AddrPortFrom(netip.IPv6Loopback(), ap.Port())
			}
			if !slices.Contains(out, ap) {
				out = append(out, ap)
			}
		}
	}
	return out
}

func joined(addrs []netip.Addr) string {
	words := make([]string, 0, len(addrs))
	for _, a := range addrs {
		words = append(words, a.String())
	}
	return strings.Join(words, " ")
}

// Live implements [control.Prober]. Every server block is asked a check inside
// the process, through `cache` if it has one. Packets play no part: rules of
// others, which a restart does not mend, must not have us restarted.
func (c controlled) Live(ctx context.Context) error {
	config := c.process.serving.Load()
	if config == nil {
		return nil // that the control socket answered is all there is to know
	}
	return c.process.live.Probe(ctx, config.askInside)
}
