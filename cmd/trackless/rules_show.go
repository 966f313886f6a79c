package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
	"github.com/trackless-dns/trackless/conntrack/advice"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/failover"
	"github.com/trackless-dns/trackless/iptables/hostaddr"
	"github.com/trackless-dns/trackless/iptables/hostrules"
	"github.com/trackless-dns/trackless/iptables/owner"
)

const rulesShowHelp = `Show what is in place on this node: the table of every instance with its owner,
age and packet counts, the failover table, our accept rules in filter chains
that would drop untracked DNS, the link and its addresses (as "left over" those
that "rules remove" would take away), and the rules of others that meet DNS to the listen addresses, or to other DNS servers of this
node, before conntrack sees it, with what they do to it.

Rules of others are found in nf_tables, which holds those of nft and of
iptables-nft, and in the tables of iptables-legacy; a rule is "possible" where
it depends on the client or on the interface. BPF programs cannot be seen.

The table of a running instance belongs to its process. A file that "nft list
ruleset" wrote holds it, too, and cannot be loaded then: nft -f says "Operation not
permitted" and loads nothing of it. Save the rules of others alone:

  ` + advice.SaveOthers + `

Reading nf_tables needs CAP_NET_ADMIN. Nothing is changed.

Exit status: 0 shown, 1 it could not be read, or no instance answers on the socket
that was named, 2 wrong command line.`

const rulesShowExample = `  trackless rules show
  trackless rules show --output json | jq '.instances[].state'
  kubectl -n kube-system exec ds/trackless -- trackless rules show`

type rulesShowOptions struct {
	output string
	link   string
	socket string
}

func rulesShowCommand(node func() rulesNode) *cobra.Command {
	var o rulesShowOptions
	cmd := &cobra.Command{
		Use:     "show",
		Short:   "Show the rules in place, ours and others'",
		Long:    rulesShowHelp,
		Example: rulesShowExample,
		Args:    cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cli.CheckOutput("rules show", o.output); err != nil {
				return err
			}
			if err := checkInterface("show", o.link); err != nil {
				return err
			}
			report, err := readRules(cmd.Context(), node(), o)
			if err != nil {
				return rulesError("show", err)
			}
			out := cmd.OutOrStdout()
			if o.output == "json" {
				err = cli.WriteJSON(out, report)
			} else {
				err = report.writeText(out, cli.Coloured(out))
			}
			if err == nil && report.unreached != nil {
				return rulesError("show", report.unreached)
			}
			return err
		},
	}
	cli.OutputFlag(cmd, &o.output)
	interfaceFlag(cmd, &o.link)
	cli.SocketFlag(cmd, &o.socket)
	return cmd
}

// interfaceFlag adds --interface, as `interface` of the notrack directive.
func interfaceFlag(cmd *cobra.Command, link *string) {
	cmd.Flags().StringVar(link, "interface", hostaddr.DefaultLink, "the link that was made for the listen addresses")
}

// checkInterface refuses a name that no link can have (dev_valid_name in
// net/core/dev.c).
func checkInterface(verb, name string) error {
	const longest = 15 // IFNAMSIZ, less the terminating zero
	if name == "" || len(name) > longest || name == "." || name == ".." || strings.ContainsAny(name, "/: \t\n") {
		return cli.Exit(cli.ExitUsage, fmt.Errorf("rules %s: --interface %q: it takes the name of a link, of 1 to %d characters without / and :, such as %s", verb, name, longest, hostaddr.DefaultLink))
	}
	return nil
}

// rulesReport is the JSON of `rules show`. Fields may be added, none renamed.
type rulesReport struct {
	Instances []instanceReport `json:"instances"`
	Failover  *failoverReport  `json:"failover"`
	Accept    []acceptReport   `json:"accept"`
	Devices   []deviceReport   `json:"devices"`
	Foreign   []foreignReport  `json:"foreign"`
	Notes     []string         `json:"notes"`

	// unreached says why the instance of the socket that was named did not
	// answer.
	unreached error
}

type instanceReport struct {
	Table   string `json:"table"`
	Backend string `json:"backend"`
	// Variant is that of the programs of backend iptables.
	Variant string `json:"variant,omitempty"`
	// Owned: the kernel removes the table when the process ends.
	Owned bool        `json:"owned"`
	Owner ownerReport `json:"owner"`
	// State is attached, detached, draining or, where some endpoints are
	// untracked and others not, partly attached.
	State     string           `json:"state"`
	ByHand    bool             `json:"by_hand"`
	Reason    string           `json:"reason,omitempty"`
	Socket    string           `json:"socket,omitempty"`
	Endpoints []endpointReport `json:"endpoints"`
	Packets   []packetsReport  `json:"packets"`
}

type ownerReport struct {
	// PID is the id in the owner's own pid namespace, LocalPID the one here.
	PID        int        `json:"pid"`
	LocalPID   int        `json:"local_pid,omitempty"`
	Life       owner.Life `json:"life"`
	Command    string     `json:"command,omitempty"`
	AgeSeconds int64      `json:"age_seconds,omitempty"`

	owner owner.Owner
}

type endpointReport struct {
	Address   netip.Addr `json:"address"`
	Port      uint16     `json:"port"`
	Protocol  string     `json:"protocol"`
	Untracked bool       `json:"untracked"`
}

func (e endpointReport) String() string {
	return e.Protocol + " " + netip.AddrPortFrom(e.Address, e.Port).String()
}

type packetsReport struct {
	Direction string `json:"direction"`
	Family    string `json:"family"`
	Protocol  string `json:"protocol"`
	Packets   uint64 `json:"packets"`
}

type failoverReport struct {
	Table string `json:"table"`
	// Intact: it is exactly what Trackless makes for these pairs.
	Intact  bool            `json:"intact"`
	Pairs   []pairReport    `json:"pairs"`
	Packets []packetsReport `json:"packets"`
}

// acceptReport is a rule of ours in a filter chain of the host.
type acceptReport struct {
	Family    string         `json:"family"`
	Legacy    bool           `json:"legacy"`
	Chain     string         `json:"chain"`
	Endpoint  endpointReport `json:"endpoint"`
	Direction string         `json:"direction"`
	Rule      string         `json:"rule"`
	// InUse: an instance serves the endpoint. If not, `rules remove` takes it away.
	InUse bool `json:"in_use"`
}

type pairReport struct {
	Listen  netip.Addr `json:"listen"`
	Service netip.Addr `json:"service"`
	Ports   []uint16   `json:"ports"`
	// InUse: an instance serves Listen. If not, it stands for pods that still ask
	// there, and `rules remove` takes it away.
	InUse bool `json:"in_use"`
}

type deviceReport struct {
	Name string `json:"name"`
	Kind string `json:"kind,omitempty"`
	// Link: made to carry listen addresses.
	Link      bool            `json:"link"`
	Addresses []addressReport `json:"addresses"`
}

type addressReport struct {
	Address netip.Addr `json:"address"`
	// Ours: it carries our mark.
	Ours bool `json:"ours"`
	// InUse: somebody asks for it. If not, and it is ours, `rules remove` takes it
	// away.
	InUse bool `json:"in_use"`
}

type foreignReport struct {
	Family    string           `json:"family"`
	Table     string           `json:"table"`
	Chain     string           `json:"chain"`
	Legacy    bool             `json:"legacy"`
	Hook      string           `json:"hook"`
	Priority  int              `json:"priority"`
	Handle    uint64           `json:"handle"`
	Rule      string           `json:"rule"`
	Effects   []string         `json:"effects"`
	Meaning   string           `json:"meaning"`
	Certain   bool             `json:"certain"`
	NodeCache bool             `json:"node_cache"`
	Endpoints []endpointReport `json:"endpoints"`
	// Directions holds query, response or both.
	Directions []string `json:"directions"`
}

// readRules gathers what is in place.
func readRules(ctx context.Context, node rulesNode, o rulesShowOptions) (*rulesReport, error) {
	r := &rulesReport{Instances: []instanceReport{}, Accept: []acceptReport{}, Devices: []deviceReport{}, Foreign: []foreignReport{}, Notes: []string{}}
	instances, err := node.Instances()
	var unsupported *iptables.UnsupportedError
	switch {
	case errors.As(err, &unsupported):
		r.Notes = append(r.Notes, err.Error())
	case err != nil:
		return nil, err
	}
	found, quiet := reach(ctx, node, o.socket, localPIDs(instances))
	for _, s := range quiet {
		r.Notes = append(r.Notes, s.err.Error())
		if o.socket != "" {
			r.unreached = s.err
		}
	}
	var endpoints []iptables.Endpoint
	for _, i := range instances {
		r.Instances = append(r.Instances, reportInstance(i, found))
		endpoints = append(endpoints, i.Listen...)
	}
	failover, err := node.Failover()
	if err != nil {
		return nil, err
	}
	servers, err := node.OtherListeners()
	if err != nil {
		return nil, err
	}
	claims := iptables.NewClaims(instances, servers)
	r.Failover = reportFailover(failover, claims)
	for _, p := range failover.Pairs {
		endpoints = append(endpoints, dnsEndpoints(p.Listen, p.Ports)...)
	}
	accept, err := node.AcceptRules()
	if err != nil {
		return nil, err
	}
	for _, a := range accept {
		e := endpointReport{Address: a.Endpoint.Addr, Port: a.Endpoint.Port, Protocol: a.Endpoint.Proto.String()}
		r.Accept = append(r.Accept, acceptReport{a.Family, a.Legacy, a.Chain, e, a.Direction.String(), a.Text, claims.Instance(a.Endpoint.Addr) != ""})
	}

	devices, err := node.Devices(o.link, addressesOf(endpoints))
	if err != nil {
		return nil, err
	}
	for _, d := range devices {
		r.Devices = append(r.Devices, reportDevice(d, claims))
		for _, a := range d.Addresses {
			if d.Link || a.Marked {
				endpoints = append(endpoints, dnsEndpoints(a.Addr, nil)...)
			}
		}
	}

	servers, err = node.Servers()
	if err != nil {
		r.Notes = append(r.Notes, "other DNS servers of this node are not known: "+err.Error())
	}
	for _, a := range servers {
		endpoints = append(endpoints, dnsEndpoints(a, nil)...)
	}
	slices.SortFunc(endpoints, iptables.Endpoint.Compare)
	endpoints = slices.Compact(endpoints)
	foreign, err := node.Foreign(endpoints)
	if err != nil {
		return nil, err
	}
	for _, f := range foreign {
		r.Foreign = append(r.Foreign, reportForeign(f))
	}
	return r, nil
}

// dnsEndpoints are UDP and TCP on the ports, 53 if there are none.
func dnsEndpoints(a netip.Addr, ports []uint16) []iptables.Endpoint {
	if len(ports) == 0 {
		ports = []uint16{53}
	}
	var out []iptables.Endpoint
	for _, port := range ports {
		for _, p := range []iptables.Proto{iptables.TCP, iptables.UDP} {
			out = append(out, iptables.Endpoint{Addr: a, Port: port, Proto: p})
		}
	}
	return out
}

func addressesOf(endpoints []iptables.Endpoint) []netip.Addr {
	return iptables.Plan{Listen: endpoints}.Addresses()
}

func reportInstance(i iptables.Instance, found []reached) instanceReport {
	r := instanceReport{
		Table: i.Table, Backend: i.Backend, Variant: i.Variant, Owned: i.Owned,
		Owner: ownerReport{
			PID: i.Owner.PID, LocalPID: i.Owner.LocalPID, Life: i.Owner.Life, Command: i.Owner.Command,
			AgeSeconds: int64(i.Owner.Age().Seconds()), owner: i.Owner,
		},
		State:     "detached",
		Endpoints: reportEndpoints(i.Listen, i.Live),
		Packets:   reportPackets(i.Packets),
	}
	switch {
	case i.Attached():
		r.State = "attached"
	case len(i.Live) > 0:
		r.State = "partly attached"
	}
	for _, f := range found {
		if f.status.Table != i.Table {
			continue
		}
		r.Socket, r.ByHand, r.Reason = f.Socket(), f.status.ByHand, f.status.Reason
		// What the kernel holds counts, except that it does not show a drain.
		if r.State == "detached" && f.status.State == "draining" {
			r.State = "draining"
		}
	}
	return r
}

func reportEndpoints(endpoints, live []iptables.Endpoint) []endpointReport {
	out := make([]endpointReport, 0, len(endpoints))
	for _, e := range endpoints {
		out = append(out, endpointReport{e.Addr, e.Port, e.Proto.String(), slices.Contains(live, e)})
	}
	return out
}

func reportPackets(c iptables.Counters) []packetsReport {
	out := []packetsReport{}
	for _, k := range iptables.CounterKeys() {
		out = append(out, packetsReport{k.Direction.String(), k.Family.String(), k.Proto.String(), c[k]})
	}
	return out
}

func reportFailover(f failover.State, claims iptables.Claims) *failoverReport {
	if !f.Present {
		return nil
	}
	r := &failoverReport{Table: owner.FailoverTable, Intact: f.Intact, Pairs: []pairReport{}, Packets: reportPackets(f.Counters)}
	for _, p := range f.Pairs {
		ports := p.Ports
		if len(ports) == 0 {
			ports = []uint16{53}
		}
		r.Pairs = append(r.Pairs, pairReport{p.Listen, p.Service, ports, claims.Instance(p.Listen) != ""})
	}
	return r
}

func reportDevice(d hostaddr.Device, claims iptables.Claims) deviceReport {
	r := deviceReport{Name: d.Name, Kind: d.Kind, Link: d.Link, Addresses: []addressReport{}}
	for _, a := range d.Addresses {
		r.Addresses = append(r.Addresses, addressReport{a.Addr, a.Marked, claims.Of(a.Addr) != ""})
	}
	return r
}

func reportForeign(f hostrules.ForeignRule) foreignReport {
	r := foreignReport{
		Family: f.Family, Table: f.Table, Chain: f.Chain, Legacy: f.Legacy, Hook: f.Hook, Priority: f.Priority, Handle: f.Handle,
		Rule: f.Text, Effects: f.Effects, Meaning: foreignMeaning(f), Certain: f.Certain, NodeCache: f.NodeCache,
		Endpoints: reportEndpoints(f.Concerns, nil), Directions: []string{},
	}
	for _, d := range f.Directions {
		r.Directions = append(r.Directions, d.String())
	}
	return r
}

// foreignMeaning says what a rule does to DNS, the gravest effect first.
func foreignMeaning(f hostrules.ForeignRule) string {
	has := func(effect string) bool { return slices.Contains(f.Effects, effect) }
	switch {
	case has("drop"):
		return "these packets are lost"
	case has("queue"):
		return "a program decides about these packets before conntrack"
	case has("notrack") && f.NodeCache:
		return "a leftover of NodeLocal DNSCache: untracked for good, so without an instance nobody answers"
	case has("notrack"):
		return "untracked for good, so that they bypass kube-proxy: where no DNS server of this node listens at the address nobody answers"
	case has(hostrules.EffectZone):
		return "puts these packets into a conntrack zone, which tracks them whatever rules of NOTRACK say"
	case f.NodeCache:
		return "a leftover of NodeLocal DNSCache, harmless by itself"
	case has("accept"):
		return "ends its own chain only: rules of the iptables backend behind it there are not reached, those of nftables are"
	}
	return "changes these packets before conntrack: " + cmp.Or(cli.Joined(f.Effects), "in a way that is not known")
}
