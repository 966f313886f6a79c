package summary

import (
	"net/netip"
	"time"

	"github.com/trackless-dns/trackless/conntrack"
)

// A DNSFlow is DNS between clients and one server. Asked is the address to which clients
// sent their queries, and Server is the address that should answer. If the first packet of
// the entries is a response, Asked is not valid.
type DNSFlow struct{ Asked, Server netip.Addr }

// A Look is one reading of the table: how long the youngest entries of each DNSFlow have
// left. Recent compares it with a later one. Its memory is bounded.
type Look map[lookKey]time.Duration

// lookKey is what decides the timeout of an entry. Of the entries with the same key, the one
// with the last packet has the most time left.
type lookKey struct {
	flow     DNSFlow
	protocol conntrack.Protocol
	status   conntrack.Status
	state    conntrack.TCPState
}

// Add adds one entry. It always returns nil, so that it can be the callback of a dump. A
// TCP connection counts only during its handshake: one that is older than the NOTRACK
// rules may be tracked until it ends.
func (l Look) Add(e *conntrack.Entry) error {
	if !e.IsDNS() || !e.Has(conntrack.FieldTimeout) {
		return nil
	}
	key := lookKey{protocol: e.Original.Proto, status: e.Status & (conntrack.StatusSeenReply | conntrack.StatusAssured)}
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

// Recent returns the flows of which a packet was tracked between two looks, which are at
// least apart from each other. One of their entries has more time left than the earlier
// entries can have now. The kernel reports whole seconds, so the looks must be a second
// apart or more.
func Recent(before, after Look, apart time.Duration) map[DNSFlow]bool {
	apart = apart.Truncate(time.Second)
	recent := map[DNSFlow]bool{}
	for key, left := range after {
		if earlier, known := before[key]; !known || left > earlier-apart {
			recent[key.flow] = true
		}
	}
	return recent
}
