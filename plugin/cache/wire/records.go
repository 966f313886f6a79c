package wire

import (
	"bytes"
	"encoding/binary"
	"strings"

	"github.com/miekg/dns"
)

// common makes the message for an answer of common record types, with fewer allocations
// than a general parser: a name that points into the question is a substring of the
// client's question name, and equal names share one string. It returns nil for other
// answers.
func (a *Answer) common(r *dns.Msg, ttl uint32) *dns.Msg {
	question := r.Question[0].Name
	if len(question) < 2 || question[len(question)-1] != '.' || strings.IndexByte(question, '\\') >= 0 {
		return nil
	}
	p := reader{body: a.Body, base: headerLen + len(question) + 1 + 4, question: question, ttl: ttl}
	out := new(reply)
	m := out.init(r, a.Flags)
	room := out.answer[:0]
	for i, section := range [3]*[]dns.RR{&m.Answer, &m.Ns, &m.Extra} {
		n := int(a.Counts[i])
		if n == 0 {
			continue
		}
		rrs := room
		if n > cap(room) {
			rrs = make([]dns.RR, 0, n)
		} else {
			room = room[n:n:cap(room)]
		}
		for range n {
			rr := p.record()
			if rr == nil {
				return nil
			}
			rrs = append(rrs, rr)
		}
		*section = rrs[:n:n]
	}
	return m
}

// reader reads records from the body of a message whose question name has no escapes. The
// byte at index i of such a name is at offset headerLen+i+1 of the message. The length
// byte of a label that starts at index i is at offset headerLen+i.
type reader struct {
	body     []byte
	base     int // offset of the body in the message
	off      int // offset of the next byte to read, in the body
	question string
	ttl      uint32

	// The last names that were read, with their offsets in the body.
	known [4]struct {
		off  int
		name string
	}
	next int
}

// record reads a record, or returns nil if it is not of a common type.
func (p *reader) record() dns.RR {
	owner, ok := p.name()
	if !ok || len(p.body)-p.off < fixedLen-2 {
		return nil
	}
	b := p.body[p.off:]
	hdr := dns.RR_Header{Name: owner, Rrtype: be16(b), Class: be16(b[2:]), Ttl: p.ttl, Rdlength: be16(b[8:])}
	p.off += fixedLen - 2
	end := p.off + int(hdr.Rdlength)
	if end > len(p.body) {
		return nil
	}
	rr := p.data(hdr, p.body[p.off:end])
	if rr == nil || p.off != end {
		return nil
	}
	return rr
}

// data reads the RDATA b, which starts at p.off.
func (p *reader) data(hdr dns.RR_Header, b []byte) dns.RR {
	switch {
	case hdr.Rrtype == dns.TypeA && len(b) == 4:
		rec := new(recordA)
		copy(rec.ip[:], b)
		rec.rr = dns.A{Hdr: hdr, A: rec.ip[:]}
		p.off += len(b)
		return &rec.rr
	case hdr.Rrtype == dns.TypeAAAA && len(b) == 16:
		rec := new(recordAAAA)
		copy(rec.ip[:], b)
		rec.rr = dns.AAAA{Hdr: hdr, AAAA: rec.ip[:]}
		p.off += len(b)
		return &rec.rr
	case hdr.Rrtype == dns.TypeCNAME:
		if name, ok := p.name(); ok {
			return &dns.CNAME{Hdr: hdr, Target: name}
		}
	case hdr.Rrtype == dns.TypeNS:
		if name, ok := p.name(); ok {
			return &dns.NS{Hdr: hdr, Ns: name}
		}
	case hdr.Rrtype == dns.TypePTR:
		if name, ok := p.name(); ok {
			return &dns.PTR{Hdr: hdr, Ptr: name}
		}
	case hdr.Rrtype == dns.TypeSRV && len(b) > 6:
		p.off += 6
		if name, ok := p.name(); ok {
			return &dns.SRV{Hdr: hdr, Priority: be16(b), Weight: be16(b[2:]), Port: be16(b[4:]), Target: name}
		}
	case hdr.Rrtype == dns.TypeSOA:
		return p.soa(hdr, p.off+len(b))
	}
	return nil
}

func (p *reader) soa(hdr dns.RR_Header, end int) dns.RR {
	ns, ok := p.name()
	if !ok {
		return nil
	}
	mbox, ok := p.name()
	if !ok || end-p.off != 5*4 {
		return nil
	}
	b := p.body[p.off:end]
	p.off = end
	u32 := func(i int) uint32 { return binary.BigEndian.Uint32(b[4*i:]) }
	return &dns.SOA{Hdr: hdr, Ns: ns, Mbox: mbox, Serial: u32(0), Refresh: u32(1), Retry: u32(2), Expire: u32(3), Minttl: u32(4)}
}

// plainBytes are the bytes of labels that need no escape in presentation format.
var plainBytes = func() (set [256]bool) {
	for c := '!'; c <= '~'; c++ {
		set[c] = !bytes.ContainsRune([]byte(`.'@;()"\`), c)
	}
	return set
}()

// name reads the name at p.off, or returns false if it needs a general parser.
func (p *reader) name() (string, bool) {
	var buf [MaxName]byte
	text := buf[:0]
	off, start, jumped := p.off, p.off, false
	for off < len(p.body) {
		n := int(p.body[off])
		switch {
		case n == 0:
			if !jumped {
				p.off = off + 1
			}
			if len(text) == 0 {
				return ".", true
			}
			return p.remember(start, string(text)), true
		case n <= maxLabel:
			if off+1+n >= len(p.body) || len(text)+n+1 > len(buf)-1 {
				return "", false
			}
			for _, c := range p.body[off+1 : off+1+n] {
				if !plainBytes[c] {
					return "", false
				}
			}
			text = append(append(text, p.body[off+1:off+1+n]...), '.')
			off += 1 + n
		default:
			if n < 0xc0 || off+1 >= len(p.body) {
				return "", false
			}
			to := int(be16(p.body[off:]) & 0x3fff)
			if !jumped {
				p.off = off + 2
				jumped = true
			}
			if to < p.base {
				return p.inQuestion(start, text, to-headerLen)
			}
			to -= p.base
			if to >= off { // pointers may only lead backwards, so that there is no loop
				return "", false
			}
			if len(text) == 0 {
				for _, k := range p.known {
					if k.name != "" && k.off == to {
						return k.name, true
					}
				}
			}
			off = to
		}
	}
	return "", false
}

// inQuestion returns the name that starts with text and ends with the question name from
// index i on.
func (p *reader) inQuestion(start int, text []byte, i int) (string, bool) {
	if i < 0 || i >= len(p.question) || i > 0 && p.question[i-1] != '.' || len(text)+len(p.question)-i > MaxName-1 {
		return "", false
	}
	if len(text) == 0 {
		return p.question[i:], true
	}
	return p.remember(start, string(text)+p.question[i:]), true
}

func (p *reader) remember(off int, name string) string {
	k := &p.known[p.next%len(p.known)]
	k.off, k.name = off, name
	p.next++
	return name
}
