package compare

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// NotMeasured is what is written in place of a figure that there is not.
const NotMeasured = "–"

// Format writes a figure for people, with its unit where it is not clear from
// a heading: 23,410 or 4.2 % or 1.5 MiB.
func Format(u Unit, n *float64) string {
	if n == nil {
		return NotMeasured
	}
	v := *n
	switch u {
	case Percent:
		return fixed(v, 1) + " %"
	case Bytes:
		return byteSize(v)
	case PerSecond:
		if math.Abs(v) < 100 && v != math.Trunc(v) {
			return fixed(v, 1)
		}
	case Microseconds:
		if math.Abs(v) >= 1000 {
			return fixed(v/1000, 1) + " ms"
		}
		return fixed(v, 0) + " µs"
	}
	return fixed(v, 0)
}

// FormatDifference is Format with the sign always written, and with percentage
// points for a difference of percentages.
func FormatDifference(u Unit, n *float64) string {
	text := Format(u, n)
	if n != nil && u == Percent {
		text = fixed(*n, 1) + " points"
	}
	if n != nil && *n > 0 {
		text = "+" + text
	}
	return text
}

// FormatRatio writes a ratio as × 0.013, with at most four decimals: the columns
// of the page are narrow on a phone.
func FormatRatio(n *float64) string {
	if n == nil {
		return NotMeasured
	}
	switch v := math.Abs(*n); {
	case v == 0:
		return "× 0"
	case v < 0.0001:
		return "< 0.0001"
	case v < 0.01:
		return "× " + fixed(*n, 4)
	case v < 0.1:
		return "× " + fixed(*n, 3)
	case v < 100:
		return "× " + fixed(*n, 2)
	}
	return "× " + fixed(*n, 0)
}

// fixed writes so many decimals, with a comma at every thousand and a true
// minus sign.
func fixed(v float64, decimals int) string {
	digits := strconv.FormatFloat(math.Abs(v), 'f', decimals, 64)
	whole, fraction, _ := strings.Cut(digits, ".")
	for i := len(whole) - 3; i > 0; i -= 3 {
		whole = whole[:i] + "," + whole[i:]
	}
	if fraction != "" {
		whole += "." + fraction
	}
	if v < 0 && strings.Trim(digits, "0.") != "" {
		whole = "−" + whole
	}
	return whole
}

func byteSize(v float64) string {
	for _, u := range []struct {
		size float64
		name string
	}{{1 << 30, "GiB"}, {1 << 20, "MiB"}, {1 << 10, "KiB"}} {
		if math.Abs(v) >= u.size {
			return fixed(v/u.size, 1) + " " + u.name
		}
	}
	return fixed(v, 0) + " bytes"
}

// roughly writes a duration with one or two units.
func roughly(d time.Duration) string {
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%d days", int(d.Hours())/24)
	case d >= 2*time.Hour:
		return fmt.Sprintf("%d hours", int(d.Hours()))
	case d >= 3*time.Minute:
		return fmt.Sprintf("%d minutes", int(d.Minutes()))
	case d >= time.Second:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	}
	return d.Round(time.Millisecond).String()
}
