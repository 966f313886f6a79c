// Package cut knows what a denial of a name (NXDOMAIN) denies besides the question that it
// answered: the other types of the name (RFC 2308 section 5), and the names below it, which
// is an NXDOMAIN cut (RFC 8020).
//
// RFC 8020 lets a cache deny everything below a denied name. Servers break it: CoreDNS's
// plugin kubernetes denies names that have names below them, and so do servers that know no
// empty non-terminals. And a resolver may have names of its own below a name that the
// public DNS denies. So a denial is trusted only where it is known to be right:
//
//   - In a zone of CoreDNS, where Services live.
//   - In other zones for a name one label below the zone, after a name below it was denied,
//     too, or if the operator has named the zone.
//   - Never for a name that exists, as an answer in the last hour has shown, or that has a
//     name below it that exists.
//
// The package is a pure value: it keeps no denials, and does not import CoreDNS.
package cut

import (
	"bytes"
	"slices"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// Scope is what a denial denies.
type Scope uint8

const (
	// Question is the question of the denial alone.
	Question Scope = iota
	// Addresses are the questions for A and AAAA of the name.
	Addresses
	// Name is each type of the name.
	Name
	// Unproven is each type of the name, and all names below once Proves says so.
	Unproven
	// Below is each type of the name and of all names below.
	Below
)

// Denial is an NXDOMAIN response. Names are in wire format and lower case.
type Denial struct {
	Name             []byte
	Type             uint16
	Zone             []byte // owner of the SOA record
	Primary, Mailbox []byte // MNAME and RNAME of the SOA record (RFC 1035 section 3.3.13)
}

// Read returns the denial of the name, the key's, if m is one that can deny more than its
// question. Answers that have aliases cannot: they deny another name (RFC 6604). With
// signatures, the denial of another name needs records that this one does not have.
func Read(m *dns.Msg, key wire.Key) (Denial, bool) {
	if m.Rcode != dns.RcodeNameError || len(m.Answer) > 0 || key.Class() != dns.ClassINET || key.Bits()&wire.Subnet != 0 {
		return Denial{}, false
	}
	var soa *dns.SOA
	for _, rr := range m.Ns {
		switch rr := rr.(type) {
		case *dns.SOA:
			if soa != nil {
				return Denial{}, false
			}
			soa = rr
		case *dns.RRSIG, *dns.NSEC, *dns.NSEC3:
			if key.Bits()&wire.DO != 0 {
				return Denial{}, false
			}
		}
	}
	if soa == nil {
		return Denial{}, false
	}
	d := Denial{Name: key.Name(), Type: key.Type()}
	for _, part := range []struct {
		to   *[]byte
		text string
	}{{&d.Zone, soa.Hdr.Name}, {&d.Primary, soa.Ns}, {&d.Mailbox, soa.Mbox}} {
		name, err := wire.AppendName(nil, part.text)
		if err != nil {
			return Denial{}, false
		}
		*part.to = name
	}
	return d, true
}

// Scope returns what the denial denies. named is a zone that the operator has named, in
// which names are denied as a client's search path needs it, or nil.
func (d *Denial) Scope(named []byte) Scope {
	if len(d.Name) <= len(d.Zone) || !wire.InZone(d.Name, d.Zone) || isReverse(d.Name) {
		return Question
	}
	address := isAddress(d.Type)
	switch {
	case d.ofCoreDNS():
		if !address {
			return Question
		}
		if d.holdsNoService() {
			return Below
		}
		return Addresses
	case hasUnderscore(d.Name):
		return Question
	case !address:
		return Name
	case named != nil && wire.InZone(named, d.Zone) && isChild(d.Name, named):
		return Below
	case wire.Labels(d.Zone) >= 2 && isChild(d.Name, d.Zone):
		// The root and top-level domains deny names of which a resolver may have its own,
		// such as local.
		return Unproven
	}
	return Name
}

// ofCoreDNS reports whether the SOA record is one that CoreDNS's plugins with a backend make,
// kubernetes among them.
func (d *Denial) ofCoreDNS() bool {
	return isJoin(d.Primary, "\x02ns\x03dns", d.Zone) && isJoin(d.Mailbox, "\x0ahostmaster", d.Zone)
}

// holdsNoService reports whether a denied name of a CoreDNS zone denies all names below. The
// plugin kubernetes denies A and AAAA of names that have names below them: dns, dns-version,
// and names that begin with an underscore. Those below pod depend on its options.
func (d *Denial) holdsNoService() bool {
	if hasUnderscore(d.Name) {
		return false
	}
	child := wire.ChildOf(d.Name, d.Zone)
	label := string(child[1 : 1+child[0]])
	if len(child) == len(d.Name) {
		return !slices.Contains([]string{"dns", "dns-version", "pod", "svc"}, label)
	}
	return label == "svc"
}

// Proves reports whether this denial proves another one of scope Unproven, and returns its
// name: the name one label below the zone.
func (d *Denial) Proves() ([]byte, bool) {
	if wire.Labels(d.Zone) < 2 || isReverse(d.Name) {
		return nil, false
	}
	child := wire.ChildOf(d.Name, d.Zone)
	return child, child != nil && len(child) < len(d.Name)
}

// Candidates returns the names above the denied one that may be denied, too, so that all
// names below them are: the highest first. named is as for Scope.
func (d *Denial) Candidates(named []byte) [][]byte {
	if !isAddress(d.Type) || !wire.InZone(d.Name, d.Zone) || isReverse(d.Name) {
		return nil
	}
	var up [][]byte
	for name := wire.Parent(d.Name); len(name) > len(d.Zone); name = wire.Parent(name) {
		above := Denial{Name: name, Type: d.Type, Zone: d.Zone, Primary: d.Primary, Mailbox: d.Mailbox}
		if above.Scope(named) == Below {
			up = append(up, name)
		}
	}
	slices.Reverse(up)
	return up
}

func isAddress(qtype uint16) bool { return qtype == dns.TypeA || qtype == dns.TypeAAAA }

// isJoin reports whether name is the labels of first, followed by zone.
func isJoin(name []byte, first string, zone []byte) bool {
	rest, ok := bytes.CutPrefix(name, []byte(first))
	return ok && bytes.Equal(rest, zone)
}

func isChild(name, zone []byte) bool { return len(wire.ChildOf(name, zone)) == len(name) }

var reverseZones = [][]byte{[]byte("\x07in-addr\x04arpa\x00"), []byte("\x03ip6\x04arpa\x00")}

func isReverse(name []byte) bool {
	return slices.ContainsFunc(reverseZones, func(zone []byte) bool { return wire.InZone(name, zone) })
}

func hasUnderscore(name []byte) bool {
	for ; len(name) > 1; name = wire.Parent(name) {
		if name[1] == '_' {
			return true
		}
	}
	return false
}
