package chaos

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/trackless-dns/trackless/lab"
)

// The backends on which faults are played, as the Corefile names them.
const (
	NFTables       = "nftables"
	IPTablesLegacy = "iptables legacy"
	IPTablesNFT    = "iptables nft"
)

// Backends are all of them, in the order of the table.
func Backends() []string { return []string{NFTables, IPTablesLegacy, IPTablesNFT} }

// onIPTables are the faults of the nftables backend that are played on iptables,
// too: those in which the backends differ, and the firewalls, whose rules stand in
// the programs' own tables beside ours.
var onIPTables = []string{
	"sigkill", "sigterm", "start", "restart", "second-instance", "sigstop", "deadlock", "stuck-reader", "flood", "deaf-tcp",
	"address-deleted", "link-down", "forged-martian", "syn-flood", "iptables-flush", "iptables-restore", "foreign-zone", "node-cache-killed",
	"input-drop", "policy-drop", "policy-drop-ufw", "policy-drop-legacy", "firewalld",
}

// CasesOn are the faults that are played on a backend.
func CasesOn(backend string) ([]*Case, error) {
	switch backend {
	case NFTables:
		return append(Cases(), switches()...), nil
	case IPTablesLegacy, IPTablesNFT:
	default:
		return nil, fmt.Errorf("no backend is called %q; there are %s", backend, strings.Join(Backends(), ", "))
	}
	var out []*Case
	for _, c := range Cases() {
		if slices.Contains(onIPTables, c.Name) {
			out = append(out, c)
		}
	}
	out = append(out, locks(backend)...)
	for _, c := range out {
		c.Backend = backend
		if c.Name == "sigkill" {
			c.Bar = "at most 1.5 s of queries, restart 0 lost"
		}
	}
	return out, nil
}

// switches are changes of the backend by reload, from each to another.
func switches() []*Case {
	var out []*Case
	for _, change := range []struct{ from, to string }{
		{NFTables, IPTablesNFT}, {IPTablesLegacy, NFTables},
	} {
		out = append(out, &Case{
			Name: "backend-to-" + strings.ReplaceAll(change.to, " ", "-"), Backend: change.from,
			Fault: "backend " + change.to + " by reload", Bar: "0 lost, no answer of another",
			Prime: func(s *Scene) error {
				return firstError(func() error { return s.prime(change.from) }, func() error { return s.prime(change.to) })
			},
			Sabotage: Sabotage{
				What: "the order: the rules of the new one come when those of the old one are gone", Fails: FailResponder,
				At: "switched", Apply: func(s *Scene) error {
					return s.Server.Reload(strings.ReplaceAll(s.corefile(true, metricsAddress), s.directive(), ""))
				},
			},
			Play: func(s *Scene) error {
				to := *s.Case
				to.Backend = change.to
				s.Case = &to
				// It counts as a steady phase: we answer throughout.
				s.begin(Phase{Name: "switching", Want: lab.Trackless})
				if err := s.reach("switched"); err != nil {
					return err
				}
				if !s.sabotaged {
					if err := s.Server.Reload(s.corefile(true, metricsAddress)); err != nil {
						return err
					}
				}
				time.Sleep(3 * time.Second)
				if err := s.holds(change.to); err != nil && !s.sabotaged {
					s.result.fail(FailRun, "%v", err)
				}
				return s.proveTakeover()
			},
		})
	}
	return out
}

// holds returns an error unless the rules of the backend, and of no other, are
// there.
func (s *Scene) holds(backend string) error {
	tables, err := run(s.Node.Namespace, "", "nft", "list", "tables")
	if err != nil {
		return err
	}
	table := strings.Contains(strings.ReplaceAll(tables, "trackless-failover", ""), " trackless-")
	chains := map[string]bool{}
	for _, variant := range []string{"legacy", "nft"} {
		out, err := run(s.Node.Namespace, "", "iptables-"+variant+"-save")
		if err != nil {
			return err
		}
		chains["iptables "+variant] = strings.Contains(out, "TRACKLESS-")
	}
	if table != (backend == NFTables) || chains[IPTablesLegacy] != (backend == IPTablesLegacy) || chains[IPTablesNFT] != (backend == IPTablesNFT) {
		return fmt.Errorf("after the change to %s: a table %t, chains %v", backend, table, chains)
	}
	return nil
}

// xtables reports whether the case is played on one of the iptables backends.
func (c *Case) xtables() bool { return strings.HasPrefix(c.Backend, "iptables") }

// takesRules reports whether the fault takes rules of this backend away, or what
// they do. Others can flush those of iptables, and until they are back what is sent
// is tracked; and a zone undoes NOTRACK whoever says it.
func (c *Case) takesRules() bool {
	return c.Name == "foreign-zone" || c.xtables() && slices.Contains([]string{"iptables-flush", "iptables-restore"}, c.Name)
}

// directive is the notrack directive of the Corefile.
func (s *Scene) directive() string {
	if s.Backend == "" {
		return "    notrack\n"
	}
	return "    notrack {\n        backend " + s.Backend + "\n    }\n"
}

// killBar is what a SIGKILL may cost: the kernel takes the rules of nftables
// away, those of iptables run out of lease.
func (s *Scene) killBar() time.Duration {
	if s.xtables() {
		return leaseBar
	}
	return killBar
}

func (s *Scene) exceptionsDead() []Exception {
	if s.xtables() {
		return append(slices.Clone(exceptionsDead), exceptInert)
	}
	return exceptionsDead
}

// primeBackend makes the tables that the programs make when they are first used.
func (s *Scene) primeBackend() error { return s.prime(s.Backend) }

func (s *Scene) prime(backend string) error {
	variant, ok := strings.CutPrefix(backend, "iptables ")
	if !ok {
		return nil
	}
	for _, base := range []string{"iptables", "ip6tables"} {
		if _, err := run(s.Node.Namespace, "*raw\n-A PREROUTING\n-A OUTPUT\n-D PREROUTING 1\n-D OUTPUT 1\nCOMMIT\n", base+"-"+variant+"-restore", "--noflush", "-w", "5"); err != nil {
			return err
		}
	}
	return nil
}
