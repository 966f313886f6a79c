//go:build privileged

package failover

import (
	"testing"
	"time"

	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/lab/load"
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
	maxLostAtKill   = 1000
	maxLostAtStart  = 2
	maxResetAtStart = 50
)

// maxLostAtChange is what a change of the Service's address may cost: the
// queries that are under way.
const maxLostAtChange = 300

const reset = "connection reset by peer"

// busy is how often a takeover that comes before or after all of its load is made
// again.
const busy = 5

func TestKillAndRestartUnderLoad(t *testing.T) {
	n := newNode(t, lab.Options{})
	n.install(pairs(n.ClusterDNS()...))
	single := n.singlePortClients()

	var server *lab.Server
	kill := func() load.Figures {
		server = n.serve()
		single.ask("attached", lab.Trackless)
		during := n.askInBackground(mixed(3000))
		during.await(500)
		before := n.rewritten(iptables.Query)
		if err := server.Kill(); err != nil {
			t.Fatal(err)
		}
		n.await(func() bool { return during.isOver() || n.rewritten(iptables.Query) > before })
		single.ask("killed", lab.KubeDNS)
		return during.figures()
	}
	figures := underLoad(t, "SIGKILL", kill)
	if figures.Lost > maxLostAtKill {
		t.Errorf("%d queries lost to SIGKILL, more than %d", figures.Lost, maxLostAtKill)
	}

	restart := func() load.Figures {
		if err := server.Kill(); err != nil {
			t.Fatal(err)
		}
		during := n.askInBackground(mixed(3000))
		during.await(500)
		single.ask("killed, under load", lab.KubeDNS)
		server = n.serve()
		single.ask("restarted", lab.Trackless)
		return during.figures()
	}
	figures = underLoad(t, "restart", restart)
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

// underLoad makes a takeover, again if a busy machine took so long that the load
// was not spread over both sides of it, and logs its figures.
func underLoad(t *testing.T, what string, takeover func() load.Figures) load.Figures {
	t.Helper()
	for attempt := 1; ; attempt++ {
		f := takeover()
		t.Logf("%s: %d queries, %d lost %v, answered by %v", what, f.Queries, f.Lost, f.LostTo, f.AnsweredBy)
		if min(f.AnsweredBy[lab.Trackless], f.AnsweredBy[lab.KubeDNS]) >= f.Queries/10 {
			return f
		}
		if attempt == busy {
			t.Fatalf("%s: %d attempts, and never were a tenth of the queries answered by either", what, busy)
		}
	}
}

// await polls until the condition holds.
func (n node) await(condition func() bool) {
	n.t.Helper()
	tick, deadline := time.NewTicker(time.Millisecond), time.After(time.Minute)
	defer tick.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-deadline:
			n.t.Fatal("waited a minute in vain")
		}
	}
}
