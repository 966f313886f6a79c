//go:build privileged

package ruleset

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/trackless-dns/trackless/agent/firewall"
	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/iptables"
)

// Rules of node-cache in legacy tables block an address while they cannot be deleted. They
// are deleted as soon as that is possible.
func TestRulesOfNodeCache(t *testing.T) {
	testns.Enter(t)
	testns.Program(t, "iptables-legacy")
	lock := filepath.Join(t.TempDir(), "xtables.lock")
	t.Setenv("XTABLES_LOCKFILE", lock)
	testns.Run(t, "iptables-legacy", "-w", "-t", "raw", "-I", "PREROUTING", "-p", "udp", "-d", "10.96.0.10", "--dport", "53",
		"-m", "comment", "--comment", "NodeLocal DNS Cache: skip conntrack", "-j", "NOTRACK")
	if err := os.Remove(lock); err != nil {
		t.Fatal(err)
	}
	left, other := netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("169.254.20.10")
	rules := iptables.Rules{}
	for _, a := range []netip.Addr{left, other} {
		rules.Plan.Listen = append(rules.Plan.Listen, iptables.Endpoint{Addr: a, Port: 53, Proto: iptables.UDP})
	}
	open := (&firewall.Opener{Log: quiet{}}).Open
	if blocked, _ := open(rules); !errors.Is(blocked[left], iptables.ErrUntracked) || blocked[other] != nil {
		t.Errorf("without the lock: %v", blocked)
	}
	a := &Adopter{Log: quiet{}, Count: func(string) {}}
	if _, err := a.Adopt([]netip.Addr{left}); err == nil {
		t.Error("without the lock: no error")
	}
	if a.last = a.last.Add(-2 * adoptInterval); a.failed == "" {
		t.Error("the last error is forgotten")
	}
	if _, err := a.Adopt([]netip.Addr{left}); err != nil {
		t.Errorf("the same error again: %v", err)
	}
	if err := os.WriteFile(lock, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if blocked, _ := open(rules); len(blocked) > 0 {
		t.Errorf("with the lock: %v", blocked)
	}
	a.last = a.last.Add(-2 * adoptInterval)
	if changed, err := a.Adopt([]netip.Addr{left}); !changed || err != nil {
		t.Errorf("with the lock: %t, %v", changed, err)
	}
}

// quiet is a log that discards everything.
type quiet struct{}

func (quiet) Debugf(string, ...any)   {}
func (quiet) Infof(string, ...any)    {}
func (quiet) Warningf(string, ...any) {}
func (quiet) Errorf(string, ...any)   {}
