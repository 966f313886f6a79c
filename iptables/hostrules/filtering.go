package hostrules

import (
	"fmt"
	"strings"

	"github.com/google/nftables"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/internal/nfnl"
	"github.com/trackless-dns/trackless/iptables/owner"
)

// Filtering returns which chain of another program may drop queries of a device's clients
// to the endpoints, or their responses, or the empty string. A match on something that is
// not known here counts as one that may hold. port is the bridge port behind which the
// clients are, if device is a bridge; its own clients are not known then.
//
// Chains at devices and those of bridges are not read: one that is there may drop.
func Filtering(cfg Config, endpoints []iptables.Endpoint, device Device, port string) (string, error) {
	conn, err := nfnl.Dial(cfg)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if port != "" {
		// Which address is behind which port is not known here.
		return "it is a port of " + device.Name + ", and rules for single pods behind a bridge are not told apart", nil
	}
	s, chains, err := searchAll(cfg, conn, endpoints, []Device{device})
	if err != nil {
		return "", err
	}
	s.ends = func(v verdicts) bool { return v&mayDrop != 0 }
	if len(device.Clients) == 0 {
		// Rules for one address are left out otherwise, since no client has it.
		s.wanted = func(nftables.TableFamily, nfnl.Rule) bool { return true }
	}
	for _, c := range chains {
		if strings.HasPrefix(c.Table, owner.TablePrefix) {
			continue
		}
		name := fmt.Sprintf("chain %s of table %s %s", c.Name, nfnl.FamilyName(c.Family), c.Table)
		switch {
		case c.AtDevice(device.Name) || port != "" && c.AtDevice(port):
			return name + " is hooked at the device, and the kernel's answers would pass it by", nil
		case c.AtDevices():
			continue
		case c.Family == nftables.TableFamilyBridge && port != "":
			return name + " sees what passes the bridge, and the kernel's answers would pass it by", nil
		case c.Hook == nfnl.HookPrerouting:
			// Chains before ours, too.
		default:
			if _, passed := passedUntracked(c); !passed {
				continue
			}
		}
		if c.Kind == "nat" || c.Family == nftables.TableFamilyBridge {
			continue
		}
		found, err := s.dropping(c, "", endpoints, []Device{device})
		if err != nil {
			return "", nfnl.Explain("read "+name, err)
		}
		if len(found) > 0 {
			return fmt.Sprintf("%s may drop its DNS (%s), and the kernel's answers would pass it by", name, found[0].By), nil
		}
	}
	return "", nil
}
