package conntrack

import (
	"strconv"
	"strings"
)

// Status is the set of IPS_* bits of an entry
// (linux/netfilter/nf_conntrack_common.h).
type Status uint32

// The bits of Status.
const (
	StatusExpected      Status = 1 << 0  // a helper expected this flow: RELATED
	StatusSeenReply     Status = 1 << 1  // packets were seen both ways
	StatusAssured       Status = 1 << 2  // survives early drop when the table is full
	StatusConfirmed     Status = 1 << 3  // the first packet left this host: in the table
	StatusSrcNAT        Status = 1 << 4  // source rewritten in the original direction
	StatusDstNAT        Status = 1 << 5  // destination rewritten in the original direction
	StatusSeqAdjust     Status = 1 << 6  // TCP sequence numbers are adjusted
	StatusSrcNATDone    Status = 1 << 7  // source NAT was decided
	StatusDstNATDone    Status = 1 << 8  // destination NAT was decided
	StatusDying         Status = 1 << 9  // removed from the table
	StatusFixedTimeout  Status = 1 << 10 // packets do not refresh the timeout
	StatusTemplate      Status = 1 << 11 // not a flow: made by rules that set zones or helpers
	StatusUntracked     Status = 1 << 12 // obsolete since Linux 4.12
	StatusHelper        Status = 1 << 13 // the helper was attached explicitly
	StatusOffload       Status = 1 << 14 // in a flow table, since Linux 4.16
	StatusHWOffload     Status = 1 << 15 // in the network card, since Linux 5.8
	statusNamedBits            = 16
	statusUnreplied            = "UNREPLIED"
	statusUnknownPrefix        = "BIT"
)

var statusNames = [statusNamedBits]string{
	"EXPECTED", "SEEN_REPLY", "ASSURED", "CONFIRMED", "SRC_NAT", "DST_NAT", "SEQ_ADJUST",
	"SRC_NAT_DONE", "DST_NAT_DONE", "DYING", "FIXED_TIMEOUT", "TEMPLATE", "UNTRACKED",
	"HELPER", "OFFLOAD", "HW_OFFLOAD",
}

// Names returns the names of the bits that are set, in the order of the bits,
// as the kernel header has them without the IPS_ prefix.
func (s Status) Names() []string {
	var names []string
	for bit := range 32 {
		if s&(1<<bit) == 0 {
			continue
		}
		if bit < statusNamedBits {
			names = append(names, statusNames[bit])
		} else {
			names = append(names, statusUnknownPrefix+strconv.Itoa(bit))
		}
	}
	return names
}

// String returns the names joined by "|", or "0".
func (s Status) String() string {
	if s == 0 {
		return "0"
	}
	return strings.Join(s.Names(), "|")
}

// ParseStatus returns the status bit with the given name, in any case. For
// UNREPLIED, which is the absence of SEEN_REPLY, it returns that bit and clear
// true: the bit must not be set.
func ParseStatus(name string) (bit Status, clear, ok bool) {
	if strings.EqualFold(name, statusUnreplied) {
		return StatusSeenReply, true, true
	}
	for i, known := range statusNames {
		if strings.EqualFold(name, known) {
			return 1 << i, false, true
		}
	}
	return 0, false, false
}

// NATKind says which addresses of a flow are rewritten.
type NATKind uint8

// The kinds of NAT.
const (
	NATNone        NATKind = 0
	NATSource      NATKind = 1 // SNAT, masquerade
	NATDestination NATKind = 2 // DNAT, redirect: Services
	NATBoth        NATKind = NATSource | NATDestination
)

// String returns "none", "snat", "dnat" or "both".
func (k NATKind) String() string {
	return [...]string{"none", "snat", "dnat", "both"}[k&NATBoth]
}
