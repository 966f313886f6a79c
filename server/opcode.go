package server

import "github.com/miekg/dns"

// keepOpcodes lets a query with an opcode other than QUERY, of which the header
// alone is wrong, be answered with its own opcode (RFC 1035 section 4.1.1). The
// answer to a message that is rejected as malformed says QUERY whatever was asked;
// one that is rejected as not implemented does not. It holds for servers made
// after it.
func keepOpcodes() {
	accept := dns.DefaultMsgAcceptFunc
	dns.DefaultMsgAcceptFunc = func(h dns.Header) dns.MsgAcceptAction {
		action := accept(h)
		if opcode := int(h.Bits>>11) & 0xf; action == dns.MsgReject && opcode != dns.OpcodeQuery {
			return dns.MsgRejectNotImplemented
		}
		return action
	}
}
