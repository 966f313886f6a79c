package hostrules

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/hostrules/evaluator"
	"github.com/trackless-dns/trackless/iptables/internal/nfnl"
	"github.com/trackless-dns/trackless/iptables/owner"
)

// Device is a device over which clients reach this node, or lo.
type Device struct {
	Name  string
	Index uint32
	// Clients are addresses of clients behind it, one for each network. Without an
	// address of a family, matches on the client's address are uncertain.
	Clients []netip.Addr
}

// DroppingChain is a chain of another program that drops untracked DNS. Many firewalls drop
// packets that no rule accepts, and accept packets of tracked flows. Untracked packets
// belong to no flow.
type DroppingChain struct {
	// Family, Table and Chain name the base chain in the words of nft; with Legacy,
	// in those of iptables.
	Family, Table, Chain string
	Legacy               bool
	Hook                 string
	Priority             int
	// Endpoint and Direction are those of the dropped packets.
	Endpoint  iptables.Endpoint
	Direction iptables.Direction
	// Devices are the devices of the dropped packets.
	Devices []string
	// By is the rule that drops them, with its chain if that is another one.
	By string
	// Owned tells that only the process that owns the table may change it.
	Owned bool
}

// Amendable reports whether we may add an accept rule to the chain. We add them only to
// chains of iptables' table filter, as many programs do. Other tables belong to one
// program, such as firewalld.
func (o DroppingChain) Amendable() bool {
	return !o.Owned && o.Table == "filter" && (o.Family == "ip" || o.Family == "ip6") && (o.Chain == "INPUT" || o.Chain == "OUTPUT")
}

// Remedy returns a command that accepts the packets.
func (o DroppingChain) Remedy() string {
	r := ruleOf(o)
	switch {
	case o.Table == "firewalld":
		return fmt.Sprintf("firewall-cmd --permanent --zone=trusted --add-interface=%s && firewall-cmd --reload", strings.Join(o.Devices, " --add-interface="))
	case o.Legacy:
		return fmt.Sprintf("%s -t %s -I %s %s", map[bool]string{true: "ip6tables-legacy", false: "iptables-legacy"}[r.v6()], o.Table, o.Chain, r.iptables())
	case o.Table == strings.ToLower(o.Table) && o.Chain == strings.ToUpper(o.Chain) && o.Family != "inet":
		return fmt.Sprintf("%s -t %s -I %s %s", map[bool]string{true: "ip6tables-nft", false: "iptables-nft"}[r.v6()], o.Table, o.Chain, r.iptables())
	}
	return fmt.Sprintf("nft insert rule %s %s %s %s", o.Family, o.Table, o.Chain, r.nft())
}

// String says which chain drops the packets of which devices.
func (o DroppingChain) String() string {
	program := ""
	if o.Legacy {
		program = " of iptables-legacy"
	}
	return fmt.Sprintf("chain %s of table %s %s%s drops untracked DNS (%s) for %s", o.Chain, o.Family, o.Table, program, o.By, strings.Join(o.Devices, " "))
}

// DroppingChains runs an untracked query from each device to each endpoint, and its response,
// through the chains of other programs after conntrack: those of nf_tables and of
// iptables-legacy. It returns the chains that certainly drop them. A match on something
// that is not known here, such as a mark or a rate, does not count as certain. It needs
// CAP_NET_ADMIN.
func DroppingChains(cfg Config, endpoints []iptables.Endpoint, devices []Device) ([]DroppingChain, error) {
	conn, err := nfnl.Dial(cfg)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	s, chains, err := searchAll(cfg, conn, evaluator.MayMatch(probesOf(endpoints, devices)))
	if err != nil {
		return nil, err
	}
	s.ends = func(v verdicts) bool { return v == mayDrop }
	var out []DroppingChain
	for _, c := range chains {
		hook, passed := passedUntracked(c)
		if !passed {
			continue
		}
		found, err := s.dropping(c, hook, endpoints, devices)
		if err != nil {
			return nil, nfnl.Explain("read chain "+nfnl.FamilyName(c.Family)+" "+c.Table+" "+c.Name, err)
		}
		out = append(out, found...)
	}
	slices.SortFunc(out, func(a, b DroppingChain) int {
		return cmp.Or(a.Endpoint.Compare(b.Endpoint), cmp.Compare(a.Direction, b.Direction), cmp.Compare(a.Hook, b.Hook),
			cmp.Compare(a.Priority, b.Priority), cmp.Compare(a.Table, b.Table), cmp.Compare(a.Family, b.Family))
	})
	return out, nil
}

// searchAll returns a search that keeps the wanted rules, and the base chains of nf_tables
// and of iptables-legacy.
func searchAll(cfg Config, conn *netlink.Conn, wanted func(nftables.TableFamily, nfnl.Rule) bool) (*search, []nfnl.BaseChain, error) {
	s := newSearch(conn, wanted)
	chains, err := nfnl.ActiveChains(cfg, conn)
	if err != nil && !nfnl.IsAbsent(err) {
		return nil, nil, nfnl.Explain("list chains", err)
	}
	others, err := s.addLegacy(cfg)
	return s, append(chains, others...), err
}

// passedUntracked returns the hook of a base chain, and whether DNS passes it after it
// was untracked.
func passedUntracked(c nfnl.BaseChain) (hook string, passed bool) {
	switch c.Family {
	case nftables.TableFamilyINet, nftables.TableFamilyIPv4, nftables.TableFamilyIPv6:
	default:
		return "", false
	}
	if c.Kind == "nat" || strings.HasPrefix(c.Table, owner.TablePrefix) {
		return "", false
	}
	afterRaw := c.Priority > int32(*nftables.ChainPriorityRaw)
	switch c.Hook {
	case nfnl.HookPrerouting:
		return "prerouting", afterRaw
	case nfnl.HookInput:
		return "input", true
	case nfnl.HookOutput:
		return "output", afterRaw
	case nfnl.HookPostrouting:
		return "postrouting", true
	}
	return "", false
}

// dropping runs all probes through one base chain.
func (s *search) dropping(c nfnl.BaseChain, hook string, endpoints []iptables.Endpoint, devices []Device) ([]DroppingChain, error) {
	var out []DroppingChain
	for _, e := range endpoints {
		if !(evaluator.Probe{Endpoint: e}).Passes(c.Family) {
			continue
		}
		for _, d := range []iptables.Direction{iptables.Query, iptables.Response} {
			table, isLegacy := legacyTable(c)
			o := DroppingChain{
				Family: nfnl.FamilyName(c.Family), Table: table, Chain: c.Name, Legacy: isLegacy, Hook: hook, Priority: int(c.Priority),
				Endpoint: e, Direction: d, Owned: c.Owned,
			}
			for _, device := range devices {
				by, err := s.dropped(c, evaluator.Probe{Endpoint: e, Direction: d}, device)
				if err != nil {
					return nil, err
				}
				if by != "" {
					o.Devices, o.By = append(o.Devices, device.Name), by
				}
			}
			if len(o.Devices) > 0 {
				out = append(out, o)
			}
		}
	}
	return out, nil
}

// probesOf returns the packets of all clients at all devices.
func probesOf(endpoints []iptables.Endpoint, devices []Device) (out []evaluator.Probe) {
	for _, e := range endpoints {
		clients := []netip.Addr{e.Addr} // over lo
		for _, d := range devices {
			if d.Name != "lo" {
				clients = append(clients, d.clientsOf(iptables.FamilyOf(e.Addr))...)
			}
		}
		slices.SortFunc(clients, netip.Addr.Compare)
		clients = slices.Compact(clients)
		for _, direction := range []iptables.Direction{iptables.Query, iptables.Response} {
			out = append(out, evaluator.Probe{Endpoint: e, Direction: direction, Path: &evaluator.Path{AnyClient: true, Clients: clients}})
		}
	}
	return out
}

// clientsOf returns the device's clients of a family. If none is known it returns an
// invalid address.
func (d Device) clientsOf(f iptables.Family) []netip.Addr {
	clients := slices.DeleteFunc(slices.Clone(d.Clients), func(a netip.Addr) bool { return iptables.FamilyOf(a) != f })
	if len(clients) == 0 {
		clients = []netip.Addr{{}}
	}
	return clients
}

// dropped returns the rule of the chain that drops packets between a device and us, for at
// least one of the clients, as s.ends tells; empty if there is none.
func (s *search) dropped(c nfnl.BaseChain, p evaluator.Probe, device Device) (string, error) {
	lo := device.Name == "lo"
	arrives := c.Hook == nfnl.HookPrerouting || c.Hook == nfnl.HookInput
	if !lo && arrives != (p.Direction == iptables.Query) {
		return "", nil // it does not pass this hook
	}
	clients := device.clientsOf(p.Family())
	if lo {
		// A query of the node to its own address has that address as its source.
		clients = []netip.Addr{p.Endpoint.Addr}
	}
	named, none := &evaluator.Device{Name: device.Name, Index: device.Index}, &evaluator.Device{}
	for _, client := range clients {
		p.Path = &evaluator.Path{
			Hook: c.Hook, In: named, Out: none, Client: client, Local: arrives || lo, Cautious: s.cautious,
		}
		if !arrives {
			p.Path.In, p.Path.Out = none, named
		}
		run := passage{search: s, family: chainID{family: c.Family, table: c.Table}, probe: p}
		switch v, err := run.base(c); {
		case err != nil:
			return "", err
		case !s.ends(v):
		case run.drop.chain != c.Name:
			return run.drop.chain + ": " + run.drop.text, nil
		default:
			return run.drop.text, nil
		}
	}
	return "", nil
}

// Generation returns the generation of the ruleset of nf_tables. It changes with every
// transaction.
func Generation(cfg Config) (uint32, error) {
	conn, err := nfnl.Dial(cfg)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	msgs, err := nfnl.Dump(conn, unix.NFT_MSG_GETGEN, nftables.TableFamilyUnspecified)
	if err != nil && !nfnl.IsAbsent(err) {
		return 0, nfnl.Explain("read the generation of the ruleset", err)
	}
	for _, m := range msgs {
		if id := nfnl.Attributes(m[4:])[unix.NFTA_GEN_ID]; len(id) == 4 {
			return nfnl.Uint32(id), nil
		}
	}
	return 0, nil
}
