package page

import (
	"fmt"
	"math"
	"strings"

	"github.com/trackless-dns/trackless/node/compare"
)

// The drawing of a course has these units; the browser stretches it to the
// width there is. Its labels are text beside it, so that they keep their size.
const (
	drawingWidth  = 1000.0
	drawingHeight = 300.0
	maxSlices     = 48
)

// line is a series as it is drawn.
type line struct {
	Class, Title, Path string
	Points             string // of an SVG polyline
	Area               string // the same, closed at the bottom; "" for dashed lines
	Values             []point
}

type point struct{ Seconds, Value float64 }

// Count is the value, a number of entries.
func (p point) Count() uint64 { return uint64(p.Value) }

// slice is a part of the x axis with what all series have there.
type slice struct {
	X, Width float64
	Text     string
}

// draw makes a chart of the series that have at least two points. A limit is
// drawn if it is not far beyond the values.
func draw(id, title string, limit float64, all []series) course {
	c := course{ID: id, Title: title}
	most, end := 0.0, 0.0
	var shown []series
	var values [][]point
	for _, s := range all {
		points := s.points()
		if len(points) < 2 {
			continue
		}
		shown, values = append(shown, s), append(values, points)
		for _, p := range points {
			most, end = max(most, p.Value), max(end, p.Seconds)
		}
	}
	if len(shown) == 0 || end == 0 {
		c.Empty = true
		return c
	}
	if limit > 0 && limit <= 2*most {
		most = limit
	}
	step := niceStep(most / 4)
	steps := max(1, int(math.Ceil(most/step-1e-9)))
	c.Top = step * float64(steps)
	for i := steps; i >= 0; i-- {
		c.Ticks = append(c.Ticks, compare.Format(compare.Entries, new(step*float64(i))))
		c.Grid = append(c.Grid, drawingHeight*float64(steps-i)/float64(steps))
	}
	if limit > 0 && limit <= c.Top {
		c.Limit = new(drawingHeight * (1 - limit/c.Top))
		c.Text = "The dotted line is the limit, at which new flows are dropped."
	} else if limit > 0 {
		c.Text = fmt.Sprintf("The limit, %s, is far above.", compare.Format(compare.Entries, &limit))
	}
	for i := 0; i <= 4; i++ {
		c.XTicks = append(c.XTicks, seconds(end*float64(i)/4, end))
	}
	for i, s := range shown {
		c.Lines = append(c.Lines, s.line(values[i], end, c.Top))
	}
	c.Slices = slices(shown, values, end)
	return c
}

func (s series) points() []point {
	var list []point
	for _, sample := range s.samples {
		if v := s.of(sample); v != nil {
			list = append(list, point{sample.Seconds, *v})
		}
	}
	return list
}

func (s series) line(values []point, end, top float64) line {
	var b strings.Builder
	for i, p := range values {
		if i > 0 {
			b.WriteByte(' ')
		}
		fmt.Fprintf(&b, "%.2f,%.2f", drawingWidth*p.Seconds/end, drawingHeight*(1-p.Value/top))
	}
	l := line{Class: s.class, Title: s.title, Path: s.path, Points: b.String(), Values: values}
	if !strings.Contains(s.class, "avoided") {
		first, last := values[0], values[len(values)-1]
		l.Area = fmt.Sprintf("%.2f,%.0f %s %.2f,%.0f", drawingWidth*first.Seconds/end, drawingHeight, l.Points, drawingWidth*last.Seconds/end, drawingHeight)
	}
	return l
}

// slices cuts the x axis, and says for each part what is nearest to its middle.
func slices(shown []series, values [][]point, end float64) []slice {
	most := 0
	for _, v := range values {
		most = max(most, len(v))
	}
	n := min(most, maxSlices)
	list := make([]slice, n)
	for i := range list {
		middle := end * (float64(i) + 0.5) / float64(n)
		text := seconds(middle, end)
		for j, s := range shown {
			p := nearest(values[j], middle)
			if p.Seconds < middle-end/float64(n) || p.Seconds > middle+end/float64(n) {
				continue // this series ended earlier
			}
			text += fmt.Sprintf("\n%s: %s", s.title, compare.Format(compare.Entries, &p.Value))
		}
		list[i] = slice{drawingWidth * float64(i) / float64(n), drawingWidth / float64(n), text}
	}
	return list
}

func nearest(values []point, at float64) point {
	best := values[0]
	for _, p := range values {
		if math.Abs(p.Seconds-at) < math.Abs(best.Seconds-at) {
			best = p
		}
	}
	return best
}

// niceStep returns 1, 2 or 5 times a power of ten, at least v and at least 1.
func niceStep(v float64) float64 {
	if v <= 1 {
		return 1
	}
	power := math.Pow(10, math.Floor(math.Log10(v)))
	for _, factor := range []float64{1, 2, 2.5, 5, 10} {
		if step := factor * power; step >= v && step == math.Trunc(step) {
			return step
		}
	}
	return 10 * power
}

func seconds(at, end float64) string {
	switch {
	case end >= 600:
		return fmt.Sprintf("%.0f min", at/60)
	case end >= 20:
		return fmt.Sprintf("%.0f s", at)
	}
	return fmt.Sprintf("%.1f s", at)
}
