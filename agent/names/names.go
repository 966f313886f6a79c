// Package names keeps a list of the names that are asked most in a file of the node, for an
// instance that finds no predecessor to take the answers from: after a boot of the node, or
// after the predecessor was killed. That instance asks for the names before it serves.
//
// The file has questions, not answers: an answer would be too old. A question stays in it for
// a day after its last use. Two instances that share the file merge their lists.
package names

import (
	"cmp"
	"slices"
	"time"
)

const (
	// Most is the largest number of names in a file.
	Most = 1000
	// keep is how long a name stays in the file after its last use.
	keep = 24 * time.Hour
)

// Name is a question that a cache answers often.
type Name struct {
	// Block names the server block that was asked, and where it listens.
	Block string
	// Text is the name in presentation format (RFC 1035 section 5.1).
	Text   string
	Type   uint16
	DO, CD bool
}

// used is a name with the hour of its last use, counted from 1970 on. Hours, so that the
// file changes only when other names are asked.
type used struct {
	Name
	hour int64
}

func hourOf(t time.Time) int64 { return t.Unix() / int64(time.Hour/time.Second) }

// merge returns the names in use now, hottest first, and behind them the others of the file
// that were used within a day.
func merge(current []Name, file []used, now time.Time) []used {
	hour := hourOf(now)
	merged := make([]used, 0, Most)
	seen := make(map[Name]bool, Most)
	for _, n := range current {
		if !seen[n] {
			seen[n] = true
			merged = append(merged, used{n, hour})
		}
	}
	others := slices.DeleteFunc(slices.Clone(file), func(u used) bool {
		return seen[u.Name] || hour-u.hour > int64(keep/time.Hour)
	})
	for i := range others {
		others[i].hour = min(others[i].hour, hour) // a clock that was ahead
	}
	slices.SortStableFunc(others, func(a, b used) int { return cmp.Compare(b.hour, a.hour) })
	merged = append(merged, others...)
	return merged[:min(len(merged), Most)]
}
