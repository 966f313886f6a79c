//go:build load

package differential

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/test/differential/script"
)

// tally counts what was compared and which differences were seen.
type tally map[string]int

// compare compares two episodes name by name: a name is a story of its own.
func compare(stock, ours *script.Episode, seen tally) error {
	if stock.Config != ours.Config || len(stock.Replies) != len(ours.Replies) {
		return errors.New("the two did not play the same script")
	}
	before := seen["names set aside"]
	stories := make(map[string]*story)
	of := func(name string) *story {
		if stories[name] == nil {
			stories[name] = &story{config: stock.Config, name: name, seen: seen}
		}
		return stories[name]
	}
	for side, e := range [2]*script.Episode{stock, ours} {
		for _, r := range e.Replies {
			s := of(r.Name)
			s.replies[side] = append(s.replies[side], r)
		}
		for _, c := range e.Calls {
			s := of(c.Name)
			s.calls[side] = append(s.calls[side], c)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(stories)) {
		if err := stories[name].compare(); err != nil {
			return err
		}
	}
	if seen["names set aside"] != before {
		return nil // then the sums differ as well
	}
	seen["metrics"]++
	for name, want := range stock.Metrics {
		got := ours.Metrics[name]
		// What is not asked upstream drops no response, and asks nothing of the cache.
		if got < want && ours.Metrics["coredns_cache_coalesced_total"] > 0 && (name == "coredns_cache_drops_total" || asksSelf(stock)) {
			continue
		}
		if got != want && strings.HasPrefix(name, hits) && strings.Contains(stock.Config, "verify") && sum(stock.Metrics, hits) == sum(ours.Metrics, hits) {
			// The displaced denial is a hit no more, but the positive answer is.
			seen[rowDisplaced]++
			continue
		}
		if got != want {
			return fmt.Errorf("metric %s grew by %v, want %v", name, got, want)
		}
	}
	return nil
}

func asksSelf(e *script.Episode) bool {
	return slices.ContainsFunc(e.Calls, func(c script.Call) bool { return strings.HasPrefix(c.Name, "self") })
}

const hits = "coredns_cache_hits_total"

func sum(metrics map[string]float64, prefix string) (total float64) {
	for name, v := range metrics {
		if strings.HasPrefix(name, prefix) {
			total += v
		}
	}
	return total
}

// story is what happened with one name in an episode, to stock and ours.
type story struct {
	config, name string
	replies      [2][]script.Reply
	calls        [2][]script.Call
	seen         tally
	waits        bool // the name is set aside since somebody waited for another's query
}

// difference is where the two part.
type difference struct {
	*story
	reply   *[2]script.Reply // the replies that differ, or nil
	extra   *script.Call     // the call that only one made, or nil
	byStock bool             // stock made it
	at      time.Duration
}

func (s *story) compare() error {
	for side := range 2 {
		slices.SortFunc(s.replies[side], func(a, b script.Reply) int {
			return cmp.Or(cmp.Compare(a.Step, b.Step), strings.Compare(a.Query, b.Query))
		})
		slices.SortFunc(s.calls[side], func(a, b script.Call) int {
			return cmp.Or(cmp.Compare(a.At, b.At), strings.Compare(a.Key, b.Key), compareBool(a.TCP, b.TCP))
		})
	}
	aside, err := s.compareCalls()
	if err != nil {
		return err
	}
	for i := range s.replies[0] {
		stock, ours := s.replies[0][i], s.replies[1][i]
		if aside >= 0 && max(stock.Got, ours.Got) >= aside {
			s.seen["set aside"]++
			if s.waits && stock.Asked <= aside && ours.Got-stock.Got > slack(stock) && !s.ownLoss(ours) {
				return fmt.Errorf("%s at %v: answered at %v, %v after stock\n%s", ours.Query, ours.Asked, ours.Got, ours.Got-stock.Got, s.history(aside))
			}
			continue
		}
		s.seen["replies"]++
		if err := s.compareReplies(stock, ours); err != nil {
			d := &difference{story: s, reply: &[2]script.Reply{stock, ours}, at: stock.Asked}
			if row := explain(d); row != nil {
				s.seen[row.name]++
				if row.state {
					aside, s.waits = stock.Asked, row.name == rowUnderWay
					s.seen["names set aside"]++
				}
				continue
			}
			return fmt.Errorf("%w\n%s", err, s.history(stock.Asked))
		}
	}
	return nil
}

// ownLoss reports whether a query upstream after the client's own was lost, too.
func (s *story) ownLoss(r script.Reply) bool {
	return slices.ContainsFunc(s.calls[1], func(c script.Call) bool {
		return c.Key == r.Key && c.What == "timeout" && c.At > r.Asked && c.At < r.Got
	})
}

// slack is how much later a client may be answered that waits for the query of
// another one: 300 ms, or as long again if many wait for a response that turns out
// to be for the first of them alone.
func slack(stock script.Reply) time.Duration {
	return max(300*time.Millisecond, stock.Got-stock.Asked)
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// compareCalls compares what reached the upstream. It returns the time from
// which the name is set aside, or -1.
func (s *story) compareCalls() (time.Duration, error) {
	i, j := 0, 0
	for i < len(s.calls[0]) || j < len(s.calls[1]) {
		var stock, ours *script.Call
		if i < len(s.calls[0]) {
			stock = &s.calls[0][i]
		}
		if j < len(s.calls[1]) {
			ours = &s.calls[1][j]
		}
		if stock != nil && ours != nil && stock.At == ours.At && stock.Key == ours.Key {
			if !s.someClient(ours) {
				return -1, fmt.Errorf("call at %v %s over TCP: %t, as none of the clients\n%s", ours.At, ours.Key, ours.TCP, s.history(ours.At))
			}
			if stock.TCP && !ours.TCP {
				s.seen[rowTransport]++
			}
			i, j = i+1, j+1
			// Identical queries at the same time: stock asks for each.
			for i < len(s.calls[0]) && s.calls[0][i].At == stock.At && s.calls[0][i].Key == stock.Key {
				if j < len(s.calls[1]) && s.calls[1][j].At == stock.At && s.calls[1][j].Key == stock.Key {
					j++
				} else {
					s.seen[rowCoalesced]++
				}
				i++
			}
			continue
		}
		d := &difference{story: s}
		if ours == nil || stock != nil && stock.At <= ours.At {
			d.extra, d.byStock, d.at = stock, true, stock.At
		} else {
			d.extra, d.at = ours, ours.At
		}
		row := explain(d)
		if row == nil {
			who := "ours"
			if d.byStock {
				who = "stock"
			}
			return -1, fmt.Errorf("only %s asked upstream at %v: %+v\n%s", who, d.at, *d.extra, s.history(d.at))
		}
		s.seen[row.name]++
		s.seen["names set aside"]++
		s.waits = row.name == rowUnderWay
		return d.at, nil
	}
	return -1, nil
}

// someClient reports whether a client that set the call off came over the
// call's transport.
func (s *story) someClient(c *script.Call) bool {
	for _, r := range s.replies[1] {
		if r.Asked == c.At && r.Key == c.Key && r.TCP == c.TCP {
			return true
		}
	}
	return false
}

var messages = gocmp.Options{cmpopts.EquateEmpty()}

// compareReplies compares what two clients got that asked the same.
func (s *story) compareReplies(stock, ours script.Reply) error {
	if stock.Query != ours.Query || stock.Asked != ours.Asked {
		return fmt.Errorf("the two did not ask the same: %+v and %+v", stock, ours)
	}
	held := stock.Failed && !ours.Failed
	if held {
		s.seen[rowErrors]++
	}
	if stock.Written != ours.Written || stock.Code != ours.Code || stock.Failed != ours.Failed && !held {
		return fmt.Errorf("%s at %v: %d messages, code %d, error %t; want %d, %d, %t", stock.Query, stock.Asked,
			ours.Written, ours.Code, ours.Failed, stock.Written, stock.Code, stock.Failed)
	}
	if stock.Got != ours.Got {
		return fmt.Errorf("%s at %v: answered at %v, want %v", stock.Query, stock.Asked, ours.Got, stock.Got)
	}
	if stock.Written == 0 {
		return nil
	}
	want, got := new(dns.Msg), new(dns.Msg)
	if err := want.Unpack(stock.Msg); err != nil {
		return err
	}
	if err := got.Unpack(ours.Msg); err != nil {
		return err
	}
	if gocmp.Equal(want, got, messages) {
		return nil
	}
	// Spelling, which is the client's with ours.
	if len(got.Question) == 1 && strings.EqualFold(got.Question[0].Name, ours.Spelled) && got.Question[0].Name != ours.Spelled {
		return fmt.Errorf("%s at %v: the question came back as %q", ours.Query, ours.Asked, got.Question[0].Name)
	}
	if len(got.Question) == 1 && len(want.Question) == 1 && want.Question[0].Name != got.Question[0].Name && strings.EqualFold(want.Question[0].Name, got.Question[0].Name) {
		s.seen[rowQuestionCase]++
		want.Question[0].Name = got.Question[0].Name
	}
	if spellOwners(want, got) {
		s.seen[rowOwnerCase]++
	}
	if diff := gocmp.Diff(want, got, messages); diff != "" {
		return fmt.Errorf("%s at %v (-stock +ours):\n%s", ours.Query, ours.Asked, diff)
	}
	return nil
}

// spellOwners gives the owner names of want the spelling they have in got, if
// that is all that differs.
func spellOwners(want, got *dns.Msg) bool {
	changed := false
	for i, section := range [3][]dns.RR{want.Answer, want.Ns, want.Extra} {
		other := [3][]dns.RR{got.Answer, got.Ns, got.Extra}[i]
		if len(section) != len(other) {
			return changed
		}
		for k, rr := range section {
			if h, o := rr.Header(), other[k].Header(); h.Name != o.Name && strings.EqualFold(h.Name, o.Name) {
				h.Name = o.Name
				changed = true
			}
		}
	}
	return changed
}

// history is what happened to the name shortly before.
func (s *story) history(until time.Duration) string {
	var b strings.Builder
	for side, who := range [2]string{"stock", "ours"} {
		type line struct {
			at   time.Duration
			text string
		}
		var lines []line
		for _, r := range s.replies[side] {
			if r.Asked > until+5*time.Second {
				continue
			}
			m := new(dns.Msg)
			text := "nothing"
			if r.Written > 0 && m.Unpack(r.Msg) == nil {
				text = fmt.Sprintf("%s tc=%t aa=%t ad=%t an=%v ns=%v ar=%v", dns.RcodeToString[m.Rcode], m.Truncated, m.Authoritative, m.AuthenticatedData, m.Answer, m.Ns, m.Extra)
			}
			lines = append(lines, line{r.Asked, fmt.Sprintf("%v..%v client %s: %d/%t %s", r.Asked, r.Got, r.Query, r.Code, r.Failed, text)})
		}
		for _, c := range s.calls[side] {
			if c.At <= until+5*time.Second {
				lines = append(lines, line{c.At, fmt.Sprintf("%v..%v upstream %s tcp=%t: %s", c.At, c.Done, c.Key, c.TCP, c.What)})
			}
		}
		slices.SortFunc(lines, func(a, b line) int { return cmp.Compare(a.at, b.at) })
		fmt.Fprintf(&b, "%s, %s:\n", who, s.config)
		for _, l := range lines[max(0, len(lines)-14):] {
			fmt.Fprintf(&b, "  %s\n", l.text)
		}
	}
	return b.String()
}
