package conntrack

import "strconv"

// TCPState is the state of a TCP flow as connection tracking sees it
// (enum tcp_conntrack in linux/netfilter/nf_conntrack_tcp.h). It is the state
// of the pair, not of one end: see RFC 9293 section 3.3.2 for the latter.
type TCPState uint8

// The states of TCP.
const (
	TCPNone TCPState = iota
	TCPSynSent
	TCPSynRecv
	TCPEstablished
	TCPFinWait
	TCPCloseWait
	TCPLastAck
	TCPTimeWait
	TCPClose
	TCPSynSent2 // simultaneous open; its number was LISTEN before Linux 2.6.31
)

var tcpStateNames = [...]string{
	"NONE", "SYN_SENT", "SYN_RECV", "ESTABLISHED", "FIN_WAIT", "CLOSE_WAIT", "LAST_ACK",
	"TIME_WAIT", "CLOSE", "SYN_SENT2",
}

// String returns the name that conntrack(8) prints.
func (s TCPState) String() string { return stateName(tcpStateNames[:], uint8(s)) }

// SCTPState is the state of an SCTP association
// (enum sctp_conntrack in linux/netfilter/nf_conntrack_sctp.h).
type SCTPState uint8

// The states of SCTP.
const (
	SCTPNone SCTPState = iota
	SCTPClosed
	SCTPCookieWait
	SCTPCookieEchoed
	SCTPEstablished
	SCTPShutdownSent
	SCTPShutdownRecd
	SCTPShutdownAckSent
	SCTPHeartbeatSent
	SCTPHeartbeatAcked // until Linux 6.1
)

var sctpStateNames = [...]string{
	"NONE", "CLOSED", "COOKIE_WAIT", "COOKIE_ECHOED", "ESTABLISHED", "SHUTDOWN_SENT",
	"SHUTDOWN_RECD", "SHUTDOWN_ACK_SENT", "HEARTBEAT_SENT", "HEARTBEAT_ACKED",
}

// String returns the name that conntrack(8) prints.
func (s SCTPState) String() string { return stateName(sctpStateNames[:], uint8(s)) }

// DCCPState is the state of a DCCP flow (enum ct_dccp_states in
// linux/netfilter/nf_conntrack_dccp.h, until Linux 6.16).
type DCCPState uint8

var dccpStateNames = [...]string{
	"NONE", "REQUEST", "RESPOND", "PARTOPEN", "OPEN", "CLOSEREQ", "CLOSING", "TIMEWAIT",
	"IGNORE", "INVALID",
}

// String returns the name that conntrack(8) prints.
func (s DCCPState) String() string { return stateName(dccpStateNames[:], uint8(s)) }

func stateName(names []string, n uint8) string {
	if int(n) < len(names) {
		return names[n]
	}
	return strconv.Itoa(int(n))
}

// The states of protocols without a handshake, which the kernel tells apart by
// status and timeout alone.
const (
	StateUnreplied = "UNREPLIED" // packets in one direction only: the short timeout
	StateReplied   = "REPLIED"   // both directions: for UDP the short timeout still
	StateStream    = "STREAM"    // both directions beyond 2 s: for UDP and GRE the long timeout
)

// State returns the name of the entry's state: the protocol's own for TCP,
// SCTP and DCCP, and for the others UNREPLIED, REPLIED or STREAM.
//
// STREAM is reported for entries that are ASSURED: for UDP and GRE the kernel sets
// the bit together with the stream timeout (nf_conntrack_udp_packet; older
// kernels set it with the second packet after the first answer).
func (e *Entry) State() string {
	switch {
	case e.Has(FieldTCP):
		return e.TCP.State.String()
	case e.Has(FieldSCTP):
		return e.SCTP.State.String()
	case e.Has(FieldDCCP):
		return e.DCCP.State.String()
	case e.Status&StatusSeenReply == 0:
		return StateUnreplied
	case e.Status&StatusAssured != 0:
		return StateStream
	}
	return StateReplied
}
