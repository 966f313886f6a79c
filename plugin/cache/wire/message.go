package wire

import (
	"errors"

	"github.com/miekg/dns"
)

var errRecords = errors.New("cached answer has fewer records than it says")

// Message makes the reply to r with this answer. It shares no memory with other
// messages, so it may be changed. Every TTL is ttl seconds. The reply has no OPT record.
func (a *Answer) Message(r *dns.Msg, ttl uint32) (*dns.Msg, error) {
	if m := a.addresses(r, ttl); m != nil {
		return m, nil
	}
	if m := a.common(r, ttl); m != nil {
		return m, nil
	}
	out := new(reply)
	m := out.init(r, a.Flags)

	buf := buffers.Get().(*[dns.MaxMsgSize]byte)
	defer buffers.Put(buf)
	question, err := dns.PackDomainName(r.Question[0].Name, buf[:], headerLen, nil, false)
	if err != nil {
		return nil, err
	}
	off := question + 4
	msg := buf[:off+len(a.Body)]
	copy(msg[off:], a.Body)
	setTTLs(msg[off:], a.TTLs, ttl)
	for i, section := range [3]*[]dns.RR{&m.Answer, &m.Ns, &m.Extra} {
		if a.Counts[i] == 0 {
			continue
		}
		rrs := make([]dns.RR, 0, a.Counts[i])
		for range a.Counts[i] {
			if off >= len(msg) {
				return nil, errRecords
			}
			var rr dns.RR
			if rr, off, err = dns.UnpackRR(msg, off); err != nil {
				return nil, err
			}
			rrs = append(rrs, rr)
		}
		*section = rrs
	}
	return m, nil
}

// reply holds a message with its question, and room for one or two records.
type reply struct {
	msg      dns.Msg
	question [1]dns.Question
	answer   [2]dns.RR
}

// init sets the header and the question.
func (p *reply) init(r *dns.Msg, flags Flags) *dns.Msg {
	p.question[0] = r.Question[0]
	m := &p.msg
	m.Id = r.Id
	m.Response = true
	m.Opcode = r.Opcode
	m.RecursionDesired = r.RecursionDesired
	m.CheckingDisabled = r.CheckingDisabled
	m.Rcode = flags.Rcode()
	m.Authoritative = flags.Authoritative()
	m.RecursionAvailable = flags.RecursionAvailable()
	m.AuthenticatedData = flags.AuthenticData()
	m.Question = p.question[:]
	return m
}

// Sizes of A and AAAA records whose owner is a pointer.
const (
	fixedLen = 2 + 10
	lenA     = fixedLen + 4
	lenAAAA  = fixedLen + 16

	ownerIsQuestion = 0xc000 | headerLen
)

type recordA struct {
	rr dns.A
	ip [4]byte
}

type recordAAAA struct {
	rr dns.AAAA
	ip [16]byte
}

// addresses makes the message for an answer of only A or only AAAA records of the question
// name, with three allocations at most. It returns nil for other answers.
func (a *Answer) addresses(r *dns.Msg, ttl uint32) *dns.Msg {
	n := int(a.Counts[0])
	if n == 0 || a.Counts[1]|a.Counts[2] != 0 {
		return nil
	}
	rrtype, size := dns.TypeA, lenA
	if be16(a.Body[2:]) == dns.TypeAAAA {
		rrtype, size = dns.TypeAAAA, lenAAAA
	}
	if len(a.Body) != n*size {
		return nil
	}
	class := be16(a.Body[4:])
	for off := 0; off < len(a.Body); off += size {
		rr := a.Body[off : off+size]
		if be16(rr) != ownerIsQuestion || be16(rr[2:]) != rrtype || be16(rr[4:]) != class || int(be16(rr[10:])) != size-fixedLen {
			return nil
		}
	}
	hdr := dns.RR_Header{Name: r.Question[0].Name, Rrtype: rrtype, Class: class, Ttl: ttl, Rdlength: uint16(size - fixedLen)}
	if n == 1 {
		return a.oneAddress(r, hdr)
	}
	out := new(reply)
	m := out.init(r, a.Flags)
	m.Answer = out.answer[:0]
	if n > len(out.answer) {
		m.Answer = make([]dns.RR, 0, n)
	}
	if rrtype == dns.TypeA {
		records := make([]recordA, n)
		for i := range records {
			rec := &records[i]
			copy(rec.ip[:], a.Body[i*lenA+fixedLen:])
			rec.rr = dns.A{Hdr: hdr, A: rec.ip[:]}
			m.Answer = append(m.Answer, &rec.rr)
		}
		return m
	}
	records := make([]recordAAAA, n)
	for i := range records {
		rec := &records[i]
		copy(rec.ip[:], a.Body[i*lenAAAA+fixedLen:])
		rec.rr = dns.AAAA{Hdr: hdr, AAAA: rec.ip[:]}
		m.Answer = append(m.Answer, &rec.rr)
	}
	return m
}

// oneAddress makes the reply with a single record in one allocation.
func (a *Answer) oneAddress(r *dns.Msg, hdr dns.RR_Header) *dns.Msg {
	if hdr.Rrtype == dns.TypeA {
		out := new(struct {
			reply
			recordA
		})
		m := out.init(r, a.Flags)
		copy(out.ip[:], a.Body[fixedLen:])
		out.rr = dns.A{Hdr: hdr, A: out.ip[:]}
		out.answer[0] = &out.rr
		m.Answer = out.answer[:1:1]
		return m
	}
	out := new(struct {
		reply
		recordAAAA
	})
	m := out.init(r, a.Flags)
	copy(out.ip[:], a.Body[fixedLen:])
	out.rr = dns.AAAA{Hdr: hdr, AAAA: out.ip[:]}
	out.answer[0] = &out.rr
	m.Answer = out.answer[:1:1]
	return m
}
