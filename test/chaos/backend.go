package chaos

import (
	"fmt"
	"slices"
	"strings"
	"time"
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
// too: those in which the backends differ.
var onIPTables = []string{
	"sigkill", "sigterm", "start", "restart", "second-instance", "sigstop", "deadlock", "stuck-reader",
	"address-deleted", "iptables-flush", "iptables-restore", "node-cache-killed",
}

// CasesOn are the faults that are played on a backend.
func CasesOn(backend string) ([]*Case, error) {
	switch backend {
	case NFTables:
		return Cases(), nil
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

// xtables reports whether the case is played on one of the iptables backends.
func (c *Case) xtables() bool { return strings.HasPrefix(c.Backend, "iptables") }

// takesRules reports whether the fault takes rules of this backend away. Others
// can flush those of iptables, and until they are back what is sent is tracked.
func (c *Case) takesRules() bool {
	return c.xtables() && slices.Contains([]string{"iptables-flush", "iptables-restore"}, c.Name)
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
func (s *Scene) primeBackend() error {
	if !s.xtables() {
		return nil
	}
	variant := strings.TrimPrefix(s.Backend, "iptables ")
	for _, base := range []string{"iptables", "ip6tables"} {
		if _, err := run(s.Node.Namespace, "*raw\n-A PREROUTING\n-A OUTPUT\n-D PREROUTING 1\n-D OUTPUT 1\nCOMMIT\n", base+"-"+variant+"-restore", "--noflush", "-w", "5"); err != nil {
			return err
		}
	}
	return nil
}
