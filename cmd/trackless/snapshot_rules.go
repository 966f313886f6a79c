package main

import (
	"context"

	"github.com/trackless-dns/trackless/iptables/control"
	"github.com/trackless-dns/trackless/node/rules"
	"github.com/trackless-dns/trackless/node/snapshot"
)

// readSnapshotRules fills in what untracks DNS here, and returns the control
// sockets of the instances of this namespace.
func readSnapshotRules(ctx context.Context, s *snapshot.Snapshot, socket string) []*control.Client {
	report, err := rules.Read(ctx, rules.Kernel{}, rules.Options{Socket: socket})
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
	if err := readListeners(s); err != nil {
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
func readListeners(s *snapshot.Snapshot) error {
	listeners, err := nodeRules.Listeners()
	if err != nil {
		return err
	}
	notrack, notrackErr := nodeRules.Notrack(listeners)
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
