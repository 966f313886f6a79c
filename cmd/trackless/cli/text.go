package cli

import (
	"fmt"
	"strings"
	"time"
)

func Percent(part, whole uint64) float64 {
	if whole == 0 {
		return 0
	}
	return 100 * float64(part) / float64(whole)
}

func Ratio(a, b uint64) float64 {
	if b == 0 {
		return 0
	}
	return float64(a) / float64(b)
}

// EntriesOf writes how many entries there are of how many. A limit of 0 is none
// (nf_conntrack_max in nf_conntrack_core.c).
func EntriesOf(entries, limit uint64) string {
	if limit == 0 {
		return Thousands(entries) + " entries, no limit (nf_conntrack_max is 0)"
	}
	return fmt.Sprintf("%s of %s entries", Thousands(entries), Thousands(limit))
}

// FillText writes a fill in percent, "-" where there is no limit.
func FillText(entries, limit uint64) string {
	if limit == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f %%", Percent(entries, limit))
}

// Thousands writes 262144 as 262,144.
func Thousands(n uint64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// ByteSize writes a number of bytes in the unit that fits.
func ByteSize(n uint64) string {
	const kib, mib, gib = 1 << 10, 1 << 20, 1 << 30
	switch {
	case n >= gib:
		return fmt.Sprintf("%.1f GiB", float64(n)/gib)
	case n >= mib:
		return fmt.Sprintf("%.1f MiB", float64(n)/mib)
	case n >= kib:
		return fmt.Sprintf("%.1f KiB", float64(n)/kib)
	}
	return fmt.Sprintf("%d bytes", n)
}

func Joined[T any](values []T) string {
	words := make([]string, 0, len(values))
	for _, v := range values {
		words = append(words, fmt.Sprint(v))
	}
	return strings.Join(words, ", ")
}

// ShortDuration gives the two largest units: 3d4h, 5m6s.
func ShortDuration(d time.Duration) string {
	units := []struct {
		size time.Duration
		name string
	}{{24 * time.Hour, "d"}, {time.Hour, "h"}, {time.Minute, "m"}, {time.Second, "s"}}
	for i, u := range units {
		if d < u.size {
			continue
		}
		text := fmt.Sprintf("%d%s", d/u.size, u.name)
		if i+1 < len(units) {
			if rest := d % u.size / units[i+1].size; rest > 0 {
				text += fmt.Sprintf("%d%s", rest, units[i+1].name)
			}
		}
		return text
	}
	return "0s"
}
