package main

import (
	"context"
	"slices"

	"github.com/trackless-dns/trackless/conntrack/snapshot"
	"github.com/trackless-dns/trackless/iptables/control"
	"github.com/trackless-dns/trackless/iptables/owner"
)

// readSnapshotRules fills in what untracks DNS here, and returns the control
// sockets of the instances of this namespace.
func readSnapshotRules(ctx context.Context, s *snapshot.Snapshot, socket string) []*control.Client {
	node := kernelNode{}
	report, err := readRules(ctx, node, rulesShowOptions{socket: socket})
	if err != nil {
		s.Missing = append(s.Missing, "rules: "+err.Error())
	}
	var pids []int
	if report != nil {
		for _, i := range report.Instances {
			if i.Owner.LocalPID != 0 {
				pids = append(pids, i.Owner.LocalPID)
			}
		}
	}
	found, quiet := reach(ctx, node, socket, pids)
	for _, q := range quiet {
		s.Missing = append(s.Missing, "savings: "+q.err.Error())
	}
	if report != nil {
		s.Rules = snapshotRules(report)
		addReached(s.Rules, found)
	}
	s.Missing = append(s.Missing, unreached(s, report)...)
	if err := readListeners(s); err != nil {
		s.Missing = append(s.Missing, err.Error())
	}
	var clients []*control.Client
	for _, f := range found {
		clients = append(clients, control.NewClient(f.Socket()))
	}
	return clients
}

// snapshotRules takes over from `rules show` what is compared later.
func snapshotRules(report *rulesReport) *snapshot.Rules {
	r := &snapshot.Rules{Instances: []snapshot.Instance{}, Foreign: []snapshot.ForeignRule{}, Notes: report.Notes}
	for _, i := range report.Instances {
		r.Instances = append(r.Instances, snapshot.Instance{
			Table: i.Table, Backend: i.Backend, Owned: i.Owned, PID: i.Owner.PID,
			State: i.State, ByHand: i.ByHand, Reason: i.Reason, Packets: snapshotPackets(i.Packets),
		})
	}
	if f := report.Failover; f != nil {
		r.Failover = &snapshot.Failover{Intact: f.Intact, Packets: snapshotPackets(f.Packets)}
	}
	for _, f := range report.Foreign {
		r.Foreign = append(r.Foreign, snapshot.ForeignRule{
			Family: f.Family, Table: f.Table, Chain: f.Chain, Rule: f.Rule, Effects: f.Effects, Meaning: f.Meaning, Certain: f.Certain,
		})
	}
	return r
}

func snapshotPackets(packets []packetsReport) []snapshot.Packets {
	list := make([]snapshot.Packets, 0, len(packets))
	for _, p := range packets {
		list = append(list, snapshot.Packets{Direction: p.Direction, Family: p.Family, Protocol: p.Protocol, Total: p.Packets})
	}
	return list
}

// addReached completes the instances with what they say themselves, and adds
// those that have no table of nf_tables.
func addReached(r *snapshot.Rules, found []reached) {
	for _, f := range found {
		i := slices.IndexFunc(r.Instances, func(i snapshot.Instance) bool { return i.Table != "" && i.Table == f.status.Table })
		if i < 0 {
			r.Instances = append(r.Instances, snapshot.Instance{
				Table: f.status.Table, Backend: f.status.Backend, PID: f.status.Process.PID,
				State: f.status.State, ByHand: f.status.ByHand, Reason: f.status.Reason,
			})
			i = len(r.Instances) - 1
		}
		r.Instances[i].Version, r.Instances[i].Since = f.status.Version, f.status.Since
	}
}

// unreached names the instances whose savings nobody told.
func unreached(s *snapshot.Snapshot, report *rulesReport) []string {
	var missing []string
	if s.Rules == nil {
		return nil
	}
	for n, i := range s.Rules.Instances {
		if i.Version == "" && n < len(report.Instances) && report.Instances[n].Owner.Life != owner.Dead {
			missing = append(missing, "savings: the instance of table "+i.Table+" ("+ownerName(report.Instances[n].Owner.owner)+
				") has no control socket that can be reached from here; run this where it runs, or name the socket with --socket")
		}
	}
	return missing
}

// readListeners finds the DNS servers of this node, and which of their packets
// rules untrack.
func readListeners(s *snapshot.Snapshot) error {
	var m measuredHost
	var err error
	if m.Listeners, err = dnsListeners(); err != nil {
		return err
	}
	notrackErr := m.measureNotrack()
	for _, a := range m.Listeners {
		l := snapshot.Listener{Address: a}
		for _, n := range m.Notrack {
			if n.Address == a {
				l.QueriesUntracked, l.ResponsesUntracked = new(n.Queries), new(n.Responses)
			}
		}
		s.Listeners = append(s.Listeners, l)
	}
	return notrackErr
}

// addFigures adds what one instance saves.
func addFigures(sum *snapshot.Ledger, f control.Figures) {
	sum.Instances++
	sum.Error += f.EntriesAvoidedError
	for _, c := range f.Classes {
		sum.EntriesAvoided += c.EntriesAvoided
		sum.FlowsAvoidedTotal += c.FlowsAvoided
		i := slices.IndexFunc(sum.Classes, func(have snapshot.Class) bool { return have.Protocol == c.Protocol && have.Family == c.Family })
		if i < 0 {
			sum.Classes = append(sum.Classes, snapshot.Class{Protocol: c.Protocol, Family: c.Family})
			i = len(sum.Classes) - 1
		}
		sum.Classes[i].EntriesAvoided += c.EntriesAvoided
		sum.Classes[i].FlowsAvoidedTotal += c.FlowsAvoided
	}
}
