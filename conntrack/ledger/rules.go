package ledger

// The kernel's rules, on one entry.
//
// UDP, nf_conntrack_udp_packet: the first packet makes the entry and sets
// stream_ts to two seconds later. Every packet, in either direction, sets the
// expiry anew: to the stream timeout if both directions were seen before this
// packet and stream_ts has passed, else to the shorter one. That a reply was seen
// is noted after the reply was handled (nf_conntrack_in sets IPS_SEEN_REPLY last),
// so the first reply itself counts as unreplied. A response that comes after its
// entry expired makes an entry of its own, with the directions exchanged.
//
// TCP: who listens sees the queries of a connection, neither its SYN nor its FIN.
// While open the entry lives for days (ESTABLISHED), then for two minutes
// (TIME_WAIT) or, after a reset, ten seconds (CLOSE), so what counts is when and
// how the connection ends. That the kernel reports (FollowTCP). Until then the
// entry is kept for as long as the listener can keep the connection open (tcpIdle)
// and for TIME_WAIT after that, so that a report that was lost does little harm.
//
// Where nobody reports ends, two kinds of client are told apart by what they do:
// most ask and close as soon as they have the answer, and are taken to be closed
// with the last packet. A client that still asks two seconds after its first query
// keeps the connection for later queries, which ends when the listener closes it
// as idle. A query after the connection must have been closed belongs to a new one
// from the same port.
//
// The kernel replaces the entry of a connection that ended by a new one when its
// port comes back (tcp_conntracks, row syn, sTW and sCL to sSS). A response that
// finds no entry is passed over.

// packet says what was seen of a flow; a query together with its response is one
// value with both bits. They stand in the low byte of a record's key, with the
// bits of class.
type packet uint8

const (
	packetQuery    = 1 << 4
	packetResponse = 1 << 5
	packetFIN      = 1 << 6
	packetRST      = 1 << 7

	packetMask = packetQuery | packetResponse | packetFIN | packetRST
)

// streamAfter is the age in milliseconds from which an answered UDP entry is a
// stream: the 2 * HZ of nf_conntrack_udp_packet. The same age tells kept TCP
// connections from those of one question.
const streamAfter = 2000

// State of an entry, in the low byte of its key, with the bits of class.
const (
	stateUsed      = 1 << 0 // set in every slot that is not empty
	stateReversed  = 1 << 3 // the response was the first packet
	stateSeenReply = 1 << 4 // IPS_SEEN_REPLY
	stateStream    = 1 << 5 // a packet was seen after streamAt
	stateClosed    = 1 << 6 // TCP: TIME_WAIT or CLOSE was reported, not assumed
)

// alive tells whether the entry has not expired (nf_ct_is_expired).
func (e *slot) alive(now uint32) bool { return int32(e.expires-now) > 0 }

// apply moves the entry on by what was seen of its flow. A slot that is not alive
// becomes a new entry, and created is true, or is left as it was.
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

// applyUDP takes 0 as the direction of a query, stateReversed as that of a
// response.
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

// applyTCP takes a query together with a FIN or RST as a connection that began
// and ended without a query.
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

// notePassing remembers that streamAt has passed, which its 32 bits cannot for
// an entry older than weeks.
func (e *slot) notePassing(now uint32) {
	if int32(now-e.streamAt) > 0 {
		e.key |= stateStream
	}
}

// ended tells whether the TCP connection of an entry that is alive can only have
// been closed by now, so that a query belongs to another one.
func (e *slot) ended(now uint32, t *timeouts) bool {
	if e.key&stateClosed != 0 {
		return true
	}
	silent := int32(now + e.untilExpiry(t) - e.expires)
	return !t.tcpEndsReported && silent > int32(t.tcpIdle)
}

// untilExpiry is how long the entry of an open TCP connection lives on if its
// last packet is now and its end is not reported.
func (e *slot) untilExpiry(t *timeouts) uint32 {
	if e.key&stateStream != 0 || t.tcpEndsReported {
		return t.tcpIdle + t.tcpTimeWait
	}
	return t.tcpTimeWait
}
