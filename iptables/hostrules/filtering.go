package hostrules

import (
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/internal/nfnl"
	"github.com/trackless-dns/trackless/iptables/owner"
)

// Filters are the rules of other programs through which DNS of this node passes. They are
// read when they are first needed. It is used by one goroutine at a time.
type Filters struct {
	conn      *netlink.Conn
	endpoints []iptables.Endpoint
	search    *search
	chains    []nfnl.BaseChain
}

// ReadFilters reads which chains there are. Close must be called.
func ReadFilters(cfg Config, endpoints []iptables.Endpoint) (*Filters, error) {
	conn, err := nfnl.Dial(cfg)
	if err != nil {
		return nil, err
	}
	// All rules are kept: the clients of a device may be unknown, and the rules are for
	// all devices.
	s, chains, err := searchAll(cfg, conn, func(nftables.TableFamily, nfnl.Rule) bool { return true })
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	s.ends, s.cautious = func(v verdicts) bool { return v&mayDrop != 0 }, true
	return &Filters{conn: conn, endpoints: endpoints, search: s, chains: chains}, nil
}

// Close ends the reading.
func (f *Filters) Close() error { return f.conn.Close() }

// Before returns which chain may treat queries of a device's clients to the endpoints, or
// their responses, differently from accept, or the empty string. A match on something
// that is not known here counts as one that may hold. port is the port behind which the
// clients are, if device is a bridge. Rules of chains at devices and of those of bridges
// are not understood: each may drop.
func (f *Filters) Before(device Device, port string) (string, error) {
	for _, c := range f.chains {
		if strings.HasPrefix(c.Table, owner.TablePrefix) {
			continue
		}
		why, err := f.chain(c, device, port)
		if err != nil {
			return "", nfnl.Explain("read "+chainName(c), err)
		}
		if why != "" {
			return chainName(c) + " " + why + ", and the kernel's answers would pass it by", nil
		}
	}
	return "", nil
}

// ipFamilies are the families whose chains IP packets pass in the hooks of routing.
var ipFamilies = []nftables.TableFamily{nftables.TableFamilyINet, nftables.TableFamilyIPv4, nftables.TableFamilyIPv6}

func chainName(c nfnl.BaseChain) string {
	table, isLegacy := legacyTable(c)
	program := ""
	if isLegacy {
		program = " of iptables-legacy"
	}
	return fmt.Sprintf("chain %s of table %s %s%s", c.Name, nfnl.FamilyName(c.Family), table, program)
}

// chain returns what the base chain may do to DNS of the device's clients, or the empty
// string.
func (f *Filters) chain(c nfnl.BaseChain, device Device, port string) (string, error) {
	switch {
	case c.AtDevices():
		if !c.AtDevice(device.Name) && (port == "" || !c.AtDevice(port)) {
			return "", nil
		}
		return f.notEmpty(c, "is hooked at the device")
	case c.Family == nftables.TableFamilyBridge:
		if port == "" || c.Hook == uint32(*nftables.ChainHookForward) {
			return "", nil
		}
		return f.notEmpty(c, "sees packets of the bridge's port")
	case !slices.Contains(ipFamilies, c.Family), c.Kind == "nat", c.Hook == uint32(*nftables.ChainHookForward):
		return "", nil // untracked DNS of this node does not pass it
	}
	found, err := f.search.dropping(c, "", f.endpoints, []Device{device})
	if err != nil || len(found) == 0 {
		return "", err
	}
	return fmt.Sprintf("may drop its DNS (%s)", found[0].By), nil
}

// notEmpty returns what unless the chain accepts all packets.
func (f *Filters) notEmpty(c nfnl.BaseChain, what string) (string, error) {
	rules, err := f.search.rulesOf(chainID{c.Family, c.Table, c.Name})
	if err != nil || len(rules) == 0 && c.Policy != nfnl.VerdictDrop {
		return "", err
	}
	return what, nil
}
