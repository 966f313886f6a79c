package nft

import (
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/jsimonetti/rtnetlink/v2"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	flagTableDormant = 1 // NFT_TABLE_F_DORMANT

	attrHookDevs     = 4 // NFTA_HOOK_DEVS, since Linux 5.5
	attrDeviceName   = 1 // NFTA_DEVICE_NAME
	attrDevicePrefix = 2 // NFTA_DEVICE_PREFIX, since Linux 6.16: all devices whose names begin so
)

// tableID names a table.
type tableID struct {
	family nftables.TableFamily
	name   string
}

// activeChains reads the base chains through which packets pass at the moment.
// Those of a dormant table are left out, since the kernel has unhooked them, and so
// are those at devices of which there is none now: the kernel keeps their rules and
// hooks them when one comes. Either makes the ruleset another generation, or the
// devices others.
func activeChains(cfg Config, conn *netlink.Conn) ([]chainHeader, error) {
	tables, err := dumpTables(conn)
	if err != nil {
		return nil, err
	}
	flags := map[tableID]uint32{}
	for _, t := range tables {
		flags[tableID{t.family, t.name}] = t.flags
	}
	chains, err := dumpBaseChains(conn)
	if err != nil {
		return nil, err
	}
	var devices []string
	if slices.ContainsFunc(chains, chainHeader.atDevices) {
		if devices, err = deviceNames(cfg); err != nil {
			return nil, err
		}
	}
	var out []chainHeader
	for _, c := range chains {
		of := flags[tableID{c.family, c.table}]
		switch {
		case of&flagTableDormant != 0:
		case c.atDevices() && !slices.ContainsFunc(devices, c.hooks):
		default:
			c.owned = of&flagTableOwner != 0
			out = append(out, c)
		}
	}
	return out, nil
}

// atDevices reports whether a base chain is hooked at devices, so that it sees
// what these bring and nothing else.
func (c chainHeader) atDevices() bool {
	switch c.family {
	case nftables.TableFamilyNetdev:
		return true
	case nftables.TableFamilyINet:
		return c.hook == hookInetIngress
	}
	return false
}

// hooks reports whether a device is one of those that a chain is hooked at.
func (c chainHeader) hooks(device string) bool {
	return slices.ContainsFunc(c.devices, func(name string) bool {
		prefix, is := strings.CutSuffix(name, "*")
		return name == device || is && strings.HasPrefix(device, prefix)
	})
}

// hookDevices reads the devices of a hook; one that stands for all with a prefix
// ends in an asterisk, as nft has it.
func hookDevices(hook map[uint16][]byte) []string {
	var out []string
	if name := cString(hook[unix.NFTA_HOOK_DEV]); name != "" {
		out = append(out, name)
	}
	ad, err := netlink.NewAttributeDecoder(hook[attrHookDevs])
	if err != nil {
		return out
	}
	for ad.Next() {
		name := cString(ad.Bytes())
		switch {
		case ad.Type() == attrDevicePrefix:
			name += "*"
		case ad.Type() != attrDeviceName:
			continue
		}
		if !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out
}

// deviceNames lists the devices of the network namespace.
func deviceNames(cfg Config) ([]string, error) {
	conn, err := rtnetlink.Dial(&netlink.Config{NetNS: cfg.NetNS})
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	links, err := conn.Link.List()
	if err != nil {
		return nil, err
	}
	var out []string
	for _, l := range links {
		if l.Attributes != nil {
			out = append(out, l.Attributes.Name)
		}
	}
	return out, nil
}

// isDormant reports whether a table is there and dormant, so that whatever stands
// in it meets no packet.
func isDormant(conn *netlink.Conn, family nftables.TableFamily, name string) (bool, error) {
	tables, err := dumpTables(conn)
	if err != nil && !isAbsent(err) {
		return false, explain("list tables", err)
	}
	return slices.ContainsFunc(tables, func(t tableHeader) bool {
		return t.family == family && t.name == name && t.flags&flagTableDormant != 0
	}), nil
}

// Hooks (include/uapi/linux/netfilter.h) as inet, ip and ip6 number them; the
// ingress hook of inet has a number of its own and is netdev's only one.
const (
	hookPrerouting  = 0
	hookInput       = 1
	hookOutput      = 3
	hookPostrouting = 4
	hookInetIngress = 5
	hookNetdev      = 0
)
