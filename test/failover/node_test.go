//go:build privileged

// Package failover shows on lab nodes that the failover table answers for
// listen addresses no Service owns while Trackless is away, and does nothing
// else.
package failover

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/failover"
	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/lab/labtest"
	"github.com/trackless-dns/trackless/lab/load"
)

// The listen addresses of these tests. No Service of the lab owns them, and
// they are in none of its networks.
var (
	listen4 = lab.LinkLocalDNS4
	listen6 = netip.MustParseAddr("fd00:20::10")
	listen  = []netip.Addr{listen4, listen6}
)

// pairs lead to the kube-dns Service.
func pairs(services ...netip.Addr) []failover.Pair {
	var out []failover.Pair
	for _, service := range services {
		addr := listen4
		if service.Is6() {
			addr = listen6
		}
		out = append(out, failover.Pair{Listen: addr, Service: service})
	}
	return out
}

// A node under test, with counters of what must not leave it.
type node struct {
	*lab.Node
	t *testing.T
}

func newNode(t *testing.T, options lab.Options) node {
	t.Helper()
	labtest.Require(t)
	if !lab.HasIPv6() {
		testns.Skip(t, "IPv6")
	}
	options.Program = labtest.Program(t)
	n, err := lab.NewNode(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	labNode := node{n, t}
	labNode.command(leakCounters, "nft", "-f", "-")
	return labNode
}

// leakCounters count, behind everything else, what the node sends to a listen
// address, and queries that it sends from one: nobody could answer them.
var leakCounters = fmt.Sprintf(`table inet leaks {
	counter to-listen { }
	counter query-from-listen { }
	chain postrouting {
		type filter hook postrouting priority 32000;
		oifname "lo" accept
		ip daddr %[1]s counter name "to-listen"
		ip6 daddr %[2]s counter name "to-listen"
		ip saddr %[1]s th dport 53 counter name "query-from-listen"
		ip6 saddr %[2]s th dport 53 counter name "query-from-listen"
	}
}
`, listen4, listen6)

// command runs a program inside the node's namespace.
func (n node) command(stdin, name string, args ...string) string {
	n.t.Helper()
	testns.Program(n.t, name)
	var out []byte
	err := n.Namespace.Do(func() error {
		cmd := exec.Command(name, args...)
		cmd.Stdin = strings.NewReader(stdin)
		var err error
		out, err = cmd.CombinedOutput()
		return err
	})
	if err != nil {
		n.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func (n node) failover() failover.Config { return failover.Config{NetNS: n.Namespace.FD()} }

func (n node) install(pairs []failover.Pair) {
	n.t.Helper()
	if err := failover.Install(n.failover(), pairs, failover.Outside{}); err != nil {
		n.t.Fatal(err)
	}
}

// noLeaks fails the test if a packet to a listen address, or a query from one,
// has left the node.
func (n node) noLeaks() {
	n.t.Helper()
	out := n.command("", "nft", "list", "counters", "table", "inet", "leaks")
	if strings.Count(out, "packets 0 ") != 2 {
		n.t.Errorf("packets have left the node that nobody can answer:\n%s", out)
	}
}

// rewritten is the number of packets that the failover table has rewritten in
// the given directions.
func (n node) rewritten(directions ...iptables.Direction) (packets uint64) {
	n.t.Helper()
	f, err := failover.Read(n.failover())
	if err != nil {
		n.t.Fatal(err)
	}
	if !f.Intact {
		n.t.Fatalf("the failover table is not intact: %+v", f)
	}
	for k, v := range f.Counters {
		if slices.Contains(directions, k.Direction) {
			packets += v
		}
	}
	return packets
}

// entries calls fn with every entry of the node's table.
func (n node) entries(fn func(*conntrack.Entry)) {
	n.t.Helper()
	conn, err := conntrack.Dial(&conntrack.Config{NetNS: n.Namespace.FD()})
	if err != nil {
		n.t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.Dump(conntrack.Filter{}, func(e *conntrack.Entry) error { fn(e); return nil }); err != nil {
		n.t.Fatal(err)
	}
}

// serve starts Trackless on the listen addresses and waits until it is
// attached.
func (n node) serve() *lab.Server {
	n.t.Helper()
	server, err := n.Serve(corefile)
	if err != nil {
		n.t.Fatal(err)
	}
	n.attached(server)
	return server
}

func (n node) attached(server *lab.Server) {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), time.Minute)
	defer cancel()
	if err := server.AwaitAttached(ctx, "127.0.0.1:9253"); err != nil {
		n.t.Fatal(err)
	}
}

// corefile caps TTLs, which tells the answers of the cache from kube-dns's. No
// stall of the machine ends its lease: what a takeover costs is counted where a
// test makes one.
var corefile = fmt.Sprintf(`.:53 {
    errors
    bind %s %s
    notrack {
        failover off
        lease 5s
    }
    cache {
        success 9984 30
        denial 9984 30
    }
    forward . %s
    prometheus 127.0.0.1:9253
}
`, listen4, listen6, lab.UpstreamDNS4)

// ask sends the load and returns what became of it.
func (n node) ask(queries load.Load) load.Figures {
	n.t.Helper()
	if len(queries.Targets) == 0 {
		queries.Targets = listen
	}
	result, err := load.Run(n.t.Context(), n.Node, queries)
	if err != nil {
		n.t.Fatal(err)
	}
	return result.Figures()
}

// mixed is a load of all kinds of clients in about equal parts: UDP and TCP,
// IPv4 and IPv6, pods and the node.
func mixed(queries int) load.Load {
	mix := load.DefaultMix
	mix.TCP, mix.IPv6, mix.FromNode = 0.4, 0.5, 0.4
	return load.Load{Queries: queries, Rate: 1000, Mix: &mix}
}

// answeredBy fails the test unless every query was answered by one responder.
func answeredBy(t *testing.T, f load.Figures, want lab.Responder) {
	t.Helper()
	if f.Lost > 0 || f.AnsweredBy[want] != f.Queries {
		t.Errorf("%d of %d queries answered by %s, %d lost %v, answered by %v", f.AnsweredBy[want], f.Queries, want, f.Lost, f.LostTo, f.AnsweredBy)
	}
}
