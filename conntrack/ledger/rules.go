package ledger

// The rules by which the kernel changes one entry.
//
// UDP, nf_conntrack_udp_packet: the first packet makes the entry and sets stream_ts to two
// seconds later. Every packet, in either direction, sets the expiry again. It uses the
// stream timeout if both directions were seen before this packet and stream_ts has passed,
// otherwise the shorter timeout. The kernel sets IPS_SEEN_REPLY after it has handled a
// reply (nf_conntrack_in), so the first reply itself counts as unreplied. A response after
// its entry has expired makes a new entry, with the directions exchanged.
//
// TCP: a listener sees the queries of a connection, but neither its SYN nor its FIN. The
// entry lives for days while the connection is open (ESTABLISHED), then for two minutes
// (TIME_WAIT) or, after a reset, for ten seconds (CLOSE). So it matters when and how the
// connection ends, which the kernel reports (FollowTCP). Until then the entry is kept for
// as long as the listener can keep the connection open (tcpIdle), and for TIME_WAIT after
// that, so that a lost report does little harm.
//
// Without reports, the ledger tells two kinds of client apart. Most clients close as soon
// as they have the answer: their connections count as closed with the last packet. A
// client that still asks two seconds after its first query keeps the connection, which
// ends when the listener closes it as idle. A query after that time belongs to a new
// connection from the same port.
//
// When the port of a connection that ended is used again, the kernel replaces its entry
// with a new one (tcp_conntracks, row syn, sTW and sCL to sSS). A response without an entry
// is ignored.

// packet is a set of packets of a flow that were seen. A query together with its response
// has both bits. The bits are in the low byte of a record's key, with those of class.
type packet uint8

const (
	packetQuery    = 1 << 4
	packetResponse = 1 << 5
	packetFIN      = 1 << 6
	packetRST      = 1 << 7

	packetMask = packetQuery | packetResponse | packetFIN | packetRST
)

// streamAfter is the age in milliseconds from which an answered UDP entry is a stream: the
// 2 * HZ of nf_conntrack_udp_packet. A TCP connection with a query after that age is one
// that the client keeps.
const streamAfter = 2000

// State of an entry, in the low byte of its key, with the bits of class.
const (
	stateUsed      = 1 << 0 // set in every slot that is not empty
	stateReversed  = 1 << 3 // the response was the first packet
	stateSeenReply = 1 << 4 // IPS_SEEN_REPLY
	stateStream    = 1 << 5 // a packet was seen after streamAt
	stateClosed    = 1 << 6 // TCP: TIME_WAIT or CLOSE was reported, not assumed
)

// alive reports whether the entry has not expired (nf_ct_is_expired).
func (e *slot) alive(now uint32) bool { return int32(e.expires-now) > 0 }

// apply changes the entry by the packets that were seen. A slot that is not alive becomes
// a new entry, and created is true, or it does not change.
func (e *slot) apply(p packet, alive bool, now uint32, t *timeouts) (created bool) {
	if class(e.key).isTCP() {
		return e.applyTCP(p, alive, now, t)
	}
	if p&packetQuery != 0 {
		created = e.applyUDP(0, alive, now, t)
		alive = true
	}
	if p&packetResponse != 0 {
		created = e.applyUDP(stateReversed, alive, now, t) || created
	}
	return created
}

// applyUDP applies a query if direction is 0, and a response if it is stateReversed.
func (e *slot) applyUDP(direction uint64, alive bool, now uint32, t *timeouts) (created bool) {
	if !alive {
		e.renew(now, direction)
		e.expires = now + t.udp
		return true
	}
	e.notePassing(now)
	e.expires = now + t.udp
	if e.key&(stateSeenReply|stateStream) == stateSeenReply|stateStream {
		e.expires = now + t.udpStream
	}
	if e.key&stateReversed != direction {
		e.key |= stateSeenReply
	}
	return false
}

// applyTCP applies packets of TCP. A query together with a FIN or RST stands for a
// connection that began and ended without a query.
func (e *slot) applyTCP(p packet, alive bool, now uint32, t *timeouts) (created bool) {
	if p&packetQuery != 0 && (!alive || e.ended(now, t)) {
		e.renew(now, 0)
		created, alive = true, true
	}
	switch {
	case !alive:
	case p&packetFIN != 0:
		e.key |= stateClosed
		e.expires = now + t.tcpTimeWait
	case p&packetRST != 0:
		e.key |= stateClosed
		e.expires = now + t.tcpClose
	case e.key&stateClosed == 0:
		if p&packetQuery != 0 {
			e.notePassing(now)
		}
		e.expires = now + e.untilExpiry(t)
	}
	return created
}

// renew makes the slot an entry that begins now.
func (e *slot) renew(now uint32, direction uint64) {
	e.key = e.key&(^uint64(stateMask)|uint64(classMask)) | stateUsed | direction
	e.streamAt = now + streamAfter
}

// notePassing records that streamAt has passed. Its 32 bits cannot tell this for an entry
// that is weeks old.
func (e *slot) notePassing(now uint32) {
	if int32(now-e.streamAt) > 0 {
		e.key |= stateStream
	}
}

// ended reports whether the TCP connection of a live entry must have been closed by now, so
// that a query belongs to another connection.
func (e *slot) ended(now uint32, t *timeouts) bool {
	if e.key&stateClosed != 0 {
		return true
	}
	silent := int32(now + e.untilExpiry(t) - e.expires)
	return !t.tcpEndsReported && silent > int32(t.tcpIdle)
}

// untilExpiry returns how long the entry of an open TCP connection lives after a packet, if
// its end is not reported.
func (e *slot) untilExpiry(t *timeouts) uint32 {
	if e.key&stateStream != 0 || t.tcpEndsReported {
		return t.tcpIdle + t.tcpTimeWait
	}
	return t.tcpTimeWait
}
