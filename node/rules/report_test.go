package rules_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/failover"
	"github.com/trackless-dns/trackless/iptables/hostrules"
	"github.com/trackless-dns/trackless/iptables/owner"
	"github.com/trackless-dns/trackless/node/nodetest"
	"github.com/trackless-dns/trackless/node/rules"
)

var listen = netip.MustParseAddr("10.96.0.10")

func instanceOf(table string, pid int, life owner.Life) iptables.Instance {
	return iptables.Instance{
		Backend: iptables.BackendNFTables, Table: table, Owner: owner.Owner{PID: pid, LocalPID: pid, Life: life},
		Listen: rules.DNSEndpoints(listen, nil), Live: rules.DNSEndpoints(listen, nil), Packets: iptables.Counters{},
	}
}

// What instances say of themselves is in the snapshot, also where they have no
// table.
func TestTheSnapshotOfAReport(t *testing.T) {
	since := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	answering := nodetest.NewSocket("/run/trackless/control.sock", 7, "trackless-a")
	answering.State.Version, answering.State.Since = "1.2.3", since
	without := nodetest.NewSocket("/run/trackless/control-8.sock", 8, "")
	without.State.Version, without.State.State, without.State.Backend = "1.2.3", "detached", "none"
	node := &nodetest.Node{
		Tables: []iptables.Instance{
			instanceOf("trackless-a", 7, owner.Alive), instanceOf("trackless-b", 9, owner.Alive), instanceOf("trackless-c", 10, owner.Dead),
		},
		Controls:   []*nodetest.Socket{answering, without},
		Standing:   failover.State{Present: true, Intact: true, Counters: iptables.Counters{}},
		OtherRules: []hostrules.ConflictingRule{{Family: "ip", Table: "raw", Chain: "OUTPUT", Effects: []string{"drop"}, Certain: true}},
	}
	report, err := rules.Read(t.Context(), node, rules.Options{})
	if err != nil {
		t.Fatal(err)
	}
	s := report.Snapshot()
	var got []string
	for _, i := range s.Instances {
		got = append(got, fmt.Sprintf("%s %d %s %s %t", i.Table, i.PID, i.State, i.Version, i.Since.Equal(since)))
	}
	want := []string{"trackless-a 7 attached 1.2.3 true", "trackless-b 9 attached  false", "trackless-c 10 attached  false", " 8 detached 1.2.3 false"}
	if !slices.Equal(got, want) {
		t.Errorf("instances %q, want %q", got, want)
	}
	if s.Failover == nil || !s.Failover.Intact || len(s.Foreign) != 1 || s.Foreign[0].Meaning != "these packets are lost" {
		t.Errorf("failover %+v, foreign %+v", s.Failover, s.Foreign)
	}
	missing := report.WithoutAnswer()
	if len(missing) != 1 || missing[0].Table != "trackless-b" || missing[0].Owner.Name() != "pid 9" {
		t.Errorf("without an answer: %+v", missing)
	}
}

// Instances are asked also where the tables cannot be read.
func TestAReportThatFailsHasTheInstances(t *testing.T) {
	hung := nodetest.NewSocket("/run/trackless/hung.sock", 8, "")
	hung.StatusErr = context.DeadlineExceeded
	node := &nodetest.Node{Err: iptables.ErrPermission, Controls: []*nodetest.Socket{nodetest.NewSocket("/run/trackless/control.sock", 7, "trackless-a"), hung}}
	report, err := rules.Read(t.Context(), node, rules.Options{})
	if !errors.Is(err, iptables.ErrPermission) || len(report.Reached) != 1 || len(report.Silent) != 1 {
		t.Errorf("error %v, %d answer, %d are silent", err, len(report.Reached), len(report.Silent))
	}
	if report.Unreached() != nil {
		t.Error("a socket that nobody named is missed")
	}
	node.Err = nil
	if report, err = rules.Read(t.Context(), node, rules.Options{Socket: hung.Name}); err != nil || !errors.Is(report.Unreached(), context.DeadlineExceeded) {
		t.Errorf("the named socket is silent: %v, error %v", report.Unreached(), err)
	}
}

// A failure does not end a removal, and is told with what was refused.
func TestARemovalGoesOnAfterAFailure(t *testing.T) {
	node := &failing{Node: nodetest.Node{Tables: []iptables.Instance{
		instanceOf("trackless-a", 7, owner.Dead), instanceOf("trackless-b", 8, owner.Dead), instanceOf("trackless-c", 9, owner.Alive),
	}}}
	done, err := rules.Remove(node, rules.RemoveOptions{})
	var actions []string
	for _, d := range done {
		actions = append(actions, d.Action)
	}
	if !slices.Equal(actions, []string{"failed", "removed", "left"}) {
		t.Errorf("actions %q", actions)
	}
	if !errors.Is(err, errBusy) || !slices.Equal(node.Removed, []string{"table trackless-b"}) {
		t.Errorf("error %v, removed %q", err, node.Removed)
	}
}

var errBusy = errors.New("device or resource busy")

// failing cannot remove the first table.
type failing struct{ nodetest.Node }

func (n *failing) RemoveTable(i iptables.Instance) error {
	if i.Table == "trackless-a" {
		return errBusy
	}
	return n.Node.RemoveTable(i)
}
