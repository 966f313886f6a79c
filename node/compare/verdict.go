package compare

import (
	"fmt"
	"math"
	"strings"
)

// Outcome is the verdict in a word.
type Outcome string

// The outcomes, about the number of entries of DNS.
const (
	Improved  Outcome = "improved"
	Unchanged Outcome = "unchanged"
	Worse     Outcome = "worse"
	Unclear   Outcome = "unclear"
)

// Verdict is the answer to "how much did it help?".
type Verdict struct {
	Outcome  Outcome `json:"outcome"`
	Sentence string  `json:"sentence"`
}

// A change counts if it is notable as a share and as a number.
const (
	notableShare   = 0.10
	notableEntries = 50.0
)

func outcomeOf(before, after, least float64) Outcome {
	change := after - before
	if math.Abs(change) < least || math.Abs(change) < notableShare*max(before, after) {
		return Unchanged
	}
	if change < 0 {
		return Improved
	}
	return Worse
}

func (p pair) verdict(warnings []Warning) Verdict {
	b, a := dnsEntries(p.before), dnsEntries(p.after)
	var against []string
	has := map[string]bool{}
	for _, w := range warnings {
		has[w.ID] = true
		if w.Undermines {
			against = append(against, w.Text)
		}
	}
	if len(against) > 0 {
		sentence := "Nothing can be concluded: " + strings.Join(against, "; ") + "."
		if b != nil && a != nil {
			sentence += fmt.Sprintf(" For what it is worth, DNS held %s entries in the first and %s in the second.", Format(Entries, b), Format(Entries, a))
		}
		return Verdict{Unclear, sentence}
	}

	outcome := outcomeOf(*b, *a, notableEntries)
	perLoad := ""
	if has["different-load"] {
		// An entry lives for a fixed time, so that entries go with the load.
		lb, la := *load(p.before), *load(p.after)
		if same := outcomeOf(*b/lb, *a/la, 0); same != outcome {
			return Verdict{Unclear, fmt.Sprintf("DNS holds %s entries and held %s, but the load changed from %s to %s DNS flows a second: for each of them there are %.2g entries, and there were %.2g.",
				Format(Entries, a), Format(Entries, b), Format(PerSecond, &lb), Format(PerSecond, &la), *a/la, *b/lb)}
		}
		perLoad = fmt.Sprintf(", and %.2g instead of %.2g for each DNS flow a second, since the load changed too", *a/la, *b/lb)
	}
	if outcome != Improved && has["settling"] {
		return Verdict{Unclear, fmt.Sprintf("DNS holds %s entries and held %s, but Trackless was attached only shortly before: take the second again in a few minutes.", Format(Entries, a), Format(Entries, b))}
	}

	var s strings.Builder
	if outcome != Unchanged && len(p.after.Attached()) > 0 && len(p.before.Attached()) == 0 {
		s.WriteString("With Trackless, ")
	}
	switch outcome {
	case Improved:
		fmt.Fprintf(&s, "DNS holds %s conntrack entries instead of %s (%s fewer)", Format(Entries, a), Format(Entries, b), percentOf(*b-*a, *b))
	case Worse:
		if *b == 0 {
			fmt.Fprintf(&s, "DNS holds %s conntrack entries instead of none", Format(Entries, a))
		} else {
			fmt.Fprintf(&s, "DNS holds %s conntrack entries instead of %s (%s more)", Format(Entries, a), Format(Entries, b), percentOf(*a-*b, *b))
		}
	default:
		fmt.Fprintf(&s, "No notable change: DNS holds %s conntrack entries and held %s", Format(Entries, a), Format(Entries, b))
	}
	s.WriteString(perLoad)
	if !has["different-load"] && !has["unknown-load"] {
		fmt.Fprintf(&s, " at a like load (%s and %s DNS flows a second)", Format(PerSecond, load(p.before)), Format(PerSecond, load(p.after)))
	}
	if kept := avoided(p.after); kept != nil && *kept > 0 {
		fmt.Fprintf(&s, "; Trackless keeps %s out of the table", Format(Entries, kept))
	}
	s.WriteString(p.fillText(has["different-limits"]))
	s.WriteString(".")
	s.WriteString(p.lossText())
	if outcome != Unchanged && has["not-attached"] {
		s.WriteString(" Trackless is attached in neither, so this is not its doing.")
	}
	return Verdict{outcome, s.String()}
}

// percentOf keeps 99.96 % from being written as 100.0 %.
func percentOf(part, whole float64) string {
	percent := 100 * part / whole
	if part < whole && percent > 99.9 {
		percent = math.Floor(percent*10) / 10
		if percent >= 100 {
			percent = 99.9
		}
	}
	return Format(Percent, &percent)
}

func (p pair) fillText(limitsDiffer bool) string {
	b, a := p.before.Table.FillPercent, p.after.Table.FillPercent
	if limitsDiffer || math.Abs(a-b) < 1 || max(a, b) < 10 {
		return ""
	}
	return fmt.Sprintf("; the table is %s full instead of %s", Format(Percent, &a), Format(Percent, &b))
}

func (p pair) lossText() string {
	b, a := lost(p.before), lost(p.after)
	switch {
	case b == nil || a == nil || *b == 0 && *a == 0:
		return ""
	case *a == 0:
		return fmt.Sprintf(" The table lost %s packets a second before, and none after.", Format(PerSecond, b))
	case *b == 0:
		return fmt.Sprintf(" The table loses %s packets a second, and lost none before.", Format(PerSecond, a))
	}
	return fmt.Sprintf(" The table loses %s packets a second, and lost %s before.", Format(PerSecond, a), Format(PerSecond, b))
}
