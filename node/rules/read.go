package rules

import (
	"context"
	"errors"
	"net/netip"
	"slices"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/node/instance"
)

// Options say what is read.
type Options struct {
	Link   string // the link that was made for the listen addresses
	Socket string // the one control socket to ask, "" for all that are found
}

// Read gathers what is in place. Where it fails the report has the instances that
// answer all the same.
func Read(ctx context.Context, node Node, o Options) (*Report, error) {
	r := &Report{
		Instances: []Instance{}, Accept: []AcceptRule{}, Devices: []Device{}, Foreign: []ConflictingRule{}, Notes: []string{},
		socket: o.Socket,
	}
	instances, err := node.Instances()
	var unsupported *iptables.UnsupportedError
	if errors.As(err, &unsupported) {
		r.Notes = append(r.Notes, err.Error())
		err = nil
	}
	r.Reached, r.Silent = instance.Reach(ctx, node, o.Socket, instance.LocalPIDs(instances))
	if err != nil {
		return r, err
	}
	for _, s := range r.Silent {
		r.Notes = append(r.Notes, s.Err.Error())
	}
	for _, i := range instances {
		r.Instances = append(r.Instances, reportInstance(i, r.Reached))
	}
	endpoints, err := r.readOurs(node, o.Link, instances)
	if err != nil {
		return r, err
	}

	servers, err := node.Servers()
	if err != nil {
		r.Notes = append(r.Notes, "other DNS servers of this node are not known: "+err.Error())
	}
	for _, a := range servers {
		endpoints = append(endpoints, DNSEndpoints(a, nil)...)
	}
	slices.SortFunc(endpoints, iptables.Endpoint.Compare)
	endpoints = slices.Compact(endpoints)
	foreign, err := node.Foreign(endpoints)
	if err != nil {
		return r, err
	}
	for _, f := range foreign {
		r.Foreign = append(r.Foreign, reportForeign(f))
	}
	return r, nil
}

// readOurs reads what is ours besides the tables of instances, and returns all
// endpoints that ours name.
func (r *Report) readOurs(node Node, link string, instances []iptables.Instance) ([]iptables.Endpoint, error) {
	var endpoints []iptables.Endpoint
	for _, i := range instances {
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
		endpoints = append(endpoints, DNSEndpoints(p.Listen, p.Ports)...)
	}
	accept, err := node.AcceptRules()
	if err != nil {
		return nil, err
	}
	for _, a := range accept {
		e := Endpoint{Address: a.Endpoint.Addr, Port: a.Endpoint.Port, Protocol: a.Endpoint.Proto.String()}
		r.Accept = append(r.Accept, AcceptRule{a.Family, a.Legacy, a.Chain, e, a.Direction.String(), a.Text, claims.Instance(a.Endpoint.Addr) != ""})
	}
	devices, err := node.Devices(link, addressesOf(endpoints))
	if err != nil {
		return nil, err
	}
	for _, d := range devices {
		r.Devices = append(r.Devices, reportDevice(d, claims))
		for _, a := range d.Addresses {
			if d.Link || a.Marked {
				endpoints = append(endpoints, DNSEndpoints(a.Addr, nil)...)
			}
		}
	}
	return endpoints, nil
}

// DNSEndpoints are UDP and TCP on the ports, 53 if there are none.
func DNSEndpoints(a netip.Addr, ports []uint16) []iptables.Endpoint {
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
