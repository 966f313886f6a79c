package rules

import (
	"context"
	"slices"

	"github.com/trackless-dns/trackless/iptables/control"
	"github.com/trackless-dns/trackless/iptables/owner"
	"github.com/trackless-dns/trackless/node/instance"
	"github.com/trackless-dns/trackless/node/measure"
	"github.com/trackless-dns/trackless/node/snapshot"
)

// FillSnapshot fills in what untracks DNS here, and returns the control
// sockets of the instances of this namespace.
func FillSnapshot(ctx context.Context, node Node, s *snapshot.Snapshot, socket string) []*control.Client {
	report, err := Read(ctx, node, Options{Socket: socket})
	if err != nil {
		s.Missing = append(s.Missing, "rules: "+err.Error())
	}
	for _, q := range report.Silent {
		s.Missing = append(s.Missing, "savings: "+q.Err.Error())
	}
	if err == nil {
		s.Rules = report.Snapshot()
		for _, i := range report.WithoutAnswer() {
			s.Missing = append(s.Missing, "savings: the instance of table "+i.Table+" ("+i.Owner.Name()+
				") has no control socket that can be reached from here; run this where it runs, or name the socket with --socket")
		}
	}
	if err := readListeners(node, s); err != nil {
		s.Missing = append(s.Missing, err.Error())
	}
	var clients []*control.Client
	for _, f := range report.Reached {
		clients = append(clients, control.NewClient(f.Socket()))
	}
	return clients
}

// readListeners finds the DNS servers of this node, and which of their packets
// rules untrack.
func readListeners(node Node, s *snapshot.Snapshot) error {
	measured := measure.Rules{Instances: node.Instances, Listeners: Listeners}
	listeners, err := measured.Listeners()
	if err != nil {
		return err
	}
	notrack, notrackErr := measured.Notrack(listeners)
	for _, a := range listeners {
		l := snapshot.Listener{Address: a}
		for _, n := range notrack {
			if n.Address == a {
				l.QueriesUntracked, l.ResponsesUntracked = new(n.Queries), new(n.Responses)
			}
		}
		s.Listeners = append(s.Listeners, l)
	}
	return notrackErr
}

// Snapshot is the report as far as snapshots keep it: what is compared later, with
// what the instances say of themselves. An instance that answers and has no table
// here is one of it.
func (r *Report) Snapshot() *snapshot.Rules {
	s := &snapshot.Rules{Instances: []snapshot.Instance{}, Foreign: []snapshot.ConflictingRule{}, Notes: r.Notes}
	for _, i := range r.Instances {
		s.Instances = append(s.Instances, snapshot.Instance{
			Table: i.Table, Backend: i.Backend, Owned: i.Owned, PID: i.Owner.PID,
			State: i.State, ByHand: i.ByHand, Reason: i.Reason, Packets: snapshotPackets(i.Packets),
		})
	}
	for _, f := range r.Reached {
		i := slices.IndexFunc(s.Instances, func(i snapshot.Instance) bool { return i.Table != "" && i.Table == f.Answer.Table })
		if i < 0 {
			s.Instances = append(s.Instances, snapshot.Instance{
				Table: f.Answer.Table, Backend: f.Answer.Backend, PID: f.Answer.Process.PID,
				State: f.Answer.State, ByHand: f.Answer.ByHand, Reason: f.Answer.Reason,
			})
			i = len(s.Instances) - 1
		}
		s.Instances[i].Version, s.Instances[i].Since = f.Answer.Version, f.Answer.Since
	}
	if f := r.Failover; f != nil {
		s.Failover = &snapshot.Failover{Intact: f.Intact, Packets: snapshotPackets(f.Packets)}
	}
	for _, f := range r.Foreign {
		s.Foreign = append(s.Foreign, snapshot.ConflictingRule{
			Family: f.Family, Table: f.Table, Chain: f.Chain, Rule: f.Rule, Effects: f.Effects, Meaning: f.Meaning, Certain: f.Certain,
		})
	}
	return s
}

func snapshotPackets(packets []Packets) []snapshot.Packets {
	list := make([]snapshot.Packets, 0, len(packets))
	for _, p := range packets {
		list = append(list, snapshot.Packets{Direction: p.Direction, Family: p.Family, Protocol: p.Protocol, Total: p.Packets})
	}
	return list
}

// WithoutAnswer are the instances that may live and did not answer.
func (r *Report) WithoutAnswer() []Instance {
	var out []Instance
	for _, i := range r.Instances {
		answers := slices.ContainsFunc(r.Reached, func(f instance.Reached) bool {
			return i.Table != "" && i.Table == f.Answer.Table && f.Answer.Version != ""
		})
		if !answers && i.Owner.Life != owner.Dead {
			out = append(out, i)
		}
	}
	return out
}
