package wire

import (
	"encoding/binary"
	"strings"

	"github.com/miekg/dns"
)

// FromMessage does for a query that is unpacked what Parse does for one in wire format. It
// writes the question to msg, so that Reply can be called with msg in the place of the query,
// and returns false if the reply needs more than Reply can do, or if msg has no room. The key
// is that of the question.
func (q *Query) FromMessage(msg []byte, r *dns.Msg, key Key) bool {
	question := &r.Question[0]
	name := key.Name()
	if len(question.Name)+1 != len(name) || strings.IndexByte(question.Name, '\\') >= 0 || len(msg) < headerLen+len(name)+4 ||
		len(r.Answer)|len(r.Ns) != 0 || r.Opcode != dns.OpcodeQuery {
		return false
	}
	q.EDNS, q.DO, q.Size, q.advertised, q.ednsFlags = false, false, MinSize, 0, 0
	switch len(r.Extra) {
	case 0:
	case 1:
		opt, ok := r.Extra[0].(*dns.OPT)
		if !ok || len(opt.Option) > 0 {
			return false
		}
		q.EDNS, q.DO = true, opt.Do()
		q.advertised, q.ednsFlags = opt.UDPSize(), uint16(opt.Hdr.Ttl)
		q.Size = max(q.advertised, MinSize)
	default:
		return false
	}
	q.ID, q.Type, q.Class = r.Id, question.Qtype, question.Qclass
	q.RD, q.AD, q.CD = r.RecursionDesired, r.AuthenticatedData, r.CheckingDisabled
	// The letters are those of the client, the lengths of labels stand where dots are.
	wire := msg[headerLen:][:len(name)]
	copy(wire[1:], question.Name)
	for off := 0; off < len(name); off += 1 + int(name[off]) {
		wire[off] = name[off]
	}
	q.end = headerLen + len(name) + 4
	binary.BigEndian.PutUint16(msg[q.end-4:], question.Qtype)
	binary.BigEndian.PutUint16(msg[q.end-2:], question.Qclass)
	return true
}
