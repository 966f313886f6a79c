package wire

import (
	"encoding/binary"
	"errors"
	"strconv"
	"strings"
	"sync"

	"github.com/miekg/dns"
)

var (
	errQuestion = errors.New("a message without exactly one question has no key")
	errRcode    = errors.New("an extended RCODE does not fit a cached answer")
)

// buffers are scratch space for messages of any size.
var buffers = sync.Pool{New: func() any { return new([dns.MaxMsgSize]byte) }}

// Pack packs the header bits of m and the sections after the question. It leaves out OPT
// records, which are hop by hop (RFC 6891 section 6.2.1). An extended RCODE needs an OPT
// record, and so is an error. Pack changes the records while it runs and then restores
// them, so no other goroutine may use them meanwhile.
func Pack(m *dns.Msg) (Answer, error) {
	if len(m.Question) != 1 {
		return Answer{}, errQuestion
	}
	if m.Rcode > flagRcode { // RFC 6891 section 6.1.3
		return Answer{}, errRcode
	}
	var name [MaxName]byte
	qname, err := AppendName(name[:0], m.Question[0].Name)
	if err != nil {
		return Answer{}, err
	}
	buf := buffers.Get().(*[dns.MaxMsgSize]byte)
	defer buffers.Put(buf)
	p := packer{msg: buf[:], off: headerLen + len(qname) + 4, names: map[string]int{}}
	p.useQuestion(m.Question[0].Name, qname)

	a := Answer{Flags: headerFlags(m)}
	start := p.off
	for i, section := range [3][]dns.RR{m.Answer, m.Ns, m.Extra} {
		n, err := p.section(section, start)
		if err != nil {
			return Answer{}, err
		}
		a.Counts[i] = n
	}
	// Body and TTLs share one allocation: the caller copies both at once.
	out := make([]byte, 0, p.off-start+len(p.ttls))
	out = append(out, p.msg[start:p.off]...)
	out = append(out, p.ttls...)
	a.Body, a.TTLs = out[:p.off-start:p.off-start], out[p.off-start:]
	return a, nil
}

func headerFlags(m *dns.Msg) Flags {
	flags := Flags(m.Rcode) & flagRcode
	if m.Authoritative {
		flags |= flagAA
	}
	if m.RecursionAvailable {
		flags |= flagRA
	}
	if m.AuthenticatedData {
		flags |= flagAD
	}
	return flags
}

// packer packs records behind a question of which only the length is fixed.
type packer struct {
	msg     []byte
	off     int
	names   map[string]int // offsets of names for compression pointers
	ttls    []byte
	qname   string
	parents []string // stand-ins for qname and its parents, by label
}

// useQuestion makes owner names that are the question name, or a parent of it, point into
// the question. They are packed under stand-in names, which no message has. So names in
// RDATA do not point into the question, and keep their letter case in every reply.
func (p *packer) useQuestion(name string, wire []byte) {
	p.qname = name
	off, n := 0, 0
	for ; wire[off] != 0; n++ {
		p.names[standIns[n]] = headerLen + off
		off += 1 + int(wire[off])
	}
	p.parents = standIns[:n]
}

// standIns has a name for each label of the longest name (RFC 1035 section 3.1).
var standIns = func() (names [MaxName / 2]string) {
	for i := range names {
		names[i] = "\x01" + strconv.Itoa(i) + "."
	}
	return names
}()

// standIn returns the stand-in for an owner name, if it has one.
func (p *packer) standIn(owner string) (string, bool) {
	off, end := 0, p.qname == "."
	for i := 0; !end && i < len(p.parents); i++ {
		if len(p.qname)-off == len(owner) {
			if strings.EqualFold(p.qname[off:], owner) {
				return p.parents[i], true
			}
			return "", false
		}
		off, end = dns.NextLabel(p.qname, off)
	}
	return "", false
}

// section packs the records of one section and returns how many it has.
func (p *packer) section(rrs []dns.RR, start int) (uint16, error) {
	var n uint16
	for _, rr := range rrs {
		if rr.Header().Rrtype == dns.TypeOPT {
			continue
		}
		if err := p.record(rr, start); err != nil {
			return 0, err
		}
		n++
	}
	return n, nil
}

func (p *packer) record(rr dns.RR, start int) error {
	hdr := rr.Header()
	before := *hdr
	if name, ok := p.standIn(hdr.Name); ok {
		hdr.Name = name
	}
	end, err := dns.PackRR(rr, p.msg, p.off, p.names, true)
	*hdr = before
	if err != nil {
		return err
	}
	off, err := skipName(p.msg[:end], p.off)
	if err != nil {
		return err
	}
	p.ttls = binary.LittleEndian.AppendUint16(p.ttls, uint16(off+4-start))
	p.off = end
	return nil
}

var errName = errors.New("name runs over the end of the message")

// skipName returns the offset after the name at off.
func skipName(msg []byte, off int) (int, error) {
	for off < len(msg) {
		n := int(msg[off])
		switch {
		case n == 0:
			return off + 1, nil
		case n > maxLabel:
			return off + 2, nil
		}
		off += 1 + n
	}
	return 0, errName
}
