package fastpath

import (
	"cmp"
	"fmt"
	"slices"
)

// Chain is what a [Policy] is decided from: the handlers of a server block above its
// cache.
type Chain struct {
	// Above are the names of the handlers above the cache, in the order in which a
	// query meets them.
	Above []string
	// Count is how many handlers were put above the cache. Another plugin may put a
	// handler there that has no directive and is not among Above.
	Count int
	// Cached and Leased tell that the block has the directives cache and notrack.
	Cached, Leased bool
	// Filtered tells that the block answers only some queries for its zones.
	Filtered bool
	// KeepTTL tells that the cache answers with the TTL that an answer had first.
	KeepTTL bool
	// BufSize is the number of the directive bufsize, 0 without one.
	BufSize uint16
}

// Policy is what a fast path may do for a server block.
type Policy struct {
	// Reason is why the block is not answered by a fast path, empty if it is.
	Reason string
	// Size is the largest UDP size that a client may advertise. A query that
	// advertises more is left to CoreDNS, whose reply has another size in it.
	Size uint16
	// Denials tells that a fast path may give denials of names (NXDOMAIN), too.
	Denials bool
	// Counted tells that the metrics of CoreDNS's directive prometheus count queries.
	Counted bool
}

// Eligible reports whether a fast path may answer.
func (p Policy) Eligible() bool { return p.Reason == "" }

// needNothing are the handlers that do nothing to a query that the cache can answer and
// that a fast path takes: those that answer names or types of their own, which never
// come into the cache, those that log failures, and those that act on EDNS options.
var needNothing = map[string]bool{
	"any": true, "cancel": true, "errors": true, "local": true, "metadata": true, "notrack": true, "nsid": true,
}

// replicated are the handlers whose work a fast path does itself.
var replicated = map[string]bool{"bufsize": true, "prometheus": true}

// wantsDenials is the handler that may put another reply in the place of a denial. It leaves
// all other replies of the cache as they are.
const wantsDenials = "searchpath"

// Decide returns the policy of a server block. A handler that is not known makes the
// block ineligible.
func Decide(c Chain) Policy {
	p := Policy{Size: cmp.Or(c.BufSize, 1<<16-1), Denials: !slices.Contains(c.Above, wantsDenials)}
	switch {
	case !c.Cached:
		p.Reason = "the block has no cache"
	case !c.Leased:
		p.Reason = "the block has no notrack, so no lease tells that it answers"
	case c.KeepTTL:
		p.Reason = "cache has the option keepttl"
	case c.Filtered:
		p.Reason = "the block answers only some queries for its zones (view)"
	}
	for _, name := range c.Above {
		if name == "prometheus" {
			p.Counted = true
		}
		if p.Reason == "" && !needNothing[name] && !replicated[name] && name != wantsDenials {
			p.Reason = fmt.Sprintf("%s must see every query", name)
		}
	}
	if p.Reason == "" && c.Count != len(c.Above) {
		p.Reason = fmt.Sprintf("%d handlers without a directive must see every query", c.Count-len(c.Above))
	}
	return p
}
