package scene

import (
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

// xtables reports whether the case is played on one of the iptables backends.
func (c *Case) xtables() bool { return strings.HasPrefix(c.Backend, "iptables") }

// takesRules reports whether the fault takes rules of this backend away, or what
// they do. Others can flush those of iptables, and until they are back what is sent
// is tracked; and a zone undoes NOTRACK whoever says it.
func (c *Case) takesRules() bool {
	return c.Name == "foreign-zone" || c.xtables() && slices.Contains([]string{"iptables-flush", "iptables-restore"}, c.Name)
}

// Directive is the notrack directive of the Corefile.
func (s *Scene) Directive() string {
	if s.Backend == "" {
		return "    notrack\n"
	}
	return "    notrack {\n        backend " + s.Backend + "\n    }\n"
}

// KillBar is what a SIGKILL may cost: the kernel takes the rules of nftables
// away, those of iptables run out of lease.
func (s *Scene) KillBar() time.Duration {
	if s.xtables() {
		return LeaseBar
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
func (s *Scene) primeBackend() error { return s.PrimeTables(s.Backend) }

// PrimeTables makes the tables that the programs of a backend make when they are
// first used.
func (s *Scene) PrimeTables(backend string) error {
	variant, ok := strings.CutPrefix(backend, "iptables ")
	if !ok {
		return nil
	}
	for _, base := range []string{"iptables", "ip6tables"} {
		if _, err := RunProgram(s.Node.Namespace, "*raw\n-A PREROUTING\n-A OUTPUT\n-D PREROUTING 1\n-D OUTPUT 1\nCOMMIT\n", base+"-"+variant+"-restore", "--noflush", "-w", "5"); err != nil {
			return err
		}
	}
	return nil
}
