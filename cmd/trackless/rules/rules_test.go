package rules

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
	"github.com/trackless-dns/trackless/internal/testgolden"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/control"
	"github.com/trackless-dns/trackless/iptables/failover"
	"github.com/trackless-dns/trackless/iptables/hostaddr"
	"github.com/trackless-dns/trackless/iptables/hostrules"
	"github.com/trackless-dns/trackless/iptables/owner"
	"github.com/trackless-dns/trackless/node/nodetest"
	"github.com/trackless-dns/trackless/node/rules"
)

var (
	linkLocal = netip.MustParseAddr("169.254.20.10")
	clusterIP = netip.MustParseAddr("10.96.0.10")
	clusterV6 = netip.MustParseAddr("fd00:10:96::a")
)

func living(table string, pid int) iptables.Instance {
	return iptables.Instance{
		Backend: "nftables",
		Table:   table, Owned: true,
		Owner:  owner.Owner{PID: pid, LocalPID: pid, Life: owner.Alive, Command: "trackless"},
		Listen: rules.DNSEndpoints(clusterIP, nil), Live: rules.DNSEndpoints(clusterIP, nil), Packets: iptables.Counters{},
	}
}

// chains makes an instance one of the iptables backend.
func chains(i iptables.Instance) iptables.Instance {
	i.Backend, i.Variant, i.Owned = "iptables", "legacy", false
	return i
}

func dead(table string) iptables.Instance {
	return iptables.Instance{Backend: "nftables", Table: table, Owner: owner.Owner{PID: 11, Life: owner.Dead}, Listen: rules.DNSEndpoints(clusterIP, nil), Packets: iptables.Counters{}}
}

func unseen(table string) iptables.Instance {
	return iptables.Instance{Backend: "nftables", Table: table, Owner: owner.Owner{PID: 1, Life: owner.Unknown}, Packets: iptables.Counters{}}
}

func dummyWith(addrs ...hostaddr.Address) hostaddr.Device {
	return hostaddr.Device{Name: "nodelocaldns", Kind: "dummy", Link: true, Addresses: addrs}
}

// runRules runs the verb on a node and returns what it prints and its status.
func runRules(t *testing.T, node rules.Node, args ...string) (string, int, error) {
	t.Helper()
	cmd := commandOn(func() rules.Node { return node }, nil)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(t.Context())
	var exit *cli.ExitError
	switch {
	case err == nil:
		return out.String(), 0, nil
	case errors.As(err, &exit):
		return out.String(), exit.Code, err
	}
	return out.String(), cli.ExitUsage, err
}

// acceptRule is one of ours in a host's chain.
var acceptRule = hostrules.AcceptRule{
	Family: "ip", Legacy: true, Chain: "INPUT", Handle: 1, Endpoint: iptables.Endpoint{Addr: clusterIP, Port: 53, Proto: iptables.UDP},
	Direction: iptables.Query, Text: `ip daddr 10.96.0.10 meta l4proto udp th dport 53 ct state untracked accept comment "trackless 1: untracked DNS"`,
}

// acceptRuleAt is one in a chain of nf_tables.
func acceptRuleAt(a netip.Addr) hostrules.AcceptRule {
	r := acceptRule
	r.Legacy, r.Endpoint.Addr = false, a
	return r
}

// pairs is a failover table for the addresses.
func pairs(listen ...netip.Addr) failover.State {
	f := failover.State{Present: true, Intact: true}
	for _, a := range listen {
		f.Pairs = append(f.Pairs, failover.Pair{Listen: a, Service: netip.MustParseAddr("10.96.0.99")})
	}
	return f
}

func loWith(addrs ...netip.Addr) hostaddr.Device {
	lo := hostaddr.Device{Name: "lo"}
	for _, a := range addrs {
		lo.Addresses = append(lo.Addresses, hostaddr.Address{Addr: a, Marked: true})
	}
	return lo
}

func fullNode() *nodetest.Node {
	first := living("trackless-0a1b2c3d", 4711)
	first.Listen = slices.Concat(rules.DNSEndpoints(linkLocal, nil), first.Listen)
	first.Live = first.Listen
	first.Packets = iptables.Counters{{Direction: iptables.Query, Family: iptables.IPv4, Proto: iptables.UDP}: 1234, {Direction: iptables.Response, Family: iptables.IPv4, Proto: iptables.UDP}: 1230}
	contained := living("trackless-1a1b2c3d", 1)
	contained.Owner.LocalPID, contained.Live = 815, nil
	partly := dead("trackless-2a1b2c3d")
	partly.Live = partly.Listen[:1]
	socket := nodetest.NewSocket("/run/trackless/control.sock", 4711, first.Table)
	socket.State.FastPath = &control.FastPath{
		Program: 57, Hits: 90210, Answers: 812,
		Devices: []control.FastPathDevice{
			{Device: "veth1", Attached: "tcx"}, {Device: "veth2", Reason: "chain INPUT of table ip filter may drop its DNS (policy drop), and the kernel's answers would pass it by"},
		},
		Blocks: []control.FastPathBlock{{Block: "dns://cluster.local.:53"}, {Block: "dns://.:53", Reason: "rewrite must see every query"}},
	}
	byHand := nodetest.NewSocket(nodetest.InContainer(815), 815, contained.Table)
	byHand.OnlyByPID = true
	byHand.State.FastPath = &control.FastPath{Problem: "load the kernel program: the process lacks CAP_BPF; add BPF to the container's capabilities"}
	byHand.State.State, byHand.State.ByHand, byHand.State.Reason = "draining", true, "2 queries are being answered"
	return &nodetest.Node{
		Tables: []iptables.Instance{first, contained, partly, unseen("trackless-3a1b2c3d")},
		Standing: failover.State{Present: true, Intact: true,
			Pairs:    []failover.Pair{{Listen: linkLocal, Service: netip.MustParseAddr("10.96.0.99")}},
			Counters: iptables.Counters{{Direction: iptables.Query, Family: iptables.IPv4, Proto: iptables.TCP}: 3}},
		OtherRules: []hostrules.ConflictingRule{
			{Family: "ip", Table: "raw", Chain: "PREROUTING", Hook: "prerouting", Priority: -300, Handle: 4, Effects: []string{"notrack"},
				Certain: true, Directions: []iptables.Direction{iptables.Query}, Text: "ip daddr 10.96.0.10 meta l4proto udp th dport 53 CT"},
			{Family: "ip", Table: "raw", Chain: "PREROUTING", Legacy: true, Hook: "prerouting", Priority: -300, Handle: 2, Effects: []string{"accept"},
				Certain: true, Directions: []iptables.Direction{iptables.Query}, Text: "meta l4proto udp th dport 53 accept"},
			{Family: "inet", Table: "firewall", Chain: "in", Hook: "prerouting", Priority: -400, Effects: []string{"drop"},
				Directions: []iptables.Direction{iptables.Query, iptables.Response}, Text: "policy drop"},
		},
		Links:     []hostaddr.Device{dummyWith(hostaddr.Address{Addr: clusterIP, Marked: true}, hostaddr.Address{Addr: clusterV6})},
		Accepting: []hostrules.AcceptRule{acceptRule},
		Controls:  []*nodetest.Socket{socket, byHand},
	}
}

// leftOverNode has an instance that serves the ClusterIP alone, and what one left that
// served a link-local address as well.
func leftOverNode() *nodetest.Node {
	return &nodetest.Node{
		Tables: []iptables.Instance{living("trackless-0a1b2c3d", 4711)}, Standing: pairs(linkLocal),
		Accepting: []hostrules.AcceptRule{acceptRuleAt(linkLocal)},
		Links:     []hostaddr.Device{loWith(linkLocal, clusterIP)},
	}
}

func TestRulesShow(t *testing.T) {
	for _, tc := range []struct {
		name   string
		node   *nodetest.Node
		args   []string
		golden string
	}{
		{"text", fullNode(), []string{"show"}, "rules-show.txt"},
		{"json", fullNode(), []string{"show", "--output", "json"}, "rules-show.json"},
		{"left over", leftOverNode(), []string{"show"}, "rules-show-left.txt"},
		{"empty text", &nodetest.Node{}, []string{"show"}, "rules-show-empty.txt"},
		{"empty json", &nodetest.Node{}, []string{"show", "-o", "json"}, "rules-show-empty.json"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			out, code, err := runRules(t, tc.node, tc.args...)
			if code != 0 {
				t.Fatal(err)
			}
			if strings.Contains(out, "\x1b") {
				t.Error("colour off the terminal")
			}
			testgolden.Compare(t, tc.golden, out)
		})
	}
}

// Rules of others untrack DNS to a server of this node that is none of ours.
func TestRulesShowOfOthersAlone(t *testing.T) {
	node := &nodetest.Node{
		OtherServers: []netip.Addr{netip.MustParseAddr("169.254.10.11")},
		OtherRules:   []hostrules.ConflictingRule{{Family: "ip", Table: "raw", Chain: "OUTPUT", Hook: "output", Effects: []string{"notrack"}, Certain: true}},
	}
	out, code, err := runRules(t, node, "show")
	if code != 0 || strings.Contains(out, "DNS is tracked") || !strings.Contains(out, "rules of others untrack DNS to 169.254.10.11") {
		t.Errorf("%d, %v\n%s", code, err, out)
	}
	node.OtherRules[0].Effects = []string{hostrules.EffectZone}
	if out, _, _ := runRules(t, node, "show"); !strings.Contains(out, "DNS is tracked") || !strings.Contains(out, "which tracks them whatever") {
		t.Errorf("a zone:\n%s", out)
	}
}

func TestRulesShowSaysWhatItCannotRead(t *testing.T) {
	_, code, err := runRules(t, &nodetest.Node{Err: fmt.Errorf("nftables: list tables: %w", iptables.ErrPermission)}, "show")
	if code != cli.ExitFailure || !strings.Contains(err.Error(), "rules show: nftables: list tables: needs CAP_NET_ADMIN: run it as root") {
		t.Errorf("status %d, error %v", code, err)
	}
	out, code, err := runRules(t, &nodetest.Node{
		Err:   &iptables.UnsupportedError{Feature: "nf_tables", Remedy: "modprobe", Err: errors.New("no")},
		Links: []hostaddr.Device{dummyWith(hostaddr.Address{Addr: clusterIP, Marked: true})},
	}, "show")
	if code != 0 || !strings.Contains(out, "this node has no nf_tables") || !strings.Contains(out, "10.96.0.10") {
		t.Errorf("without nf_tables: status %d, error %v\n%s", code, err, out)
	}
	hung := nodetest.NewSocket("/run/trackless/control.sock", 1, "")
	hung.StatusErr = fmt.Errorf("control socket %s: %w", hung.Name, context.DeadlineExceeded)
	gone := nodetest.NewSocket("/run/trackless/stale.sock", 1, "")
	gone.StatusErr = errors.New("connection refused")
	out, _, _ = runRules(t, &nodetest.Node{Controls: []*nodetest.Socket{hung, gone}}, "show")
	if !strings.Contains(out, hung.Name) || strings.Contains(out, gone.Name) {
		t.Errorf("one is hung and one is gone:\n%s", out)
	}
}

func TestColourIsForTerminals(t *testing.T) {
	report, err := rules.Read(t.Context(), fullNode(), rules.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var plain, colour bytes.Buffer
	if err := errors.Join(Text(&plain, report, false), Text(&colour, report, true)); err != nil {
		t.Fatal(err)
	}
	stripped := regexp.MustCompile(`\x1b\[[0-9;]*m`).ReplaceAllString(colour.String(), "")
	if stripped == colour.String() {
		t.Error("no colour at all")
	}
	if diff := cmp.Diff(plain.String(), stripped); diff != "" {
		t.Errorf("colour changes the text:\n%s", diff)
	}
}

func TestRulesRemove(t *testing.T) {
	ours := dummyWith(hostaddr.Address{Addr: clusterIP, Marked: true})
	mixed := dummyWith(hostaddr.Address{Addr: clusterIP, Marked: true}, hostaddr.Address{Addr: linkLocal})
	lo := hostaddr.Device{Name: "lo", Addresses: []hostaddr.Address{{Addr: clusterIP, Marked: true}, {Addr: clusterV6}}}
	eth := hostaddr.Device{Name: "eth0", Addresses: []hostaddr.Address{{Addr: clusterIP}}}
	failover := failover.State{Present: true}
	golden := testgolden.NewRows(t, "errors-remove.golden")
	for _, tc := range []struct {
		name string
		node nodetest.Node
		args []string
		want []string // what is removed
		out  []string
		code int
		err  string
	}{
		{name: "nothing there", out: []string{"nothing of ours is on this node"}},
		{
			name: "all of a dead instance",
			node: nodetest.Node{Tables: []iptables.Instance{dead("trackless-a")}, Standing: failover, Accepting: []hostrules.AcceptRule{acceptRule}, Links: []hostaddr.Device{ours}},
			want: []string{"table trackless-a", "failover", "ip filter (iptables-legacy) INPUT query udp 10.96.0.10:53", "link nodelocaldns"},
			out: []string{"removed: table inet trackless-a: its owner, pid 11, is dead", "removed: failover table inet trackless-failover",
				"removed: accept rule ip filter (iptables-legacy) INPUT query udp 10.96.0.10:53", "removed: link nodelocaldns"},
		},
		{
			name: "chains of a dead instance of the iptables backend",
			node: nodetest.Node{Tables: []iptables.Instance{chains(dead("TRACKLESS-a"))}},
			want: []string{"table TRACKLESS-a"},
			out:  []string{"removed: chains TRACKLESS-a-*: its owner, pid 11, is dead"},
		},
		{
			name: "dry run",
			node: nodetest.Node{Tables: []iptables.Instance{dead("trackless-a")}, Standing: failover, Links: []hostaddr.Device{ours}},
			args: []string{"--dry-run"},
			out:  []string{"would remove: table inet trackless-a", "would remove: failover table", "would remove: link nodelocaldns"},
		},
		{
			name: "a living instance keeps what it needs",
			node: nodetest.Node{Tables: []iptables.Instance{dead("trackless-a"), living("trackless-b", 4711)}, Standing: failover, Links: []hostaddr.Device{ours, lo}},
			want: []string{"table trackless-a"},
			out: []string{"left: table inet trackless-b: pid 4711 is alive; end it with `kill 4711`", "left: failover table",
				"left: link nodelocaldns: table inet trackless-b is in use", "left: address 10.96.0.10 on lo"},
			code: cli.ExitFailure,
		},
		{
			name: "what a living instance does not ask for",
			node: nodetest.Node{
				Tables: []iptables.Instance{living("trackless-b", 4711)}, Standing: pairs(linkLocal),
				Accepting: []hostrules.AcceptRule{acceptRule, acceptRuleAt(linkLocal)},
				Links:     []hostaddr.Device{dummyWith(hostaddr.Address{Addr: linkLocal, Marked: true}, hostaddr.Address{Addr: clusterIP, Marked: true}), loWith(linkLocal)},
			},
			want: []string{"failover", "ip filter INPUT query udp 169.254.20.10:53", "address nodelocaldns 169.254.20.10", "address lo 169.254.20.10"},
			out:  []string{"left: link nodelocaldns: table inet trackless-b is in use", "left: accept rule ip filter (iptables-legacy) INPUT query udp 10.96.0.10:53"},
			code: cli.ExitFailure,
		},
		{
			name: "pairs of the failover table that a living instance does not ask for",
			node: nodetest.Node{Tables: []iptables.Instance{living("trackless-b", 4711)}, Standing: pairs(linkLocal, clusterIP)},
			want: []string{"failover but [{10.96.0.10 10.96.0.99 []}]"},
			out:  []string{"left: failover table inet trackless-failover: table inet trackless-b is in use", "removed: failover pair 169.254.20.10 to 10.96.0.99"},
			code: cli.ExitFailure,
		},
		{
			name: "node-cache has taken the addresses over, and has no use for our rules",
			node: nodetest.Node{Listening: []netip.Addr{linkLocal, clusterIP}, Standing: pairs(linkLocal), Accepting: []hostrules.AcceptRule{acceptRule}, Links: []hostaddr.Device{mixed}},
			want: []string{"failover", "ip filter (iptables-legacy) INPUT query udp 10.96.0.10:53"},
			out:  []string{"left: link nodelocaldns: a DNS server that listens there and is no instance of Trackless is in use"},
		},
		{
			name: "force takes no address from a server that listens there",
			node: nodetest.Node{Listening: []netip.Addr{clusterIP}, Links: []hostaddr.Device{mixed, loWith(clusterIP)}},
			args: []string{"--force"},
		},
		{
			name: "force does not override a living instance",
			node: nodetest.Node{Tables: []iptables.Instance{living("trackless-b", 4711)}, Standing: failover, Links: []hostaddr.Device{ours}},
			args: []string{"--force"}, code: cli.ExitFailure,
		},
		{
			name: "a dry run has the status of the removal",
			node: nodetest.Node{Tables: []iptables.Instance{living("trackless-b", 4711)}},
			args: []string{"--dry-run"}, code: cli.ExitFailure,
		},
		{
			name: "an owner that cannot be seen",
			node: nodetest.Node{Tables: []iptables.Instance{unseen("trackless-c")}, Links: []hostaddr.Device{ours}},
			out:  []string{"left: table inet trackless-c: pid 1 of a container that cannot be seen from here may be alive"},
			code: cli.ExitFailure,
		},
		{
			name: "an owner that cannot be seen, by force",
			node: nodetest.Node{Tables: []iptables.Instance{unseen("trackless-c")}, Links: []hostaddr.Device{ours}},
			args: []string{"--force"}, want: []string{"table trackless-c", "link nodelocaldns"},
		},
		{
			name: "an instance that starts meanwhile",
			node: nodetest.Node{Tables: []iptables.Instance{dead("trackless-a")}, Standing: failover, Links: []hostaddr.Device{ours}, Late: true},
			want: []string{"table trackless-a"}, out: []string{"left: failover table inet trackless-failover: table inet trackless-late is in use"},
		},
		{
			name: "addresses of others stay, and with them the link",
			node: nodetest.Node{Links: []hostaddr.Device{mixed, lo, eth}},
			want: []string{"address nodelocaldns 10.96.0.10", "address lo 10.96.0.10"},
			out:  []string{"left: address 169.254.20.10 on nodelocaldns: it does not carry our mark", "left: address fd00:10:96::a on lo"},
		},
		{
			name: "addresses without our mark, by force",
			node: nodetest.Node{Links: []hostaddr.Device{mixed, lo, eth}},
			args: []string{"--force"},
			want: []string{"link nodelocaldns", "address lo 10.96.0.10", "address lo fd00:10:96::a"},
		},
		{
			name: "no privilege",
			node: nodetest.Node{Err: iptables.ErrPermission}, code: cli.ExitFailure,
		},
		{
			name: "a kernel without nf_tables has the link all the same",
			node: nodetest.Node{Err: &iptables.UnsupportedError{Feature: "nf_tables", Err: errors.New("no")}, Links: []hostaddr.Device{ours}},
			want: []string{"link nodelocaldns"},
		},
		{name: "wrong output", args: []string{"--output", "yaml"}, code: cli.ExitUsage},
		{name: "an argument", args: []string{"everything"}, code: cli.ExitUsage},
	} {
		t.Run(tc.name, func(t *testing.T) {
			out, code, err := runRules(t, &tc.node, append([]string{"remove"}, tc.args...)...)
			if code != tc.code || (err != nil) != (tc.code != 0) {
				t.Errorf("status %d, error %v; want %d", code, err, tc.code)
			}
			if err != nil {
				golden.Compare(t, tc.name, err.Error())
			}
			if diff := cmp.Diff(tc.want, tc.node.Removed); diff != "" {
				t.Errorf("removed (-want +got):\n%s", diff)
			}
			for _, want := range tc.out {
				if !strings.Contains(out, want) {
					t.Errorf("%q is missing in\n%s", want, out)
				}
			}
		})
	}
}

func TestRulesRemoveJSON(t *testing.T) {
	node := &nodetest.Node{Tables: []iptables.Instance{dead("trackless-a"), living("trackless-b", 4711)}}
	out, code, _ := runRules(t, node, "remove", "--dry-run", "--output", "json")
	if code != cli.ExitFailure {
		t.Errorf("status %d", code)
	}
	testgolden.Compare(t, "rules-remove.json", out)
	out, _, _ = runRules(t, &nodetest.Node{}, "remove", "-o", "json")
	var empty struct{ Items []rules.Removal }
	if err := json.Unmarshal([]byte(out), &empty); err != nil || empty.Items == nil {
		t.Errorf("with nothing to do, items is not an empty list: %v\n%s", err, out)
	}
}

func TestRulesAttachAndDetach(t *testing.T) {
	type asked struct {
		socket *nodetest.Socket
		asked  string
	}
	first := func() *nodetest.Socket { return nodetest.NewSocket("/run/trackless/control.sock", 4711, "trackless-b") }
	second := func() *nodetest.Socket {
		return nodetest.NewSocket("/run/trackless/control-815.sock", 815, "trackless-d")
	}
	elsewhere := second()
	elsewhere.State.Process.NetNamespace = 2
	alias := first()
	alias.Name = nodetest.InContainer(4711)
	refusing := second()
	refusing.SwitchErr = &control.RefusedError{Reason: "this process is stopping"}
	hanging := first()
	hanging.Hangs, hanging.State.Reason = true, "tcp 10.96.0.10:53 does not answer"
	stale := second()
	stale.StatusErr = errors.New("connection refused")
	golden := testgolden.NewRows(t, "errors-attach.golden")
	for _, tc := range []struct {
		name     string
		args     []string
		tables   []iptables.Instance
		tableErr error
		sockets  []asked
		out      []string
		code     int
		err      string
	}{
		{
			name: "all instances", args: []string{"detach"}, tables: []iptables.Instance{living("trackless-b", 4711), living("trackless-d", 815)},
			sockets: []asked{{first(), "detach"}, {second(), "detach"}},
			out:     []string{"pid 4711 (table inet trackless-b): detached", "pid 815 (table inet trackless-d): detached"},
		},
		{
			name: "attach", args: []string{"attach"}, sockets: []asked{{first(), "attach"}},
			out: []string{"pid 4711 (table inet trackless-b): attached"},
		},
		{
			name: "one of them", args: []string{"detach", "--pid", "815"}, tables: []iptables.Instance{living("trackless-b", 4711), living("trackless-d", 815)},
			sockets: []asked{{first(), ""}, {second(), "detach"}},
		},
		{
			name: "one by its socket", args: []string{"detach", "--socket", first().Name}, tables: []iptables.Instance{living("trackless-d", 815)},
			sockets: []asked{{first(), "detach"}, {second(), ""}},
		},
		{
			name: "without the privilege to read tables", args: []string{"detach"}, tableErr: iptables.ErrPermission,
			sockets: []asked{{first(), "detach"}},
		},
		{
			name: "found by two names, asked once", args: []string{"detach"}, sockets: []asked{{first(), "detach"}, {alias, ""}},
		},
		{
			name: "not those of another network namespace", args: []string{"detach"}, sockets: []asked{{first(), "detach"}, {elsewhere, ""}},
		},
		{
			name: "no instance", args: []string{"detach"}, sockets: []asked{{stale, ""}},
			code: cli.ExitFailure,
		},
		{
			name: "no such pid", args: []string{"detach", "--pid", "5"}, sockets: []asked{{first(), ""}},
			code: cli.ExitFailure,
		},
		{
			name: "a table whose owner has no socket", args: []string{"detach"}, tables: []iptables.Instance{living("trackless-b", 4711), living("trackless-d", 815), dead("trackless-a")},
			sockets: []asked{{first(), "detach"}, {stale, ""}},
			out:     []string{"pid 4711 (table inet trackless-b): detached"},
			code:    cli.ExitFailure,
		},
		{
			name: "an instance refuses", args: []string{"attach"}, sockets: []asked{{first(), "attach"}, {refusing, "attach"}},
			out:  []string{"pid 4711 (table inet trackless-b): attached"},
			code: cli.ExitFailure,
		},
		{
			name: "an instance takes too long, and says why", args: []string{"attach", "--timeout", "10ms"}, sockets: []asked{{hanging, "attach"}},
			code: cli.ExitFailure,
		},
		{
			name: "the named socket does not answer", args: []string{"detach", "--socket", stale.Name}, sockets: []asked{{stale, ""}},
			code: cli.ExitFailure,
		},
		{name: "wrong pid", args: []string{"detach", "--pid", "-1"}, code: cli.ExitUsage},
		{name: "no time", args: []string{"detach", "--timeout", "0s"}, code: cli.ExitUsage},
	} {
		t.Run(tc.name, func(t *testing.T) {
			node := &nodetest.Node{Tables: tc.tables, Err: tc.tableErr}
			for _, s := range tc.sockets {
				s.socket.Asked = ""
				node.Controls = append(node.Controls, s.socket)
			}
			out, code, err := runRules(t, node, tc.args...)
			if code != tc.code || (err != nil) != (tc.code != 0) {
				t.Errorf("status %d, error %v; want %d", code, err, tc.code)
			}
			if err != nil {
				golden.Compare(t, tc.name, err.Error())
			}
			for _, s := range tc.sockets {
				if s.socket.Asked != s.asked {
					t.Errorf("%s was asked to %q, want %q", s.socket.Name, s.socket.Asked, s.asked)
				}
			}
			for _, want := range tc.out {
				if !strings.Contains(out, want) {
					t.Errorf("%q is missing in\n%s", want, out)
				}
			}
		})
	}
}

func TestRulesDetachJSON(t *testing.T) {
	refusing := nodetest.NewSocket("/run/trackless/control-815.sock", 815, "trackless-d")
	refusing.SwitchErr = &control.RefusedError{Reason: "this process is stopping"}
	node := &nodetest.Node{Controls: []*nodetest.Socket{nodetest.NewSocket("/run/trackless/control.sock", 47, "trackless-b"), refusing}}
	out, _, _ := runRules(t, node, "detach", "--output", "json")
	testgolden.Compare(t, "rules-detach.json", out)
}

func TestRulesCompletion(t *testing.T) {
	node := &nodetest.Node{Controls: []*nodetest.Socket{nodetest.NewSocket("/run/trackless/control.sock", 4711, "trackless-b")}}
	for _, tc := range []struct {
		args []string
		want []string
	}{
		{[]string{"show", "--output", ""}, []string{"table", "json"}},
		{[]string{"detach", "--pid", ""}, []string{"4711"}},
		{[]string{"plan", "--format", ""}, []string{"nft", "iptables-save"}},
		{[]string{"plan", "-co"}, []string{"-conf\t"}},
		{[]string{"plan", "--"}, []string{"--format\t", "--output\t"}},
		{[]string{"plan", "-conf", ""}, []string{":0"}},
	} {
		out, _, err := runRules(t, node, append([]string{"__complete"}, tc.args...)...)
		if err != nil {
			t.Errorf("%v: %v", tc.args, err)
		}
		for _, want := range tc.want {
			if !strings.Contains(out, want) {
				t.Errorf("%v: %q is missing in\n%s", tc.args, want, out)
			}
		}
	}
}
