// Package route reads the routes of a host: which devices lead to the rest of the world,
// and which prefixes are directly behind a device.
//
// A route names its devices in one of three ways: its own attributes, a list of next
// hops (multipath), or the number of a nexthop object (Linux 5.3). If
// net.ipv4.nexthop_compat_mode is 0 the kernel shows only the number of the object.
package route

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Main is the table that `ip route` shows.
const Main = unix.RT_TABLE_MAIN

// Route is a unicast route of the main table, or of another table that a rule
// (ip-rule(8)) uses.
type Route struct {
	To    netip.Prefix
	Table uint32
	Hops  []Hop // none if the nexthop object is gone, or drops packets
}

// Hop is one next hop of a route.
type Hop struct {
	Device uint32 // index
	// Away tells that the destination is not directly behind the device: packets
	// go to a gateway, of either family, or are encapsulated.
	Away bool
}

// Direct reports whether the destination is directly behind the device, for all hops.
func (r Route) Direct() bool {
	for _, h := range r.Hops {
		if h.Away {
			return false
		}
	}
	return len(r.Hops) > 0
}

// List returns the routes of the network namespace of a file descriptor; 0 is our own.
func List(netns int) ([]Route, error) {
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, &netlink.Config{NetNS: netns})
	if err != nil {
		return nil, fmt.Errorf("open a route netlink socket: %w", err)
	}
	defer conn.Close()
	rules, err := dump(conn, unix.RTM_GETRULE, unix.RTM_NEWRULE, fibRuleHeader)
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) { // a kernel with one table
		return nil, fmt.Errorf("list the rules of the routing policy: %w", err)
	}
	used, devices := usedTables(rules)
	if devices {
		links, err := dump(conn, unix.RTM_GETLINK, unix.RTM_NEWLINK, unix.SizeofIfInfomsg)
		if err != nil {
			return nil, fmt.Errorf("list links: %w", err)
		}
		for _, m := range links {
			if id := vrfTable(m); id != 0 {
				used[table{unix.AF_INET, id}], used[table{unix.AF_INET6, id}] = true, true
			}
		}
	}
	messages, err := dump(conn, unix.RTM_GETROUTE, unix.RTM_NEWROUTE, unix.SizeofRtMsg)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	var out []Route
	objects := map[int]uint32{} // the nexthop object of a route in out
	for _, m := range messages {
		r, object, ok := parseRoute(m)
		if !ok || !used[table{m[0], r.Table}] {
			continue
		}
		if object != 0 {
			objects[len(out)] = object
		}
		out = append(out, r)
	}
	if len(objects) == 0 {
		return out, nil
	}
	nexthops, err := dump(conn, unix.RTM_GETNEXTHOP, unix.RTM_NEWNEXTHOP, nhHeader)
	if err != nil {
		return nil, fmt.Errorf("list nexthop objects: %w", err)
	}
	hops := nexthopObjects(nexthops)
	for i, object := range objects {
		out[i].Hops = hops[object]
	}
	return out, nil
}

// attempts bounds how often a list is read again because it changed while it was read.
const attempts = 5

// dump asks for all objects of a kind and returns their messages. Each is at least as
// long as the header.
func dump(conn *netlink.Conn, get, answer netlink.HeaderType, header int) (out [][]byte, err error) {
	for range attempts {
		messages, err := conn.Execute(netlink.Message{
			Header: netlink.Header{Type: get, Flags: netlink.Request | netlink.Dump},
			Data:   make([]byte, header),
		})
		if err != nil {
			return nil, err
		}
		out = nil
		interrupted := false
		for _, m := range messages {
			interrupted = interrupted || m.Header.Flags&netlink.DumpInterrupted != 0
			if m.Header.Type == answer && len(m.Data) >= header {
				out = append(out, m.Data)
			}
		}
		if !interrupted {
			break
		}
		// If the routes never stop changing, the last list has to do.
	}
	return out, nil
}

// table is a routing table of one family. Both families use the same numbers.
type table struct {
	family byte
	id     uint32
}

// From include/uapi/linux/fib_rules.h: the length of struct fib_rule_hdr, the action
// that uses a table, and attributes.
const (
	fibRuleHeader  = 12
	fibRuleToTable = 1  // FR_ACT_TO_TBL
	fibRuleTable   = 15 // FRA_TABLE
	fibRuleL3MDev  = 19 // FRA_L3MDEV
)

// usedTables returns the tables that rules use, and whether a rule uses those of VRF
// devices. It ignores the conditions of the rules.
func usedTables(rules [][]byte) (used map[table]bool, devices bool) {
	used = map[table]bool{{unix.AF_INET, Main}: true, {unix.AF_INET6, Main}: true}
	for _, m := range rules {
		if m[7] != fibRuleToTable {
			continue
		}
		t := table{m[0], uint32(m[4])}
		eachAttribute(m[fibRuleHeader:], func(ad *netlink.AttributeDecoder) {
			switch ad.Type() {
			case fibRuleTable:
				t.id = ad.Uint32()
			case fibRuleL3MDev:
				devices = devices || ad.Uint8() != 0
			}
		})
		used[t] = true
	}
	delete(used, table{unix.AF_INET, unix.RT_TABLE_UNSPEC})
	delete(used, table{unix.AF_INET6, unix.RT_TABLE_UNSPEC})
	return used, devices
}

// vrfTable returns the table of a link that is a VRF device, else 0.
func vrfTable(m []byte) (id uint32) {
	const vrfTableAttribute = 1 // IFLA_VRF_TABLE
	isVRF := false
	eachAttribute(m[unix.SizeofIfInfomsg:], func(link *netlink.AttributeDecoder) {
		if link.Type() != unix.IFLA_LINKINFO {
			return
		}
		eachAttribute(link.Bytes(), func(info *netlink.AttributeDecoder) {
			switch info.Type() {
			case unix.IFLA_INFO_KIND:
				isVRF = info.String() == "vrf"
			case unix.IFLA_INFO_DATA:
				eachAttribute(info.Bytes(), func(data *netlink.AttributeDecoder) {
					if data.Type() == vrfTableAttribute && isVRF {
						id = data.Uint32()
					}
				})
			}
		})
	})
	return id
}

// parseRoute reads struct rtmsg and its attributes. ok is false unless it is a unicast
// route of IPv4 or IPv6.
func parseRoute(m []byte) (r Route, object uint32, ok bool) {
	zero := netip.IPv4Unspecified()
	switch m[0] {
	case unix.AF_INET:
	case unix.AF_INET6:
		zero = netip.IPv6Unspecified()
	default:
		return r, 0, false
	}
	flags := binary.NativeEndian.Uint32(m[8:])
	if m[7] != unix.RTN_UNICAST || flags&unix.RTM_F_CLONED != 0 {
		return r, 0, false
	}
	to, own := zero, Hop{}
	r.Table = uint32(m[4])
	eachAttribute(m[unix.SizeofRtMsg:], func(ad *netlink.AttributeDecoder) {
		switch ad.Type() {
		case unix.RTA_DST:
			to, _ = netip.AddrFromSlice(ad.Bytes())
		case unix.RTA_TABLE:
			r.Table = ad.Uint32()
		case unix.RTA_OIF:
			own.Device = ad.Uint32()
		case unix.RTA_GATEWAY, unix.RTA_VIA, unix.RTA_ENCAP:
			own.Away = true
		case unix.RTA_MULTIPATH:
			r.Hops = parseMultipath(ad.Bytes())
		case nexthopID:
			object = ad.Uint32()
		}
	})
	r.To = netip.PrefixFrom(to, int(m[1]))
	if own.Device != 0 {
		r.Hops = append(r.Hops, own)
	}
	return r, object, r.To.IsValid()
}

// parseMultipath reads a list of struct rtnexthop, each with its attributes.
func parseMultipath(b []byte) (hops []Hop) {
	for len(b) >= unix.SizeofRtNexthop {
		length := int(binary.NativeEndian.Uint16(b))
		if length < unix.SizeofRtNexthop || length > len(b) {
			break
		}
		h := Hop{Device: binary.NativeEndian.Uint32(b[4:])}
		eachAttribute(b[unix.SizeofRtNexthop:length], func(ad *netlink.AttributeDecoder) {
			switch ad.Type() {
			case unix.RTA_GATEWAY, unix.RTA_VIA, unix.RTA_ENCAP:
				h.Away = true
			}
		})
		hops = append(hops, h)
		b = b[min((length+3)&^3, len(b)):] // RTNH_ALIGN
	}
	return hops
}

// nexthopID is RTA_NH_ID of include/uapi/linux/rtnetlink.h.
const nexthopID = 30

const (
	nhHeader     = 8 // struct nhmsg of include/uapi/linux/nexthop.h
	nhGroupEntry = 8 // struct nexthop_grp
)

// nexthopObjects returns the hops of each nexthop object. A group has the numbers of
// objects that are not groups.
func nexthopObjects(messages [][]byte) map[uint32][]Hop {
	hops, groups := map[uint32][]Hop{}, map[uint32][]byte{}
	for _, m := range messages {
		var id uint32
		var h Hop
		var group []byte
		eachAttribute(m[nhHeader:], func(ad *netlink.AttributeDecoder) {
			switch ad.Type() {
			case unix.NHA_ID:
				id = ad.Uint32()
			case unix.NHA_GROUP:
				group = ad.Bytes()
			case unix.NHA_OIF:
				h.Device = ad.Uint32()
			case unix.NHA_GATEWAY, unix.NHA_ENCAP:
				h.Away = true
			}
		})
		switch {
		case group != nil:
			groups[id] = group
		case h.Device != 0:
			hops[id] = []Hop{h}
		}
	}
	for id, group := range groups {
		for ; len(group) >= nhGroupEntry; group = group[nhGroupEntry:] {
			hops[id] = append(hops[id], hops[binary.NativeEndian.Uint32(group)]...)
		}
	}
	return hops
}

// eachAttribute calls f for each attribute. It stops at a malformed one, which the
// kernel does not send.
func eachAttribute(b []byte, f func(*netlink.AttributeDecoder)) {
	ad, err := netlink.NewAttributeDecoder(b)
	if err != nil {
		return
	}
	for ad.Next() {
		f(ad)
	}
}
