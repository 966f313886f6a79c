package summary

import (
	"net/netip"
	"time"

	"github.com/trackless-dns/trackless/conntrack"
)

// A DNSFlow is DNS between clients and one server, as entries name it: Asked is
// the address that clients sent to, Server the one that was to answer. Where the
// first packet of the entries is an answer Asked is not valid.
type DNSFlow struct{ Asked, Server netip.Addr }

// TimesLeft has of each DNSFlow how long its youngest entries have left, for Recent
// to compare with later times. Its memory is bounded.
type TimesLeft map[flowKey]time.Duration

// Entries of one key have the same timeout, so that of one that just saw a packet
// is the longest.
type flowKey struct {
	flow     DNSFlow
	protocol conntrack.Protocol
	status   conntrack.Status
	state    conntrack.TCPState
}

// Add takes one entry into account. It always returns nil, so that it can be the callback
// of a dump. TCP connections count while they are made only: one that was there
// before NOTRACK rules may stay tracked to its end.
func (l TimesLeft) Add(e *conntrack.Entry) error {
	if !e.IsDNS() || !e.Has(conntrack.FieldTimeout) {
		return nil
	}
	key := flowKey{protocol: e.Original.Proto, status: e.Status & (conntrack.StatusSeenReply | conntrack.StatusAssured)}
	if key.protocol == conntrack.TCP {
		if key.state = e.TCP.State; key.state != conntrack.TCPSynSent && key.state != conntrack.TCPSynRecv {
			return nil
		}
	}
	if e.Original.DstPort != dnsPort && e.Original.SrcPort == dnsPort {
		key.flow = DNSFlow{Server: e.Original.Src}
	} else {
		key.flow = DNSFlow{Asked: e.Original.Dst, Server: e.Reply.Src}
	}
	if left, known := l[key]; known && left >= e.Timeout || !known && len(l) >= maxKeys {
		return nil
	}
	l[key] = e.Timeout
	return nil
}

// Recent returns the flows of which a packet was tracked between two readings of the
// table, at least so far apart: one of their entries has more time left than any
// earlier one would have by now. The kernel tells whole seconds, so readings that are
// less than a second apart tell nothing.
func Recent(before, after TimesLeft, apart time.Duration) map[DNSFlow]bool {
	apart = apart.Truncate(time.Second)
	recent := map[DNSFlow]bool{}
	for key, left := range after {
		if earlier, known := before[key]; !known || left > earlier-apart {
			recent[key.flow] = true
		}
	}
	return recent
}
