// Package figure writes numbers and lists for people.
package figure

import (
	"fmt"
	"strings"
)

// Percent returns which part of a whole that is, 0 of nothing.
func Percent(part, whole uint64) float64 {
	if whole == 0 {
		return 0
	}
	return 100 * float64(part) / float64(whole)
}

// Ratio returns a / b, 0 if b is.
func Ratio(a, b uint64) float64 {
	if b == 0 {
		return 0
	}
	return float64(a) / float64(b)
}

// Entries writes how many entries there are of how many. A limit of 0 is none
// (nf_conntrack_max in nf_conntrack_core.c).
func Entries(entries, limit uint64) string {
	if limit == 0 {
		return Thousands(entries) + " entries, no limit (nf_conntrack_max is 0)"
	}
	return fmt.Sprintf("%s of %s entries", Thousands(entries), Thousands(limit))
}

// Fill writes a fill in percent, "-" where there is no limit.
func Fill(entries, limit uint64) string {
	if limit == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f %%", Percent(entries, limit))
}

// Thousands writes 262144 as 262,144.
func Thousands[N ~int | ~int64 | ~uint64](n N) string {
	s := fmt.Sprint(n)
	sign := ""
	if strings.HasPrefix(s, "-") {
		sign, s = "-", s[1:]
	}
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return sign + s
}

// Rate writes a number per second: one decimal below 10, whole numbers from there on.
func Rate(perSecond float64) string {
	if perSecond > 0 && perSecond < 10 {
		return fmt.Sprintf("%.1f", perSecond)
	}
	return Thousands(uint64(perSecond + 0.5))
}

// Bytes writes a number of bytes in the unit that fits.
func Bytes(n uint64) string {
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

// Joined writes values, such as addresses, with a space between them.
func Joined[T fmt.Stringer](values []T) string {
	words := make([]string, 0, len(values))
	for _, v := range values {
		words = append(words, v.String())
	}
	return strings.Join(words, " ")
}
