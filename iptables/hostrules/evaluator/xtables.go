package evaluator

import (
	"encoding/binary"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/internal/nfnl"
)

// matches evaluates an extension of iptables (xt_tcpudp.h; ports in host byte
// order).
func matches(e nfnl.Expression, p Probe) Certainty {
	info := e.Attrs[unix.NFTA_MATCH_INFO]
	switch name := e.Extension(); name {
	case "comment":
		return Always
	case "conntrack", "state":
		return p.matchesState(info)
	case "addrtype":
		return p.matchesAddressType(e.Number(unix.NFTA_MATCH_REV), info)
	case "multiport":
		return p.matchesPorts(e.Number(unix.NFTA_MATCH_REV), info)
	case "udp", "tcp":
		invert := 8
		if name == "tcp" {
			invert = 11
		}
		if len(info) <= invert {
			return Maybe
		}
		if (name == "tcp") != (p.Endpoint.Proto == iptables.TCP) {
			return Never
		}
		at, flag := 0, byte(1)
		if p.Direction == iptables.Query {
			at, flag = 4, 2
		}
		port := func(at int) uint16 { return binary.NativeEndian.Uint16(info[at:]) }
		inside := p.Endpoint.Port >= port(at) && p.Endpoint.Port <= port(at+2)
		if inside == (info[invert]&flag != 0) {
			return Never
		}
		// The port of the other end can be any.
		other := 4 - at
		if port(other) != 0 || port(other+2) != 0xffff || info[invert]&^flag != 0 || name == "tcp" && info[9] != 0 {
			return Maybe
		}
		return Always
	}
	return Maybe
}

// target adds the effect of a target of iptables to the outcome.
func (o *Outcome) target(e nfnl.Expression) {
	info := e.Attrs[unix.NFTA_TARGET_INFO]
	switch name := e.Extension(); name {
	case "NOTRACK":
		o.Effects = append(o.Effects, "notrack")
	case "CT":
		notrack, zone := ctTarget(info)
		switch {
		case notrack:
			o.Effects = append(o.Effects, "notrack")
		case zone != "":
			o.Effects = append(o.Effects, EffectZone)
		default:
			o.Effects = append(o.Effects, "ct set")
		}
	case "LOG", "NFLOG", "TRACE":
	case "REJECT":
		o.Verdict = &nfnl.Verdict{Code: nfnl.VerdictDrop}
	case "NFQUEUE":
		o.Verdict = &nfnl.Verdict{Code: nfnl.VerdictQueue}
	case "":
	default:
		o.Effects = append(o.Effects, name)
	}
}

// EffectZone is the effect of a rule that puts packets into a conntrack zone. Packets in
// a zone are tracked. nft's rule undoes NOTRACK before and after it; the rule of iptables
// only if it comes first.
const EffectZone = "ct zone set"

// ctEffect names the effect of nft's `ct … set`.
func ctEffect(e nfnl.Expression) string {
	if e.Number(unix.NFTA_CT_KEY) == unix.NFT_CT_ZONE {
		return EffectZone
	}
	return "ct set"
}

// ctTarget reads the effect of the target CT of iptables: notrack, or the zone that it
// sets (struct xt_ct_target_info in linux/netfilter/xt_CT.h).
func ctTarget(info []byte) (notrack bool, zone string) {
	const (
		flagNotrack  = 1 << 0
		flagOriginal = 1 << 2
		flagReply    = 1 << 3
		flagMark     = 1 << 4
	)
	if len(info) < 4 {
		return false, ""
	}
	flags, id := binary.NativeEndian.Uint16(info), binary.NativeEndian.Uint16(info[2:])
	switch {
	case flags&flagNotrack != 0:
		return true, ""
	case flags&flagMark != 0:
		zone = "--zone mark"
	case id == 0:
		return false, ""
	default:
		zone = "--zone " + strconv.Itoa(int(id))
	}
	switch flags & (flagOriginal | flagReply) {
	case flagOriginal:
		zone = strings.Replace(zone, "--zone", "--zone-orig", 1)
	case flagReply:
		zone = strings.Replace(zone, "--zone", "--zone-reply", 1)
	}
	return false, zone
}
