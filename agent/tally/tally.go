// Package tally counts queries by client, name, type, rcode and transport, while somebody
// asks for it, and by client alone for metrics. Otherwise it costs two loads of a pointer.
// Its memory is bounded, and no query leaves it but in the counts that were asked for.
package tally

import (
	"context"
	"errors"
	"net/netip"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/iptables/control"
)

// A Tally counts for one asker at a time, and for metrics. The zero value counts nothing, and
// is ready to.
type Tally struct {
	// Clients are counted for metrics: by Early, and by Add for a query to CoreDNS.
	Clients Clients

	current atomic.Pointer[sketch]
}

// A Query is a query that was answered.
type Query struct {
	Client netip.Addr
	Name   string
	Type   uint16
	Rcode  int
	TCP    bool
}

// Running reports whether queries are counted now for an asker.
func (t *Tally) Running() bool { return t.current.Load() != nil }

// Answered counts a query. It keeps a copy of the name.
func (t *Tally) Answered(q *Query) {
	if s := t.current.Load(); s != nil {
		s.answered(q)
	}
}

// A Tier is a way to answer a query before CoreDNS sees it.
type Tier int

// The tiers.
const (
	Kernel Tier = iota // by the program at the devices of pods
	Socket             // by a listener of ours
	tiers              // their number
)

// Early counts a query over UDP that a tier answered. Its question is not known.
func (t *Tally) Early(tier Tier, client netip.Addr) {
	if s := t.current.Load(); s != nil {
		s.early(tier, client)
	}
	t.Clients.Add(client)
}

// Missed notes that the cache had no answer for a query, which Answered counts later.
func (t *Tally) Missed(client netip.Addr, name string) {
	if s := t.current.Load(); s != nil {
		s.missed(client, name)
	}
}

// ErrBusy is the error where somebody else has queries counted.
var ErrBusy = errors.New("somebody else has the queries counted at the moment; try again when that is over")

// During counts the queries of a time, or until the context ends.
func (t *Tally) During(ctx context.Context, d time.Duration) (control.QueryCounts, error) {
	s := newSketch()
	if !t.current.CompareAndSwap(nil, s) {
		return control.QueryCounts{}, ErrBusy
	}
	began := time.Now()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	t.current.Store(nil)
	if err := ctx.Err(); err != nil {
		return control.QueryCounts{}, err
	}
	counts := s.counts()
	counts.Seconds = time.Since(began).Seconds()
	return counts, nil
}

func typeName(t int) string {
	if name, ok := dns.TypeToString[uint16(t)]; ok && t < otherType {
		return name
	}
	if t >= otherType {
		return "other"
	}
	return "TYPE" + strconv.Itoa(t) // RFC 3597, section 5
}

func rcodeName(r int) string {
	if name, ok := dns.RcodeToString[r]; ok {
		return name
	}
	return "other"
}
