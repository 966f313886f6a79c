// Package contents lists and flushes the answers in the caches of a process, for its
// control socket.
package contents

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/iptables/control"
	"github.com/trackless-dns/trackless/plugin/cache/engine"
	"github.com/trackless-dns/trackless/plugin/cache/store"
	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// maxShown is the number of answers that are shown at once.
const maxShown = 1000

// Holder lists and flushes the caches. It implements control.CacheHolder.
type Holder struct {
	// Each calls fn for each cache. It returns an error if there is none. A reload must
	// wait until Each returns, or it would inherit answers that are being flushed.
	Each func(fn func(Cache)) error
	Log  Logger
}

// Logger writes log lines.
type Logger interface {
	Infof(format string, v ...any)
	Warningf(format string, v ...any)
}

// Cache is one of the caches.
type Cache struct {
	control.CacheBlock
	Engine   *engine.Engine
	Prefetch bool // prefetch is on, which counts the uses of answers exactly
	Now      time.Time
	Flushed  func() // called after a flush
}

// ShowCache implements control.CacheHolder.
func (h Holder) ShowCache(name, qtype string) (control.CacheContent, error) {
	content := control.CacheContent{Answers: []control.CachedAnswer{}}
	scope, err := scopeOf(control.CacheScope{Name: name})
	if err != nil {
		return content, err
	}
	if scope.Name == nil {
		return content, errors.New("no name was given")
	}
	rrtype, err := typeOf(qtype)
	if err != nil {
		return content, err
	}
	err = h.Each(func(c Cache) {
		kept, more := c.find(scope, rrtype, maxShown-len(content.Answers), h.Log)
		content.Answers = append(content.Answers, kept...)
		content.More += more
	})
	own := wire.NameText(scope.Name)
	rank := func(a control.CachedAnswer) int {
		if a.Name == own {
			return 0
		}
		return 1 // an alias of it
	}
	slices.SortStableFunc(content.Answers, func(a, b control.CachedAnswer) int {
		return cmp.Or(
			cmp.Compare(a.ServerBlock, b.ServerBlock), cmp.Compare(a.View, b.View), cmp.Compare(rank(a), rank(b)),
			cmp.Compare(a.Name, b.Name), cmp.Compare(a.Type, b.Type), slices.Compare(a.Flags, b.Flags), cmp.Compare(a.Kind, b.Kind))
	})
	return content, err
}

// copied is a copy of a record in the store.
type copied struct {
	key      wire.Key
	kind     store.Kind
	answer   wire.Answer
	ttl      uint32
	stored   store.Time
	left     int64
	uses     int
	usesMore bool
	source   string
}

// find returns up to limit answers that may be served, and how many more there are.
func (c Cache) find(scope engine.Scope, rrtype uint16, limit int, log Logger) (found []control.CachedAnswer, more int) {
	t := c.Engine.Store().Time(c.Now)
	var copies []copied
	c.Engine.Store().Range(func(key wire.Key, r *store.Record) {
		a := r.Answer()
		if rrtype != dns.TypeNone && key.Type() != rrtype || !scope.Covers(key, &a) || !c.Engine.Servable(r, t) {
			return
		}
		if len(copies) >= limit {
			more++
			return
		}
		kept := copied{
			key: bytes.Clone(key), kind: r.Kind(), ttl: r.TTL(), stored: r.Stored(), left: r.Left(t), source: c.Engine.Source(r),
			answer: wire.Answer{Flags: a.Flags, Counts: a.Counts, Body: bytes.Clone(a.Body), TTLs: bytes.Clone(a.TTLs)},
		}
		if c.Prefetch {
			kept.uses = int(r.Hits())
		} else {
			kept.uses, kept.usesMore = int(r.Uses()), r.Uses() == store.MaxUses
		}
		copies = append(copies, kept)
	})
	epoch := c.Engine.Store().Epoch()
	for _, kept := range copies {
		answer := kept.show(c.Now, epoch, log)
		answer.CacheBlock = c.CacheBlock
		found = append(found, answer)
	}
	return found, more
}

func (c *copied) show(now, epoch time.Time, log Logger) control.CachedAnswer {
	stored := epoch.Add(time.Duration(c.stored))
	rcode := c.answer.Flags.Rcode()
	a := control.CachedAnswer{
		Name: wire.NameText(c.key.Name()), Type: dns.Type(c.key.Type()).String(), Class: dns.Class(c.key.Class()).String(),
		Flags: flagsOf(c.key), Kind: kindName(c.kind, rcode), Rcode: dns.RcodeToString[rcode],
		Answer: []string{}, Authority: []string{}, Additional: []string{},
		Stored: stored.UTC(), AgeSeconds: int64(now.Sub(stored) / time.Second),
		StoredTTLSeconds: int64(c.ttl), TTLSeconds: max(c.left, 0), StaleSeconds: max(-c.left, 0),
		Uses: c.uses, UsesOrMore: c.usesMore, Source: c.source,
	}
	question := new(dns.Msg).SetQuestion(a.Name, c.key.Type())
	m, err := c.answer.Message(question, uint32(a.TTLSeconds))
	if err != nil {
		log.Warningf("Cached answer for %q is unreadable: %v", a.Name, err)
		return a
	}
	a.Answer, a.Authority, a.Additional = texts(m.Answer), texts(m.Ns), texts(m.Extra)
	return a
}

// flagsOf lists the bits of the queries that get the answer.
func flagsOf(key wire.Key) []string {
	flags := []string{}
	for _, f := range []struct {
		bit  wire.Bits
		name string
	}{{wire.DO, "do"}, {wire.CD, "cd"}, {wire.NoRD, "no-rd"}, {wire.NoSubnet, "no-subnet"}} {
		if key.Bits()&f.bit != 0 {
			flags = append(flags, f.name)
		}
	}
	return flags
}

func kindName(kind store.Kind, rcode int) string {
	switch {
	case kind == store.Positive:
		return "positive"
	case kind == store.Retained:
		return "retained"
	case rcode == dns.RcodeNameError:
		return "nxdomain"
	case rcode == dns.RcodeSuccess:
		return "nodata"
	}
	return "failure"
}

func texts(rrs []dns.RR) []string {
	list := make([]string, 0, len(rrs))
	for _, rr := range rrs {
		list = append(list, strings.ReplaceAll(rr.String(), "\t", " "))
	}
	return list
}

// scopeOf checks a scope and returns it with its name in wire format.
func scopeOf(s control.CacheScope) (engine.Scope, error) {
	name, below := s.Name, false
	if s.Zone != "" {
		if name != "" {
			return engine.Scope{}, errors.New("both a name and a zone were given: give one of them")
		}
		name, below = s.Zone, true
	}
	if name == "" {
		return engine.Scope{}, nil
	}
	packed, err := wire.AppendName(nil, name)
	if err != nil {
		return engine.Scope{}, fmt.Errorf("%q is no domain name: %w", name, err)
	}
	return engine.Scope{Name: packed, Below: below}, nil
}

// typeOf returns the number of a record type, which is given by name or as TYPE and a
// number (RFC 3597 section 5). It is TypeNone if name is empty.
func typeOf(name string) (uint16, error) {
	if name == "" {
		return dns.TypeNone, nil
	}
	upper := strings.ToUpper(name)
	if t, ok := dns.StringToType[upper]; ok && t != dns.TypeNone {
		return t, nil
	}
	if digits, ok := strings.CutPrefix(upper, "TYPE"); ok {
		if t, err := strconv.ParseUint(digits, 10, 16); err == nil && t != 0 {
			return uint16(t), nil
		}
	}
	return 0, fmt.Errorf("%q is no record type: want one such as A or TXT, or TYPE with a number", name)
}

// CheckScope returns an error if FlushCache refuses the scope.
func CheckScope(s control.CacheScope) error {
	_, err := scopeOf(s)
	return err
}

// CheckType returns an error if ShowCache refuses the record type.
func CheckType(name string) error {
	_, err := typeOf(name)
	return err
}
