package scene

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/lab/clients"
)

// A Phase is a stretch of the load's time line.
type Phase struct {
	Name     string
	From, To time.Time

	// Want is who answers in a steady phase, in which no query may be lost or
	// late; "" makes the phase a transition.
	Want lab.Responder

	// Only, if not nil, selects the streams of a steady phase that Want must
	// answer. The others may be answered by anybody.
	Only func(clients.Stream) bool

	// Bar is how long after From a transition may lose queries; none may be
	// lost at all if it is 0.
	Bar time.Duration
}

const (
	// lateAfter makes an answer count for the time to recover: it came within
	// the limit, but only because the one who had the query recovered.
	lateAfter = time.Second

	// inFlight is how long before a fault a query may have been sent that the
	// fault took the answer from.
	inFlight = 100 * time.Millisecond
)

// A Timeline is the load of one case and its phases.
type Timeline struct {
	Streams []clients.Stream
	Queries [][]clients.Sent // of each stream
	Phases  []Phase

	// RulesGone: the faults of transitions take the rules away, so that what is
	// sent then may be tracked.
	RulesGone bool
}

// phaseOf returns the index of the phase to which the query belongs, -1 if it
// was sent before the first.
func (t *Timeline) phaseOf(sent *clients.Sent) int {
	found := -1
	for i, phase := range t.Phases {
		if sent.At.Before(phase.From) {
			break
		}
		found = i
	}
	if next := found + 1; found >= 0 && next < len(t.Phases) && t.Phases[found].Want != "" && t.Phases[next].Want == "" {
		fault := t.Phases[next].From
		// The kernel may get to see a query later than it was sent.
		byAnother := sent.By != t.Phases[found].Want && sent.At.Add(sent.Latency).After(fault)
		if affected(sent) && fault.Sub(sent.At) < inFlight || sent.Loss == "" && byAnother {
			return next
		}
	}
	return found
}

// affected reports whether the query was lost or answered late.
func affected(sent *clients.Sent) bool { return sent.Loss != "" || sent.Latency > lateAfter }

// takeover reports whether different responders stand before and after the
// transition, so that either may have answered.
func (t *Timeline) takeover(index int) bool {
	before, after := lab.Responder(""), lab.Responder("")
	for _, phase := range t.Phases[:index] {
		before = cmp.Or(phase.Want, before)
	}
	for _, phase := range slices.Backward(t.Phases[index:]) {
		after = cmp.Or(phase.Want, after)
	}
	return before != after || t.Phases[index].Only != nil
}

// tally is what became of the queries of one phase.
type tally struct {
	sent, lost, late int
	lostTo           map[string]int
	answeredBy       map[lab.Responder]int
	lastAffected     time.Time // when the last query was sent that was lost or late
	firstLost        string    // says which
}

// recovered is the time from the phase's beginning to the last query that was
// lost or late, 0 if it was sent before.
func (t *tally) recovered(phase Phase) time.Duration {
	if t.lastAffected.IsZero() {
		return 0
	}
	return max(0, t.lastAffected.Sub(phase.From))
}

// Judge adds to the result what became of the load, and why it failed if it
// did.
func (t *Timeline) Judge(result *Result) {
	tallies := make([]tally, len(t.Phases))
	answered := make([][]int, len(t.Phases)) // by the wanted responder, for each stream
	wrong := make([][]string, len(t.Phases))
	for i := range tallies {
		tallies[i].lostTo, tallies[i].answeredBy = map[string]int{}, map[lab.Responder]int{}
		answered[i] = make([]int, len(t.Streams))
	}
	for s, stream := range t.Streams {
		client := ClientResult{Kind: stream.Kind, From: stream.From.Name(), Target: stream.Target, AnsweredBy: map[lab.Responder]int{}}
		for q := range t.Queries[s] {
			sent := &t.Queries[s][q]
			client.add(sent)
			index := t.phaseOf(sent)
			if index < 0 {
				continue
			}
			phase := t.Phases[index]
			tallies[index].add(sent, phase, stream)
			if phase.Want == "" || sent.Loss != "" {
				continue
			}
			switch {
			case sent.By == phase.Want:
				answered[index][s]++
			case phase.Only != nil && !phase.Only(stream):
			case stream.Kind == clients.LongTCP && sent.Flow.Before(phase.From):
				// A connection stays with whom it was made to.
			default:
				wrong[index] = append(wrong[index], fmt.Sprintf("%s, by %s, at %s",
					describe(stream), sent.By, sent.At.Sub(phase.From).Round(time.Millisecond)))
			}
		}
		result.Clients = append(result.Clients, client)
	}
	began := time.Time{} // of the last transition
	for i, phase := range t.Phases {
		result.addPhase(phase, &tallies[i])
		if phase.Want == "" {
			began = phase.From
		}
		if last := tallies[i].lastAffected; !began.IsZero() && !last.IsZero() {
			// What is still lost in the steady phase that follows has not
			// recovered yet.
			result.RecoverMS = max(result.RecoverMS, last.Sub(began).Milliseconds())
		}
		t.judgePhase(result, i, &tallies[i], answered[i], wrong[i])
	}
}

func (t *Timeline) judgePhase(result *Result, index int, tally *tally, answered []int, wrong []string) {
	phase := t.Phases[index]
	if phase.Want == "" {
		switch {
		case phase.Bar == 0 && tally.lost > 0:
			result.Fail(FailLost, "%s: %d of %d queries lost, none may be: %s; the first %s",
				phase.Name, tally.lost, tally.sent, counts(tally.lostTo), tally.firstLost)
		case phase.Bar > 0 && tally.recovered(phase) > phase.Bar:
			result.Fail(FailLost, "%s: queries were lost or late for %s, at most %s is allowed: %d of %d lost, %s, %d late",
				phase.Name, tally.recovered(phase).Round(time.Millisecond), phase.Bar, tally.lost, tally.sent, counts(tally.lostTo), tally.late)
		}
		return
	}
	if tally.lost > 0 {
		result.Fail(FailLost, "%s: %d of %d queries lost in a steady phase: %s; the first %s",
			phase.Name, tally.lost, tally.sent, counts(tally.lostTo), tally.firstLost)
	}
	if tally.late > 0 {
		result.Fail(FailLost, "%s: %d of %d queries answered only after %s and more in a steady phase; the last at %s",
			phase.Name, tally.late, tally.sent, lateAfter, tally.recovered(phase).Round(time.Millisecond))
	}
	if len(wrong) > 0 {
		result.Fail(FailResponder, "%s: %d answers by another than %s; the first %s", phase.Name, len(wrong), phase.Want, wrong[0])
	}
	var never []string
	for s, stream := range t.Streams {
		// A connection from before the phase may take all queries of its client,
		// and one that asks seldom may not have asked.
		if answered[s] == 0 && stream.Kind != clients.LongTCP && (phase.Only == nil || phase.Only(stream)) && !asksSeldom(stream, phase) {
			never = append(never, describe(stream))
		}
	}
	if len(never) > 0 {
		result.Fail(FailResponder, "%s: %d clients were never answered by %s; the first %s", phase.Name, len(never), phase.Want, never[0])
	}
}

// asksSeldom reports whether a client need not ask in a phase.
func asksSeldom(stream clients.Stream, phase Phase) bool {
	return stream.Rate > 0 && phase.To.Sub(phase.From).Seconds() < 2/stream.Rate
}

func (t *tally) add(sent *clients.Sent, phase Phase, stream clients.Stream) {
	t.sent++
	switch {
	case sent.Loss != "":
		t.lost++
		t.lostTo[sent.Loss]++
		if t.lost == 1 {
			t.firstLost = fmt.Sprintf("%s, %s, at %s",
				describe(stream), sent.Loss, sent.At.Sub(phase.From).Round(time.Millisecond))
		}
	case sent.Latency > lateAfter:
		t.late++
		fallthrough
	default:
		t.answeredBy[sent.By]++
	}
	if affected(sent) {
		if sent.At.After(t.lastAffected) {
			t.lastAffected = sent.At
		}
	}
}

func describe(stream clients.Stream) string {
	return fmt.Sprintf("%s from %s to %s", stream.Kind, stream.From.Name(), stream.Target)
}

// counts lists reasons with their numbers, in the order of the alphabet.
func counts(of map[string]int) string {
	if len(of) == 0 {
		return "none lost"
	}
	text := ""
	for _, reason := range slices.Sorted(maps.Keys(of)) {
		if text != "" {
			text += ", "
		}
		text += fmt.Sprintf("%d %s", of[reason], reason)
	}
	return text
}
