package table

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/trackless-dns/trackless/conntrack"
)

// filterFlags are the flags that select entries, the same for every verb.
type filterFlags struct {
	family                       string
	protocols                    []string
	src, dst, replySrc, replyDst []string
	sport, dport                 []string
	states, status               []string
	zone, mark                   string
	nat                          []string
	dns                          bool
}

func (f *filterFlags) register(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringVarP(&f.family, "family", "f", "", "`family`: ipv4 or ipv6")
	fs.StringSliceVarP(&f.protocols, "proto", "p", nil, "`protocols`: tcp, udp, icmp, icmpv6, sctp, gre, udplite, dccp or numbers")
	fs.StringSliceVarP(&f.src, "src", "s", nil, "source `addresses` or networks of the original direction")
	fs.StringSliceVarP(&f.dst, "dst", "d", nil, "destination `addresses` or networks of the original direction")
	fs.StringSliceVar(&f.replySrc, "reply-src", nil, "source `addresses` of the replies: the servers behind a Service")
	fs.StringSliceVar(&f.replyDst, "reply-dst", nil, "destination `addresses` of the replies: what source NAT made of the client")
	fs.StringSliceVar(&f.sport, "sport", nil, "source `ports` or ranges, such as 53,1024-2047")
	fs.StringSliceVar(&f.dport, "dport", nil, "destination `ports` or ranges")
	fs.StringSliceVar(&f.states, "state", nil, "`states`, such as ESTABLISHED, TIME_WAIT, UNREPLIED; see `trackless conntrack help states`")
	fs.StringSliceVarP(&f.status, "status", "u", nil, "status `bits` that must be set, such as ASSURED, or with ! clear, such as '!SEEN_REPLY'")
	fs.StringVarP(&f.zone, "zone", "w", "", "`zone` of either direction; 0 is the default zone, in which also the other direction is where rules give a zone to one only")
	fs.StringVarP(&f.mark, "mark", "m", "", "`mark`, or mark/mask, such as 0x4000/0x4000")
	fs.StringSliceVar(&f.nat, "nat", nil, "`kinds` of NAT: snat, dnat, both, any, none")
	fs.BoolVar(&f.dns, "dns", false, "DNS over port 53")
}

// set reports whether any flag selects.
func (f *filterFlags) set(cmd *cobra.Command) bool {
	var set bool
	for _, name := range []string{"family", "proto", "src", "dst", "reply-src", "reply-dst", "sport", "dport", "state", "status", "zone", "mark", "nat", "dns"} {
		set = set || cmd.Flags().Changed(name)
	}
	return set
}

// filter returns what the flags ask for, or an error that names the flag.
func (f *filterFlags) filter() (conntrack.Filter, error) {
	var out conntrack.Filter
	for _, step := range []func(*conntrack.Filter) error{
		f.parseFamily, f.parseProtocols, f.parseAddresses, f.parsePorts, f.parseStatus, f.parseWords, f.parseNAT,
	} {
		if err := step(&out); err != nil {
			return out, err
		}
	}
	out.States = f.states
	out.DNS = f.dns
	return out, out.Validate()
}

func (f *filterFlags) parseFamily(out *conntrack.Filter) error {
	switch strings.ToLower(f.family) {
	case "", "any":
	case "ipv4", "4", "inet":
		out.Family = conntrack.FamilyIPv4
	case "ipv6", "6", "inet6":
		out.Family = conntrack.FamilyIPv6
	default:
		return fmt.Errorf("--family %q: there are ipv4 and ipv6", f.family)
	}
	return nil
}

func (f *filterFlags) parseProtocols(out *conntrack.Filter) error {
	for _, s := range f.protocols {
		p, ok := conntrack.ParseProtocol(s)
		if !ok {
			return fmt.Errorf("--proto %q: neither a protocol that is tracked nor a number up to 255", s)
		}
		out.Protocols = append(out.Protocols, p)
	}
	return nil
}

func (f *filterFlags) parseAddresses(out *conntrack.Filter) error {
	for _, flag := range []struct {
		name string
		from []string
		to   *[]netip.Prefix
	}{{"src", f.src, &out.Src}, {"dst", f.dst, &out.Dst}, {"reply-src", f.replySrc, &out.ReplySrc}, {"reply-dst", f.replyDst, &out.ReplyDst}} {
		for _, s := range flag.from {
			p, err := parsePrefix(s)
			if err != nil {
				return fmt.Errorf("--%s %q: neither an address nor a network such as 10.244.0.0/16", flag.name, s)
			}
			*flag.to = append(*flag.to, p)
		}
	}
	return nil
}

func parsePrefix(s string) (netip.Prefix, error) {
	if strings.Contains(s, "/") {
		p, err := netip.ParsePrefix(s)
		return p.Masked(), err
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Prefix{}, err
	}
	return a.Prefix(a.BitLen())
}

func (f *filterFlags) parsePorts(out *conntrack.Filter) error {
	for _, flag := range []struct {
		name string
		from []string
		to   *[]conntrack.PortRange
	}{{"sport", f.sport, &out.SrcPorts}, {"dport", f.dport, &out.DstPorts}} {
		for _, s := range flag.from {
			first, last, isRange := strings.Cut(s, "-")
			if !isRange {
				last = first
			}
			a, err1 := strconv.ParseUint(first, 10, 16)
			b, err2 := strconv.ParseUint(last, 10, 16)
			if err1 != nil || err2 != nil {
				return fmt.Errorf("--%s %q: neither a port nor a range such as 1024-2047", flag.name, s)
			}
			*flag.to = append(*flag.to, conntrack.PortRange{First: uint16(a), Last: uint16(b)})
		}
	}
	return nil
}

func (f *filterFlags) parseStatus(out *conntrack.Filter) error {
	for _, s := range f.status {
		name, negated := strings.CutPrefix(s, "!")
		bit, clear, ok := conntrack.ParseStatus(name)
		if !ok {
			return fmt.Errorf("--status %q: there are %s and UNREPLIED", s, strings.Join(conntrack.Status(1<<16-1).Names(), ", "))
		}
		if clear != negated {
			out.NotStatus |= bit
		} else {
			out.Status |= bit
		}
	}
	return nil
}

func (f *filterFlags) parseWords(out *conntrack.Filter) error {
	if f.zone != "" {
		z, err := strconv.ParseUint(f.zone, 0, 16)
		if err != nil {
			return fmt.Errorf("--zone %q: not a number up to 65535", f.zone)
		}
		zone := uint16(z)
		out.Zone = &zone
	}
	if f.mark != "" {
		value, mask, masked := strings.Cut(f.mark, "/")
		v, err := strconv.ParseUint(value, 0, 32)
		if err != nil {
			return fmt.Errorf("--mark %q: not a number of 32 bits, or two with a slash between", f.mark)
		}
		mark := uint32(v)
		out.Mark = &mark
		if masked {
			m, err := strconv.ParseUint(mask, 0, 32)
			if err != nil || m == 0 {
				return fmt.Errorf("--mark %q: the mask is not a number of 32 bits above 0", f.mark)
			}
			out.MarkMask = uint32(m)
		}
	}
	return nil
}

func (f *filterFlags) parseNAT(out *conntrack.Filter) error {
	const s, d, both = conntrack.NATSource, conntrack.NATDestination, conntrack.NATBoth
	kinds := map[string][]conntrack.NATKind{
		"snat": {s, both}, "dnat": {d, both}, "both": {both}, "any": {s, d, both}, "none": {conntrack.NATNone},
	}
	for _, name := range f.nat {
		list, ok := kinds[strings.ToLower(name)]
		if !ok {
			return fmt.Errorf("--nat %q: there are snat, dnat, both, any and none", name)
		}
		out.NAT = append(out.NAT, list...)
	}
	return nil
}
