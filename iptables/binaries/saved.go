package binaries

import (
	"slices"
	"strconv"
	"strings"

	"github.com/trackless-dns/trackless/iptables/owner"
)

// savedTable is a table as iptables-save shows it.
type savedTable struct {
	chains []string // user-defined chains
	rules  map[string][]savedRule
}

// savedRule is a rule of a chain.
type savedRule struct {
	text    string // after "-A CHAIN "
	packets uint64
}

func parseSaved(lines []string) savedTable {
	t := savedTable{rules: map[string][]savedRule{}}
	for _, line := range lines {
		switch {
		case strings.HasPrefix(line, ":"):
			name, rest, _ := strings.Cut(line[1:], " ")
			if strings.HasPrefix(rest, "-") {
				t.chains = append(t.chains, name)
			}
		case strings.HasPrefix(line, "["):
			counters, rest, _ := strings.Cut(line[1:], "] ")
			packets, _, _ := strings.Cut(counters, ":")
			n, _ := strconv.ParseUint(packets, 10, 64)
			chain, text, _ := strings.Cut(strings.TrimPrefix(rest, "-A "), " ")
			t.rules[chain] = append(t.rules[chain], savedRule{text, n})
		}
	}
	return t
}

// ids lists the instances that have chains in the table.
func (t savedTable) ids() (out []string) {
	for _, chain := range t.chains {
		if id, ok := chainID(chain); ok && !slices.Contains(out, id) {
			out = append(out, id)
		}
	}
	return out
}

// chainID returns the instance of a chain.
func chainID(chain string) (string, bool) {
	rest, ok := strings.CutPrefix(chain, chainPrefix)
	if !ok {
		return "", false
	}
	id, name, ok := strings.Cut(rest, "-")
	return id, ok && slices.Contains(chainNames, name)
}

// mark reads the mark of an instance. There is none if other programs have emptied its
// chains.
func (t savedTable) mark(id string) (owner.Mark, bool) {
	candidates := slices.Clone(t.rules[chainPrefix+id+"-"+untrackChain])
	for _, base := range []string{preroutingChain, outputChain} {
		for _, r := range t.rules[base] {
			if leadsTo(r.text, id) {
				candidates = append(candidates, r)
			}
		}
	}
	for _, r := range candidates {
		if m, ok := owner.Parse(commentOf(r.text)); ok {
			return m, true
		}
	}
	return owner.Mark{}, false
}

// leadsTo reports whether a rule jumps to a chain of the instance.
func leadsTo(text, id string) bool {
	got, ok := jumpTarget(text)
	return ok && got == id
}

// jumpTarget returns the instance to whose chain a rule jumps.
func jumpTarget(text string) (string, bool) {
	_, target, ok := strings.Cut(text, "-j ")
	if !ok {
		return "", false
	}
	target, _, _ = strings.Cut(target, " ")
	return chainID(target)
}

// commentOf returns the comment of a rule, "" if it has none.
func commentOf(text string) string {
	_, rest, ok := strings.Cut(text, "--comment ")
	if !ok {
		return ""
	}
	if quoted, ok := strings.CutPrefix(rest, `"`); ok {
		comment, _, _ := strings.Cut(quoted, `"`)
		return comment
	}
	comment, _, _ := strings.Cut(rest, " ")
	return comment
}

// stale lists the instances whose process is certainly gone.
func (t savedTable) stale() (out []string) {
	for _, id := range t.ids() {
		if m, ok := t.mark(id); ok && m.Dead() {
			out = append(out, id)
		}
	}
	return out
}

// removal returns the lines of a transaction that remove an instance.
func (t savedTable) removal(id string) (lines []string) {
	for _, base := range []string{preroutingChain, outputChain} {
		for _, r := range t.rules[base] {
			if leadsTo(r.text, id) {
				lines = append(lines, "-D "+base+" "+r.text)
			}
		}
	}
	var mine []string
	for _, chain := range t.chains {
		if got, ok := chainID(chain); ok && got == id {
			mine = append(mine, chain)
		}
	}
	for _, chain := range mine {
		lines = append(lines, "-F "+chain)
	}
	// After all are empty: a chain cannot be deleted while a rule jumps to it.
	for _, chain := range mine {
		lines = append(lines, "-X "+chain)
	}
	return lines
}

// own returns the rules of an instance's chains as they were read, to compare them
// later. Programs of different versions print them differently.
func (t savedTable) own(id string) (out []string) {
	for _, chain := range t.chains {
		if got, ok := chainID(chain); !ok || got != id {
			continue
		}
		out = append(out, chain)
		for _, r := range t.rules[chain] {
			out = append(out, "-A "+chain+" "+r.text)
		}
	}
	return out
}

// position finds the rule that jumps from a chain of the table to an instance. It is in
// its place if it is there once, and only the jumps of other instances are before it.
// before is the number of such jumps at the top. Jumps of stale instances do not count.
func (t savedTable) position(base, id string, stale []string) (before int, inPlace bool) {
	top, count := true, 0
	for _, r := range t.rules[base] {
		target, ours := jumpTarget(r.text)
		switch {
		case ours && target == id:
			count++
			inPlace = top
		case ours && slices.Contains(stale, target):
		case ours && top:
			before++
		default:
			top = false
		}
	}
	return before, inPlace && count == 1
}
