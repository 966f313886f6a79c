//go:build load

package differential

import (
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/test/differential/script"
)

// A row of the table of intended differences.
type row struct {
	name   string
	source string // the RFC or issue that asks for it
	// state: the caches hold different things afterwards, so the name is set
	// aside for the rest of the episode.
	state bool
	// explains reports whether the row is why the two part. nil: the
	// comparison knows the difference itself.
	explains func(*difference) bool
}

const (
	rowOwnerCase    = "owner names are spelled as the client spelled the question"
	rowQuestionCase = "the question comes back as the client spelled it, whatever the upstream makes of it"
	rowCoalesced    = "identical queries under way at the same time are asked upstream once"
	rowUnderWay     = "a query that comes while the same one is under way gets its response"
	rowDisplaced    = "a verified positive answer displaces the stale denial"
	rowErrors       = "four errors of queries are reported in a second"
	rowTransport    = "a refresh goes upstream over the client's transport"
)

var differences = []row{
	{name: rowOwnerCase, source: "RFC 1035 section 2.3.3; a compression pointer to the question"},
	{name: rowQuestionCase, source: "draft-vixie-dnsext-dns0x20"},
	{name: rowCoalesced, source: "kubernetes/dns#387, coredns#2879"},
	{name: rowErrors, source: "of many names that fail, the log stays readable"},
	{name: rowTransport, source: "deckhouse#2413"},
	{
		name: rowUnderWay, source: "kubernetes/dns#387, coredns#2879", state: true,
		explains: func(d *difference) bool { return d.underWay() || d.answeredMeanwhile() },
	},
	{
		name: "who wants recursion gets no answer that was given to who did not", source: "RFC 1035 section 4.1.1", state: true,
		explains: func(d *difference) bool { return strings.HasPrefix(d.name, "rd") && d.asked("rd=false") },
	},
	{
		name: "NXDOMAIN behind an alias is a denial", source: "RFC 2308 sections 2.1 and 5", state: true,
		explains: func(d *difference) bool {
			return d.before(func(c script.Call) bool { return c.What == "NXDOMAIN behind an alias" })
		},
	},
	{
		name: "a failure that no upstream spoke of is stored for a second, and not at all over TCP", source: "RFC 9520 section 3.2", state: true,
		explains: func(d *difference) bool {
			return d.before(func(c script.Call) bool {
				return c.What == "timeout" && (c.TCP || d.at >= c.Done+time.Second)
			})
		},
	},
	{
		name: "who waited for a response that is not for all asks again", source: "RFC 5452 section 9.1, RFC 2181 section 9", state: true,
		explains: func(d *difference) bool {
			for _, c := range d.calls[1] {
				if d.extra != nil && !d.byStock && c.Key == d.extra.Key && c.Done == d.extra.At {
					return true
				}
			}
			return false
		},
	},
	{
		name: "a refresh that is cut off over UDP goes on over TCP", source: "RFC 2181 section 9", state: true,
		explains: func(d *difference) bool {
			return strings.HasPrefix(d.name, "tc") || d.before(func(c script.Call) bool { return c.What == "truncated" && !c.TCP })
		},
	},
	{
		name: "a query with a client subnet gets and leaves no answer that is not for it", source: "RFC 7871 section 7.3.1, coredns#7036, kubernetes/dns#650", state: true,
		explains: func(d *difference) bool {
			for _, r := range d.replies[0] {
				if r.ECS && r.Asked <= d.at {
					return true
				}
			}
			return false
		},
	},
	{
		name: "a denial lives no longer than the MINIMUM field of its SOA record", source: "RFC 2308 section 5", state: true,
		explains: func(d *difference) bool {
			return strings.HasPrefix(d.name, "soa") && d.before(func(c script.Call) bool { return c.Denial })
		},
	},
	{
		name: rowDisplaced, source: "RFC 8767 section 4", state: true,
		explains: func(d *difference) bool {
			return strings.Contains(d.config, "verify") && d.before(denied) && d.before(func(c script.Call) bool { return c.Rcode == 0 && !denied(c) })
		},
	},
}

func denied(c script.Call) bool {
	return strings.HasPrefix(c.What, "NXDOMAIN") || c.What == "NODATA" || c.What == "alias to nothing with SOA" || c.What == "SERVFAIL" || c.What == "NOTIMP" || c.What == "timeout"
}

// explain returns the row that explains a difference, or nil.
func explain(d *difference) *row {
	for i := range differences {
		if r := &differences[i]; r.explains != nil && r.explains(d) {
			return r
		}
	}
	return nil
}

// asked reports whether a query with the word in it had come before the
// difference.
func (d *difference) asked(word string) bool {
	return slices.ContainsFunc(d.replies[0], func(r script.Reply) bool { return r.Asked <= d.at && strings.Contains(r.Query, word) })
}

// before reports whether there was such a call before the difference.
func (d *difference) before(is func(script.Call) bool) bool {
	for _, c := range d.calls[0] {
		if c.At <= d.at && is(c) {
			return true
		}
	}
	return false
}

// underWay reports whether the difference came while ours was asking the same
// upstream for somebody else.
func (d *difference) underWay() bool {
	key := ""
	switch {
	case d.extra != nil:
		key = d.extra.Key
	case d.reply != nil && d.shareable():
		key = d.reply[0].Key
	}
	for _, c := range d.calls[1] {
		if c.Key == key && c.Done > d.at && (c.At < d.at || c.At == d.at && d.together(key)) {
			return true
		}
	}
	return false
}

// answeredMeanwhile reports whether the upstream answered another client while
// it did not answer this one.
func (d *difference) answeredMeanwhile() bool {
	return d.reply != nil && d.reply[0].Failed && slices.ContainsFunc(d.calls[1], func(c script.Call) bool {
		return c.Key == d.reply[0].Key && c.At > d.at && c.Done <= d.reply[1].Got && c.What != "timeout"
	})
}

// shareable reports whether our reply is one that others may get: what a client
// of stock got for the same question at that time, and no response for one client
// alone.
func (d *difference) shareable() bool {
	ours := new(dns.Msg)
	if ours.Unpack(d.reply[1].Msg) != nil {
		return true // it got a code
	}
	return slices.ContainsFunc(d.replies[0], func(r script.Reply) bool {
		m := new(dns.Msg)
		if r.Key != d.reply[0].Key || (r.Asked-d.at).Abs() > 3*time.Second || m.Unpack(r.Msg) != nil {
			return false
		}
		own := r.Step == d.reply[0].Step && r.Query == d.reply[0].Query
		switch m.Rcode {
		case dns.RcodeSuccess, dns.RcodeNameError, dns.RcodeServerFailure, dns.RcodeNotImplemented:
			own = own || !m.Truncated
		}
		return own && m.Rcode == ours.Rcode && m.Truncated == ours.Truncated && len(m.Answer) == len(ours.Answer) && len(m.Ns) == len(ours.Ns)
	})
}

// together reports whether the reply that differs is one of several that were asked
// for at once, with fewer queries upstream.
func (d *difference) together(key string) bool {
	calls, replies := 0, 0
	for _, c := range d.calls[1] {
		if c.Key == key && c.At == d.at {
			calls++
		}
	}
	for _, r := range d.replies[1] {
		if r.Key == key && r.Asked == d.at {
			replies++
		}
	}
	return d.reply != nil && calls < replies
}
