package experiment

import (
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/lab/load"
)

// A Promise is one line of what an experiment was to show.
type Promise struct {
	// Name is stable, Text says what was promised, Found what was seen.
	Name  string `json:"name"`
	Text  string `json:"text"`
	Found string `json:"found"`
	Kept  bool   `json:"kept"`
}

// udpTimeout is how long the kernel keeps the entry of a query and its answer
// (nf_conntrack_udp_timeout, which new namespaces start with).
const udpTimeout = 30 * time.Second

// avoidedTolerance is how far the number of avoided entries may be from what
// the same load really had.
const avoidedTolerance = 0.02

// judge says what was promised in the scenario and whether it held.
func (r *Report) judge() {
	switch r.Scenario {
	case Exhaustion:
		r.Promises = r.exhaustionPromises()
	default:
		r.Promises = r.steadyPromises()
	}
	r.Kept = allKept(r.Promises)
}

func allKept(promises []Promise) bool {
	return !slices.ContainsFunc(promises, func(p Promise) bool { return !p.Kept })
}

func (r *Report) steadyPromises() []Promise {
	before, after := &r.Before, &r.After
	// What is sent within the timeout is in the table at the same time; half
	// of that leaves room for entries that time out while the load goes on.
	expected := min(before.Queries, r.RatePerSecond*int(udpTimeout.Seconds())) / 2
	return []Promise{
		allAnswered("before_answered", "through kube-proxy every first attempt is answered", before),
		answeredBy("before_by_kube_dns", before, lab.KubeDNS, before.UpstreamQueries),
		{
			Name:  "before_entries",
			Text:  fmt.Sprintf("through kube-proxy at least %s entries for DNS pile up", lab.Grouped(expected)),
			Found: lab.Grouped(before.DNSEntriesPeak) + " at peak",
			Kept:  before.DNSEntriesPeak >= expected,
		},
		allAnswered("after_answered", "through trackless every first attempt is answered", after),
		answeredBy("after_by_trackless", after, lab.Trackless, after.CacheQueries),
		noDNSEntries(after),
		{
			Name: "entries_avoided",
			Text: fmt.Sprintf("trackless knows within %.0f %% how many entries it avoids", avoidedTolerance*100),
			Found: fmt.Sprintf("%s at peak, where the same load had %s",
				lab.Grouped(after.EntriesAvoidedPeak), lab.Grouped(before.DNSEntriesPeak)),
			Kept: math.Abs(float64(after.EntriesAvoidedPeak-before.DNSEntriesPeak)) <=
				avoidedTolerance*float64(before.DNSEntriesPeak),
		},
	}
}

func (r *Report) exhaustionPromises() []Promise {
	before, after := &r.Before, &r.After
	return []Promise{
		{
			Name:  "table_full",
			Text:  "the table of either node is full before the load begins",
			Found: fmt.Sprintf("%s and %s entries of %s", lab.Grouped(before.EntriesPeak), lab.Grouped(after.EntriesPeak), lab.Grouped(r.TableLimit)),
			// A few entries may have timed out or been evicted by then.
			Kept: min(before.EntriesPeak, after.EntriesPeak) >= r.TableLimit-r.TableLimit/100,
		},
		{
			Name:  "before_lost",
			Text:  "through kube-proxy the full table costs queries",
			Found: fmt.Sprintf("%s of %s lost%s", lab.Grouped(before.Lost), lab.Grouped(before.Queries), load.Losses(before.LostTo)),
			Kept:  before.Lost > 0,
		},
		{
			Name:  "after_hits",
			Text:  "through trackless no query for a cached name is lost",
			Found: fmt.Sprintf("%s of %s lost", lab.Grouped(after.HitsLost), lab.Grouped(after.Hits)),
			Kept:  after.HitsLost == 0 && after.Hits > 0,
		},
		noDNSEntries(after),
	}
}

func allAnswered(name, text string, phase *Phase) Promise {
	return Promise{
		Name: name, Text: text,
		Found: fmt.Sprintf("%s of %s%s", lab.Grouped(phase.Answered), lab.Grouped(phase.Queries), load.Losses(phase.LostTo)),
		Kept:  phase.Lost == 0 && phase.Answered == phase.Queries && phase.Queries > 0,
	}
}

// answeredBy holds if every single answer bears the mark of the responder and
// the responder's own counter agrees.
func answeredBy(name string, phase *Phase, responder lab.Responder, counted int) Promise {
	return Promise{
		Name:  name,
		Text:  fmt.Sprintf("every answer comes from %s", responder),
		Found: fmt.Sprintf("%s of %s answers, and it counted %s queries", lab.Grouped(phase.AnsweredBy[responder]), lab.Grouped(phase.Answered), lab.Grouped(counted)),
		Kept:  phase.Answered > 0 && phase.AnsweredBy[responder] == phase.Answered && counted >= phase.Answered,
	}
}

func noDNSEntries(phase *Phase) Promise {
	return Promise{
		Name:  "after_entries",
		Text:  "through trackless no entry has a listen address in it",
		Found: fmt.Sprintf("%s at peak, %s at the end", lab.Grouped(phase.DNSEntriesPeak), lab.Grouped(phase.DNSEntriesEnd)),
		Kept:  phase.DNSEntriesPeak == 0 && phase.DNSEntriesEnd == 0,
	}
}
