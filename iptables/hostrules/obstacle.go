package hostrules

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/hostrules/evaluator"
	"github.com/trackless-dns/trackless/iptables/internal/nfnl"
	"github.com/trackless-dns/trackless/iptables/owner"
)

// Device is a device by which clients reach this node, or lo.
type Device struct {
	Name  string
	Index uint32
	// Clients are addresses of clients behind it, one for each network there.
	// Without one of a family, what rules ask of the client is not known.
	Clients []netip.Addr
}

// Obstacle is a chain of somebody else in which untracked DNS ends: hosts that
// drop what is not accepted accept what belongs to a tracked flow, and what we
// untrack belongs to none.
type Obstacle struct {
	// Family, Table and Chain name the base chain in the words of nft, or with
	// Legacy in those of iptables.
	Family, Table, Chain string
	Legacy               bool
	Hook                 string
	Priority             int
	// Endpoint and Direction tell which packets are dropped there.
	Endpoint  iptables.Endpoint
	Direction iptables.Direction
	// Devices are those between which and us they are dropped.
	Devices []string
	// By is the rule that drops them, with its chain if that is another one.
	By string
	// Owned tells that the table belongs to a process, which alone may change it.
	Owned bool
}

// Amendable reports whether an accept rule of ours can stand in the chain: in
// those of iptables' table filter, to which everybody adds rules. A chain of a
// table that somebody wrote as a whole, as firewalld does, is his alone.
func (o Obstacle) Amendable() bool {
	return !o.Owned && o.Table == "filter" && (o.Family == "ip" || o.Family == "ip6") && (o.Chain == "INPUT" || o.Chain == "OUTPUT")
}

// Remedy is a command that lets the packets pass.
func (o Obstacle) Remedy() string {
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

// String says what is dropped, and where.
func (o Obstacle) String() string {
	program := ""
	if o.Legacy {
		program = " of iptables-legacy"
	}
	return fmt.Sprintf("chain %s of table %s %s%s drops untracked DNS (%s) for %s", o.Chain, o.Family, o.Table, program, o.By, strings.Join(o.Devices, " "))
}

// Obstacles runs an untracked query from each device to each endpoint, and the
// response to it, through the chains of others behind conntrack: those of
// nf_tables and those of iptables-legacy. What a chain certainly drops is
// returned; where it depends on something that is not known here, such as a
// mark or a rate, it is taken to let the packet pass. It needs CAP_NET_ADMIN.
func Obstacles(cfg Config, endpoints []iptables.Endpoint, devices []Device) ([]Obstacle, error) {
	conn, err := nfnl.Dial(cfg)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	s := newSearch(conn, evaluator.MayMeet(probesOf(endpoints, devices)))
	chains, err := nfnl.ActiveChains(cfg, conn)
	if err != nil && !nfnl.IsAbsent(err) {
		return nil, nfnl.Explain("list chains", err)
	}
	others, err := s.addLegacy(cfg)
	if err != nil {
		return nil, err
	}
	var out []Obstacle
	for _, c := range append(chains, others...) {
		hook, passed := passedUntracked(c)
		if !passed {
			continue
		}
		found, err := s.obstacles(c, hook, endpoints, devices)
		if err != nil {
			return nil, nfnl.Explain("read chain "+nfnl.FamilyName(c.Family)+" "+c.Table+" "+c.Name, err)
		}
		out = append(out, found...)
	}
	slices.SortFunc(out, func(a, b Obstacle) int {
		return cmp.Or(a.Endpoint.Compare(b.Endpoint), cmp.Compare(a.Direction, b.Direction), cmp.Compare(a.Hook, b.Hook),
			cmp.Compare(a.Priority, b.Priority), cmp.Compare(a.Table, b.Table), cmp.Compare(a.Family, b.Family))
	})
	return out, nil
}

// passedUntracked names the hook of a base chain that untracked DNS passes after
// it was untracked.
func passedUntracked(c nfnl.BaseChain) (hook string, passed bool) {
	switch c.Family {
	case nftables.TableFamilyINet, nftables.TableFamilyIPv4, nftables.TableFamilyIPv6:
	default:
		return "", false
	}
	if c.Kind == "nat" || strings.HasPrefix(c.Table, owner.TablePrefix) {
		return "", false
	}
	behind := c.Priority > int32(*nftables.ChainPriorityRaw)
	switch c.Hook {
	case nfnl.HookPrerouting:
		return "prerouting", behind
	case nfnl.HookInput:
		return "input", true
	case nfnl.HookOutput:
		return "output", behind
	case nfnl.HookPostrouting:
		return "postrouting", true
	}
	return "", false
}

// obstacles runs all probes through one base chain.
func (s *search) obstacles(c nfnl.BaseChain, hook string, endpoints []iptables.Endpoint, devices []Device) ([]Obstacle, error) {
	var out []Obstacle
	for _, e := range endpoints {
		if !(evaluator.Probe{Endpoint: e}).Passes(c.Family) {
			continue
		}
		for _, d := range []iptables.Direction{iptables.Query, iptables.Response} {
			table, isLegacy := legacyTable(c)
			o := Obstacle{
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

// probesOf are the packets of any client at any device.
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
			out = append(out, evaluator.Probe{Endpoint: e, Direction: direction, Way: &evaluator.Way{AnyClient: true, Clients: clients}})
		}
	}
	return out
}

// clientsOf are the device's clients of a family; where none is known, one whose
// address is not.
func (d Device) clientsOf(f iptables.Family) []netip.Addr {
	clients := slices.DeleteFunc(slices.Clone(d.Clients), func(a netip.Addr) bool { return iptables.FamilyOf(a) != f })
	if len(clients) == 0 {
		clients = []netip.Addr{{}}
	}
	return clients
}

// dropped returns what drops the packets between a device and us in the chain,
// for at least one of the clients there; empty if nothing certainly does.
func (s *search) dropped(c nfnl.BaseChain, p evaluator.Probe, device Device) (string, error) {
	lo := device.Name == "lo"
	arrives := c.Hook == nfnl.HookPrerouting || c.Hook == nfnl.HookInput
	if !lo && arrives != (p.Direction == iptables.Query) {
		return "", nil // it takes another way
	}
	clients := device.clientsOf(p.Family())
	if lo {
		// The node asks an address of its own from this very address.
		clients = []netip.Addr{p.Endpoint.Addr}
	}
	there, none := &evaluator.Device{Name: device.Name, Index: device.Index}, &evaluator.Device{}
	for _, client := range clients {
		w := &evaluator.Way{Hook: c.Hook, In: there, Out: none, Client: client, Local: arrives || lo}
		if !arrives {
			w.In, w.Out = none, there
		}
		p.Way = w
		way := passage{search: s, family: chainID{family: c.Family, table: c.Table}, probe: p}
		switch v, err := way.base(c); {
		case err != nil:
			return "", err
		case v != mayDrop:
		case way.drop.chain != c.Name:
			return way.drop.chain + ": " + way.drop.text, nil
		default:
			return way.drop.text, nil
		}
	}
	return "", nil
}

// Generation is the number of the ruleset of nf_tables: it changes with every
// transaction.
func Generation(cfg Config) (uint32, error) {
	conn, err := nfnl.Dial(cfg)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	msgs, err := nfnl.Dump(conn, unix.NFT_MSG_GETGEN, nftables.TableFamilyUnspecified)
	if err != nil && !nfnl.IsAbsent(err) {
		return 0, nfnl.Explain("read the generation", err)
	}
	for _, m := range msgs {
		if id := nfnl.Attributes(m[4:])[unix.NFTA_GEN_ID]; len(id) == 4 {
			return nfnl.Uint32(id), nil
		}
	}
	return 0, nil
}
