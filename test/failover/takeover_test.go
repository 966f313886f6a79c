package failover

import (
	"testing"
	"time"

	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/lab"
)

func TestInertWhileAttached(t *testing.T) {
	n := newNode(t, lab.Options{})
	n.install(pairs(n.ClusterDNS()...))
	n.serve()
	n.singlePortClients().ask("attached", lab.Trackless)
	answeredBy(t, n.ask(mixed(500)), lab.Trackless)
	if got := n.rewritten(iptables.Query, iptables.Response); got != 0 {
		t.Errorf("%d packets rewritten although their queries were untracked", got)
	}
	n.entries(func(e *conntrack.Entry) {
		if e.Original.Zone != 0 {
			t.Errorf("an entry in the failover's zone: %+v", e.Original)
		}
	})
	n.noLeaks()
}

// What a takeover may cost of the queries of mixed, 1,000 a second. How long
// the rules of a killed process last is not the failover's doing: a busy machine
// may take its time, and without a failover 2,000 are lost. At a start
// connections that are open through the failover when the rules come are reset,
// unless their flows are exempted.
const (
	maxLostAtKill   = 500
	maxLostAtStart  = 2
	maxResetAtStart = 50
)

// maxLostAtChange is what a change of the Service's address may cost: the
// queries that are under way.
const maxLostAtChange = 100

const reset = "connection reset by peer"

func TestKillAndRestartUnderLoad(t *testing.T) {
	n := newNode(t, lab.Options{})
	n.install(pairs(n.ClusterDNS()...))
	single := n.singlePortClients()
	server := n.serve()
	single.ask("attached", lab.Trackless)

	during := n.askInBackground(mixed(3000))
	during.await(1000)
	single.ask("attached, under load", lab.Trackless)
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	n.await(func() bool { return n.rewritten(iptables.Query) > 0 })
	single.ask("killed", lab.KubeDNS)
	figures := during.figures()
	report(t, "SIGKILL", figures)
	if figures.Lost > maxLostAtKill {
		t.Errorf("%d queries lost to SIGKILL, more than %d", figures.Lost, maxLostAtKill)
	}

	during = n.askInBackground(mixed(3000))
	during.await(500)
	single.ask("killed, under load", lab.KubeDNS)
	n.serve()
	single.ask("restarted", lab.Trackless)
	figures = during.figures()
	report(t, "restart", figures)
	if resets := figures.LostTo[reset]; resets > maxResetAtStart || figures.Lost-resets > maxLostAtStart {
		t.Errorf("%d connections reset and %d queries lost to the restart, more than %d and %d",
			resets, figures.Lost-resets, maxResetAtStart, maxLostAtStart)
	}

	before := n.rewritten(iptables.Query)
	answeredBy(t, n.ask(mixed(300)), lab.Trackless)
	if after := n.rewritten(iptables.Query); after != before {
		t.Errorf("%d queries rewritten after the restart", after-before)
	}
	n.noLeaks()
}

// report logs the figures of a takeover and fails the test if there was none.
func report(t *testing.T, what string, f lab.Figures) {
	t.Helper()
	t.Logf("%s: %d queries, %d lost %v, answered by %v", what, f.Queries, f.Lost, f.LostTo, f.AnsweredBy)
	for _, by := range []lab.Responder{lab.Trackless, lab.KubeDNS} {
		if f.AnsweredBy[by] < f.Queries/10 {
			t.Errorf("%s: only %d of %d queries were answered by %s", what, f.AnsweredBy[by], f.Queries, by)
		}
	}
}

// await polls until the condition holds.
func (n node) await(condition func() bool) {
	n.t.Helper()
	tick, deadline := time.NewTicker(time.Millisecond), time.After(5*time.Second)
	defer tick.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-deadline:
			n.t.Fatal("waited 5 s in vain")
		}
	}
}
