//go:build privileged

package rules

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/control"
	"github.com/trackless-dns/trackless/iptables/failover"
	"github.com/trackless-dns/trackless/iptables/hostaddr"
	"github.com/trackless-dns/trackless/iptables/nftables"
	"github.com/trackless-dns/trackless/node/rules"
)

// running is an instance as far as rules go: a backend whose rules are
// switched over a control socket.
type running struct{ backend *nftables.Backend }

func (i running) Status() control.Status {
	return control.Status{Backend: "nftables", Table: i.backend.Table(), State: "attached"}
}
func (i running) Attach(context.Context) error        { return i.backend.Attach() }
func (i running) Detach(context.Context) error        { return i.backend.Detach(nil) }
func (i running) Figures() (control.Figures, error)   { return control.Figures{}, nil }
func (i running) Corefile() (control.Corefile, error) { return control.Corefile{}, nil }
func (i running) Log() []byte                         { return nil }

// nodeState is everything of a network namespace that Trackless touches.
func nodeState(t *testing.T) string {
	t.Helper()
	return testns.Run(t, "nft", "list", "tables") + testns.Run(t, "ip", "-o", "address") + testns.Run(t, "ip", "-o", "link")
}

func TestRulesOnTheKernel(t *testing.T) {
	testns.Program(t, "nft")
	ns := int(testns.Enter(t))
	empty := nodeState(t)

	// A running instance, with what it needs.
	backend, err := nftables.New(nftables.Config{NetNS: ns})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = backend.Remove() }() // also where the test fails half way
	addresses := hostaddr.New(hostaddr.Config{NetNS: ns}, hostaddr.DefaultLink)
	listen := []netip.Addr{linkLocal, clusterIP, clusterV6}
	var plan iptables.Plan
	for _, a := range listen {
		plan.Listen = append(plan.Listen, rules.DNSEndpoints(a, nil)...)
	}
	if err := errors.Join(addresses.Ensure(listen), backend.Install(iptables.Rules{Plan: plan.Normalize()}), backend.Attach(),
		failover.Install(failover.Config{NetNS: ns}, []failover.Pair{{Listen: linkLocal, Service: netip.MustParseAddr("10.96.0.99")}}, failover.Outside{})); err != nil {
		t.Fatal(err)
	}
	socket, err := control.Listen(filepath.Join(t.TempDir(), "control.sock"), running{backend})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	// A dead one, on a kernel without owned tables, and a foreign rule.
	testns.Run(t, "nft", "add", "table", "inet", "trackless-dead", fmt.Sprintf("{ comment %q; }", fmt.Sprintf("trackless 1 pid %d start 1 pidns %d", os.Getpid(), control.Self().PIDNamespace)))
	testns.Run(t, "iptables-nft", "-t", "raw", "-A", "PREROUTING", "-d", "10.96.0.10/32", "-p", "udp", "--dport", "53", "-j", "NOTRACK")

	show := func() rules.Report {
		t.Helper()
		out, code, err := runRules(t, rules.Kernel{}, "show", "--output", "json")
		if code != 0 {
			t.Fatal(err)
		}
		var r rules.Report
		if err := json.Unmarshal([]byte(out), &r); err != nil {
			t.Fatal(err)
		}
		return r
	}
	states := func(r rules.Report) map[string]string {
		out := map[string]string{}
		for _, i := range r.Instances {
			out[i.Table] = string(i.Owner.Life) + " " + i.State
		}
		return out
	}

	r := show()
	if got := states(r); len(got) != 2 || got[backend.Table()] != "alive attached" || got["trackless-dead"] != "dead detached" {
		t.Errorf("instances: %v", got)
	}
	if r.Failover == nil || !r.Failover.Intact || len(r.Failover.Pairs) != 1 || r.Failover.Pairs[0].Listen != linkLocal {
		t.Errorf("failover: %+v", r.Failover)
	}
	if len(r.Devices) != 1 || len(r.Devices[0].Addresses) != 3 || !r.Devices[0].Addresses[0].Ours {
		t.Errorf("devices: %+v", r.Devices)
	}
	if len(r.Foreign) != 1 || r.Foreign[0].Table != "raw" || !slices.Equal(r.Foreign[0].Effects, []string{"notrack"}) || !r.Foreign[0].Certain {
		t.Errorf("foreign rules: %+v", r.Foreign)
	}

	for _, tc := range []struct{ verb, state string }{{"detach", "alive detached"}, {"attach", "alive attached"}} {
		if out, code, err := runRules(t, rules.Kernel{}, tc.verb, "--socket", socket.Addr()); code != 0 || !strings.Contains(out, backend.Table()) {
			t.Fatalf("%s: status %d, error %v\n%s", tc.verb, code, err, out)
		}
		if got := states(show())[backend.Table()]; got != tc.state {
			t.Errorf("after %s: %s", tc.verb, got)
		}
	}

	// The living instance keeps all that it needs.
	out, code, err := runRules(t, rules.Kernel{}, "remove", "--force")
	if code != cli.ExitFailure || !strings.Contains(err.Error(), fmt.Sprintf("pid %d is alive", os.Getpid())) {
		t.Errorf("status %d, error %v\n%s", code, err, out)
	}
	r = show()
	if got := states(r); len(got) != 1 || got[backend.Table()] != "alive attached" || r.Failover == nil || len(r.Devices) != 1 {
		t.Errorf("after a removal beside a living instance: %v, failover %v, devices %v", got, r.Failover, r.Devices)
	}

	// It dies: the kernel takes its table, the rest is for remove.
	if err := errors.Join(socket.Close(), backend.Remove()); err != nil {
		t.Fatal(err)
	}
	testns.Run(t, "iptables-nft", "-t", "raw", "-F")
	testns.Run(t, "nft", "delete", "table", "ip", "raw")
	if out, code, err = runRules(t, rules.Kernel{}, "remove", "--dry-run"); code != 0 || !strings.Contains(out, "would remove: failover table") {
		t.Errorf("status %d, error %v\n%s", code, err, out)
	}
	if show().Failover == nil {
		t.Error("a dry run removed the failover table")
	}
	for _, want := range []string{"removed: failover table inet trackless-failover", "nothing of ours is on this node"} {
		if out, code, err = runRules(t, rules.Kernel{}, "remove"); code != 0 || !strings.Contains(out, want) {
			t.Errorf("status %d, error %v; want %q in\n%s", code, err, want, out)
		}
	}
	if got := nodeState(t); got != empty {
		t.Errorf("left behind:\n%s\nbefore:\n%s", got, empty)
	}
}
