package nfnl

import (
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/jsimonetti/rtnetlink/v2"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	tableFlagDormant = 1 // NFT_TABLE_F_DORMANT

	attrHookDevs     = 4 // NFTA_HOOK_DEVS, since Linux 5.5
	attrDeviceName   = 1 // NFTA_DEVICE_NAME
	attrDevicePrefix = 2 // NFTA_DEVICE_PREFIX, since Linux 6.16: all devices with that prefix
)

// tableID names a table.
type tableID struct {
	family nftables.TableFamily
	name   string
}

// ActiveChains reads the base chains that packets pass now. It leaves out the chains of
// a dormant table, since the kernel has unhooked them. It also leaves out chains whose
// devices do not exist now: the kernel keeps their rules and hooks them when a device
// comes. Both changes are announced, as a new generation or a new device.
func ActiveChains(cfg Config, conn *netlink.Conn) ([]BaseChain, error) {
	tables, err := Tables(conn)
	if err != nil {
		return nil, err
	}
	flags := map[tableID]uint32{}
	for _, t := range tables {
		flags[tableID{t.Family, t.Name}] = t.Flags
	}
	chains, err := baseChains(conn)
	if err != nil {
		return nil, err
	}
	var devices []string
	if slices.ContainsFunc(chains, BaseChain.AtDevices) {
		if devices, err = deviceNames(cfg); err != nil {
			return nil, err
		}
	}
	var out []BaseChain
	for _, c := range chains {
		of := flags[tableID{c.Family, c.Table}]
		switch {
		case of&tableFlagDormant != 0:
		case c.AtDevices() && !slices.ContainsFunc(devices, c.hooks):
		default:
			c.Owned = of&TableFlagOwner != 0
			out = append(out, c)
		}
	}
	return out, nil
}

// AtDevice reports whether a base chain is hooked at the device alone, or at some of which
// it is one.
func (c BaseChain) AtDevice(name string) bool { return c.AtDevices() && c.hooks(name) }

// AtDevices reports whether a base chain is hooked at devices, and so sees only packets
// that come in over these.
func (c BaseChain) AtDevices() bool {
	switch c.Family {
	case nftables.TableFamilyNetdev:
		return true
	case nftables.TableFamilyINet:
		return c.Hook == HookInetIngress
	}
	return false
}

// hooks reports whether the chain is hooked at a device.
func (c BaseChain) hooks(device string) bool {
	return slices.ContainsFunc(c.devices, func(name string) bool {
		prefix, is := strings.CutSuffix(name, "*")
		return name == device || is && strings.HasPrefix(device, prefix)
	})
}

// hookDevices reads the devices of a hook. A prefix, which stands for all devices with
// it, ends in an asterisk, as in nft.
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

// IsDormant reports whether a table exists and is dormant: packets do not pass its
// chains.
func IsDormant(conn *netlink.Conn, family nftables.TableFamily, name string) (bool, error) {
	tables, err := Tables(conn)
	if err != nil && !IsAbsent(err) {
		return false, Explain("list tables", err)
	}
	return slices.ContainsFunc(tables, func(t Table) bool {
		return t.Family == family && t.Name == name && t.Flags&tableFlagDormant != 0
	}), nil
}

// Hooks (include/uapi/linux/netfilter.h) as inet, ip and ip6 number them. The ingress
// hook has one number in inet, and another in netdev.
const (
	HookPrerouting  = 0
	HookInput       = 1
	HookOutput      = 3
	HookPostrouting = 4
	HookInetIngress = 5
	HookNetdev      = 0
)
