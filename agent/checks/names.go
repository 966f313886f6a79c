package checks

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/miekg/dns"
)

// The first part of the names that checks and lease probes ask for; the id of
// this load of the Corefile follows, a number, and a zone that is served there:
//
//	trackless-check-0123456789abcdef.2a.cluster.local.
//
// Only the handlers of that load answer, through `cache` and without an
// upstream, so an answer proves that our own listener is read and our own chain
// runs. Another instance refuses a check, so that it tries another port, and
// leaves a lease probe unanswered, since any answer to it renews the lease.
const (
	CheckLabel = "trackless-check-"
	LeaseLabel = "trackless-lease-"
)

// Identity is of one load of a Corefile: what checks ask for and only its handlers
// answer.
type Identity struct {
	id    string
	asked atomic.Uint64
	void  atomic.Uint64 // lease probes up to this number are not answered
}

// NewIdentity makes one that no other process and no other load has.
func NewIdentity() (*Identity, error) {
	var id [8]byte
	if _, err := rand.Read(id[:]); err != nil {
		return nil, err
	}
	return &Identity{id: hex.EncodeToString(id[:])}, nil
}

// Void has no lease probe answered that was asked before: a copy of it may still wait in
// a buffer, and its answer would renew a lease that is ended.
func (i *Identity) Void() { i.void.Store(i.asked.Load()) }

// ErrNotOurs says that someone else answered.
var ErrNotOurs = errors.New("someone else answered")

// Query builds the question of a check or of a lease probe.
func (i *Identity) Query(label, zone string) *dns.Msg {
	// A name of its own for each: a cache that asks once for clients that ask
	// alike would give one socket's answer to them all.
	name := fmt.Sprintf("%s%s.%x.%s", label, i.id, i.asked.Add(1), strings.TrimPrefix(zone, "."))
	m := new(dns.Msg)
	m.SetQuestion(dns.Fqdn(name), dns.TypeTXT)
	m.RecursionDesired = false
	return m
}

// Answer answers a check of this load. No cache stores a message with this
// response code (RFC 2308 section 7 has only SERVFAIL cached), so each check
// passes through what lies between.
func (i *Identity) Answer(r *dns.Msg, socket string) *dns.Msg {
	m := new(dns.Msg).SetRcode(r, dns.RcodeRefused)
	m.Extra = []dns.RR{&dns.TXT{
		Hdr: dns.RR_Header{Name: r.Question[0].Name, Rrtype: dns.TypeTXT, Class: dns.ClassINET},
		Txt: []string{i.id, socket},
	}}
	return m
}

// AnsweredBy returns which of our sockets an answer came from, or errNotOurs.
func (i *Identity) AnsweredBy(query, answer *dns.Msg) (socket string, err error) {
	for _, rr := range answer.Extra {
		if txt, ok := rr.(*dns.TXT); ok && len(txt.Txt) == 2 && txt.Txt[0] == i.id {
			return txt.Txt[1], nil
		}
	}
	return "", fmt.Errorf("%w %s with %s", ErrNotOurs, query.Question[0].Name, dns.RcodeToString[answer.Rcode])
}

// renews reports whether a message is an answer of ours to a lease probe.
func (i *Identity) renews(answer *dns.Msg) bool {
	if len(answer.Question) != 1 {
		return false
	}
	p, ok := i.ProbeOf(answer.Question[0].Name)
	_, err := i.AnsweredBy(answer, answer)
	return ok && p.Lease && p.Own && !p.Void && err == nil
}

// Probe is what a query asks for, if it is one of ours.
type Probe struct {
	Check, Lease bool
	Own          bool // of this load
	Void         bool // a lease probe of this load that must not be answered any longer
}

// ProbeOf tells checks and lease probes from ordinary names.
func (i *Identity) ProbeOf(qname string) (p Probe, ok bool) {
	const n = len(CheckLabel) // both have the same length
	if len(qname) < n {
		return p, false
	}
	p.Check, p.Lease = strings.EqualFold(qname[:n], CheckLabel), strings.EqualFold(qname[:n], LeaseLabel)
	if !p.Check && !p.Lease {
		return p, false
	}
	id, rest, _ := strings.Cut(qname[n:], ".")
	p.Own = strings.EqualFold(id, i.id)
	if p.Own && p.Lease {
		digits, _, _ := strings.Cut(rest, ".")
		number, err := strconv.ParseUint(digits, 16, 64)
		p.Void = err != nil || number <= i.void.Load()
	}
	return p, true
}
