//go:build load

package page

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/node/compare"
	htmlpage "github.com/trackless-dns/trackless/node/compare/page"
	"github.com/trackless-dns/trackless/node/snapshot"
)

// The snapshots of testdata are of one node, before and after.
func testSnapshot(t *testing.T, name string) *snapshot.Snapshot {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	s, err := snapshot.Read(f)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func pageFile(t *testing.T, c *compare.Comparison) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "report.html")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := htmlpage.Write(f, c); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

// comparisons are pages that look different.
func comparisons(t *testing.T) map[string]*compare.Comparison {
	before, after := testSnapshot(t, "before"), testSnapshot(t, "after")
	full := compare.Snapshots(before, after)
	full.Checks = []compare.Check{
		{Text: "no DNS entry with a listen address in either tuple", Found: "0 at the peak", Kept: true},
		{Text: "entries avoided within 2 %", Found: "4.1 % too many", Kept: false},
	}
	single := func(s *snapshot.Snapshot) *snapshot.Snapshot {
		cut := *s
		cut.WindowSeconds, cut.Samples, cut.NewFlows, cut.Table.Summary, cut.Table.DNSPercent = 0, nil, nil, nil, nil
		cut.Counters = nil
		cut.Missing = []string{"entries: operation not permitted (needs CAP_NET_ADMIN)", "<script>alert('a name of somebody else')</script>"}
		return &cut
	}
	// Tables as large as they get, nearly all of them gone, or new.
	nearly := func(s *snapshot.Snapshot, entries, dns uint64) *snapshot.Snapshot {
		cut, table := *s, *s.Table.Summary
		table.Entries, table.DNS.Entries, table.DNS.Unreplied = entries, dns, dns
		cut.Table.Entries, cut.Table.MemoryBytes = entries, 320*entries
		cut.Table.SetSummary(&table)
		return &cut
	}
	return map[string]*compare.Comparison{
		"full":    full,
		"gone":    compare.Snapshots(nearly(before, 1_262_144, 1_261_000), nearly(after, 1_160, 16)),
		"worse":   compare.Snapshots(nearly(after, 1_160, 16), nearly(before, 1_262_144, 1_261_000)),
		"nothing": compare.Snapshots(single(before), single(after)),
	}
}

func TestPage(t *testing.T) {
	b := startBrowser(t)
	for name, c := range comparisons(t) {
		path := pageFile(t, c)
		for _, screen := range []struct {
			width, height int
			scheme        string
		}{{1280, 900, "light"}, {1280, 900, "dark"}, {360, 740, "light"}, {360, 740, "dark"}} {
			t.Run(fmt.Sprintf("%s/%d %s", name, screen.width, screen.scheme), func(t *testing.T) {
				tab := b.open()
				tab.screen(screen.width, screen.height, screen.scheme)
				tab.load(path)
				tab.screenshot(fmt.Sprintf("%s-%d-%s", name, screen.width, screen.scheme))
				checkNumbers(t, tab)
				checkCharts(t, tab, name != "nothing")
				checkLayout(t, tab, screen.width, screen.scheme == "dark")
				if list := tab.complaints(); len(list) > 0 {
					t.Errorf("the browser complains:\n%s", strings.Join(list, "\n"))
				}
			})
		}
	}
}

// The checks of this test fail on a page with faults.
func TestFaultsAreSeen(t *testing.T) {
	b := startBrowser(t)
	good, err := os.ReadFile(pageFile(t, comparisons(t)["full"]))
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ name, old, new string }{
		{"a picture from elsewhere", "</footer>", `<img src="http://127.0.0.1:9/x.png" alt=""></footer>`},
		{"a style that is not the page's", "</footer>", `<p style="color: red">red</p></footer>`},
		{"a script", "</footer>", `<script>document.title = "run"</script></footer>`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "bad.html")
			if err := os.WriteFile(path, []byte(strings.Replace(string(good), tc.old, tc.new, 1)), 0o644); err != nil {
				t.Fatal(err)
			}
			tab := b.open()
			tab.load(path)
			var title string
			tab.eval(`document.title`, &title)
			for end := time.Now().Add(patience); len(tab.complaints()) == 0 && time.Now().Before(end); {
				time.Sleep(10 * time.Millisecond)
			}
			if len(tab.complaints()) == 0 || title == "run" {
				t.Errorf("nobody complains, the title is %q", title)
			}
		})
	}
}

// checkNumbers compares every number and sentence of the page with the JSON in
// it, which `trackless compare -o json` writes too.
func checkNumbers(t *testing.T, tab *tab) {
	t.Helper()
	var page struct {
		JSON  string
		Cells []struct{ Path, Unit, Text string }
	}
	tab.eval(`({
		JSON: document.getElementById("comparison").textContent,
		Cells: [...document.querySelectorAll("[data-json]")].map(e => ({Path: e.dataset.json, Unit: e.dataset.unit || "", Text: e.textContent})),
	})`, &page)
	var comparison any
	if err := json.Unmarshal([]byte(page.JSON), &comparison); err != nil {
		t.Fatal(err)
	}
	figures := comparison.(map[string]any)["figures"].([]any)
	if len(page.Cells) < 4*len(figures)/2 {
		t.Errorf("only %d numbers are on the page", len(page.Cells))
	}
	for _, cell := range page.Cells {
		switch value := at(comparison, cell.Path).(type) {
		case nil:
			if cell.Text != compare.NotMeasured {
				t.Errorf("%s is %q, want %q", cell.Path, cell.Text, compare.NotMeasured)
			}
		case string:
			if strings.ReplaceAll(cell.Text, "\u00a0", " ") != value {
				t.Errorf("%s is %q, want %q", cell.Path, cell.Text, value)
			}
		case float64:
			got, precision := parse(t, cell.Text)
			if math.Abs(got-value) > precision/2+1e-9*math.Abs(value) {
				t.Errorf("%s is %q, want %v", cell.Path, cell.Text, value)
			}
		}
	}
}

// at follows a path such as figures.3.before.
func at(v any, path string) any {
	for key := range strings.SplitSeq(path, ".") {
		switch node := v.(type) {
		case map[string]any:
			v = node[key]
		case []any:
			i, err := strconv.Atoi(key)
			if err != nil || i >= len(node) {
				return nil
			}
			v = node[i]
		default:
			return nil
		}
	}
	return v
}

// parse reads a number as people do, and says what its last digit is worth.
func parse(t *testing.T, text string) (value, precision float64) {
	t.Helper()
	scale := 1.0
	for suffix, factor := range map[string]float64{
		" GiB": 1 << 30, " MiB": 1 << 20, " KiB": 1 << 10, " bytes": 1, " %": 1, " points": 1, " ms": 1000, " µs": 1,
	} {
		if cut, ok := strings.CutSuffix(text, suffix); ok {
			text, scale = cut, factor
			break
		}
	}
	if bound, ok := strings.CutPrefix(text, "< "); ok {
		value, _ = parse(t, bound)
		return value / 2, value
	}
	text = strings.NewReplacer(",", "", "−", "-", "+", "", "× ", "").Replace(text)
	value, err := strconv.ParseFloat(text, 64)
	if err != nil {
		t.Errorf("%q is no number", text)
	}
	_, decimals, _ := strings.Cut(text, ".")
	return value * scale, scale * math.Pow10(-len(decimals))
}

// checkCharts measures what is drawn.
func checkCharts(t *testing.T, tab *tab, present bool) {
	t.Helper()
	var page struct {
		JSON   string
		Charts map[string]int
		Small  []string
		Bars   []struct {
			Path           string
			Width, Of      float64
			Figure         string
			Colour, Ground string
		}
		Lines []struct {
			Series string
			Top    float64
			Points [][2]float64
		}
	}
	tab.eval(`({
		JSON: document.getElementById("comparison").textContent,
		Charts: [...document.querySelectorAll("svg[data-chart]")].reduce((n, e) => (n[e.dataset.chart] = (n[e.dataset.chart] || 0) + 1, n), {}),
		Small: [...document.querySelectorAll("svg[data-chart]")].filter(e => e.getBoundingClientRect().width < 60 || e.getBoundingClientRect().height < 8).map(e => e.outerHTML),
		Bars: [...document.querySelectorAll("[data-bar]")].map(e => ({
			Path: e.dataset.bar, Width: e.getBoundingClientRect().width, Of: e.ownerSVGElement.getBoundingClientRect().width,
			Figure: e.closest("figure").id,
			Colour: getComputedStyle(e).fill, Ground: getComputedStyle(e.ownerSVGElement.querySelector(".empty")).fill,
		})),
		Lines: [...document.querySelectorAll("polyline[data-series]")].map(e => ({
			Series: e.dataset.series, Top: Number(e.ownerSVGElement.dataset.top), Points: [...e.points].map(p => [p.x, p.y]),
		})),
	})`, &page)
	for kind, least := range map[string]int{"course": 2, "share": 2, "bar": 10} {
		if got := page.Charts[kind]; present && got < least || !present && got > 0 {
			t.Errorf("%d charts of kind %s", got, kind)
		}
	}
	if len(page.Small) > 0 {
		t.Errorf("charts that cannot be seen: %v", page.Small)
	}
	if !present {
		return
	}
	var comparison any
	if err := json.Unmarshal([]byte(page.JSON), &comparison); err != nil {
		t.Fatal(err)
	}
	// The longest bar of a figure is the whole, of the shares the longer table.
	whole := map[string]float64{}
	number := func(path string) float64 {
		v, _ := at(comparison, path).(float64)
		return v
	}
	for _, b := range page.Bars {
		whole[b.Figure] = max(whole[b.Figure], number(b.Path))
	}
	for _, side := range []string{"before", "after"} {
		sum := 0.0
		for _, part := range []string{"dns_answered", "dns_unanswered", "dns_reversed", "other"} {
			sum += number(side + ".dns." + part)
		}
		whole["chart-share"] = max(whole["chart-share"], sum)
	}
	if len(page.Bars) < 12 {
		t.Errorf("only %d bars", len(page.Bars))
	}
	for _, b := range page.Bars {
		wide := 0.0
		if of := whole[b.Figure]; of > 0 {
			wide = b.Of * number(b.Path) / of
		}
		if math.Abs(b.Width-wide) > 1 {
			t.Errorf("the bar of %s is %.1f px wide, want %.1f", b.Path, b.Width, wide)
		}
		if b.Colour == b.Ground || b.Colour == "rgb(0, 0, 0)" {
			t.Errorf("the bar of %s has the colour %s on %s", b.Path, b.Colour, b.Ground)
		}
	}
	checkLines(t, comparison, func(yield func(series string, top float64, points [][2]float64)) {
		for _, l := range page.Lines {
			yield(l.Series, l.Top, l.Points)
		}
	})
}

// checkLines compares every point with the samples.
func checkLines(t *testing.T, comparison any, each func(func(series string, top float64, points [][2]float64))) {
	t.Helper()
	n := 0
	each(func(series string, top float64, points [][2]float64) {
		n++
		side, field, _ := strings.Cut(series, ".")
		end := 0.0
		for _, s := range []string{"before", "after"} {
			samples, _ := at(comparison, s+".samples").([]any)
			for _, p := range samples {
				end = max(end, at(p, "seconds").(float64))
			}
		}
		var want [][2]float64
		for _, p := range at(comparison, side+".samples").([]any) {
			if v, ok := at(p, field).(float64); ok {
				want = append(want, [2]float64{1000 * at(p, "seconds").(float64) / end, 300 * (1 - v/top)})
			}
		}
		if len(points) != len(want) || len(want) < 10 {
			t.Errorf("%s has %d points, want %d", series, len(points), len(want))
			return
		}
		for i := range want {
			if math.Abs(points[i][0]-want[i][0]) > .02 || math.Abs(points[i][1]-want[i][1]) > .02 || points[i][1] < -.01 {
				t.Errorf("%s: point %d is at %v, want %v", series, i, points[i], want[i])
			}
		}
	})
	if n < 5 {
		t.Errorf("only %d lines", n)
	}
}

// layoutScript finds text that is too small, too faint or cut off, and what
// sticks out of the window.
const layoutScript = `(() => {
	const rgb = c => c.match(/[\d.]+/g).map(Number);
	const lum = c => { const [r, g, b] = rgb(c).slice(0, 3).map(v => { v /= 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4 }); return .2126 * r + .7152 * g + .0722 * b };
	const ground = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; const v = rgb(c); if (v.length < 4 || v[3] > 0) return c } return "rgb(255, 255, 255)" };
	const contrast = (a, b) => { const [x, y] = [lum(a), lum(b)].sort((p, q) => q - p); return (x + .05) / (y + .05) };
	const out = {Faults: [], Page: lum(ground(document.body)), Wide: document.documentElement.scrollWidth, Inner: innerWidth};
	for (const e of document.body.querySelectorAll("*")) {
		if (e.closest("script, svg, details:not([open]) > :not(summary)")) continue;
		const box = e.getBoundingClientRect();
		if (!box.width || ![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
		const s = getComputedStyle(e), name = e.tagName + "." + e.className + " " + JSON.stringify(e.textContent.slice(0, 40));
		if (parseFloat(s.fontSize) < 12) out.Faults.push("small (" + s.fontSize + "): " + name);
		const c = contrast(s.color, ground(e));
		if (c < 4.5) out.Faults.push("faint (" + c.toFixed(2) + "): " + name);
		if (!e.closest(".scroll") && (box.right > innerWidth + .5 || box.left < -.5)) out.Faults.push("outside: " + name);
		if (e.matches("tbody th") && box.width < 150) out.Faults.push("narrow (" + box.width + "): " + name);
		if (e.scrollWidth > e.clientWidth + 1 && s.display !== "inline") out.Faults.push("cut off: " + name);
	}
	for (const e of document.querySelectorAll(".scroll")) if (e.scrollWidth > e.clientWidth + 1) out.Faults.push("scrolls: " + e.textContent.slice(0, 60));
	return out;
})()`

func checkLayout(t *testing.T, tab *tab, width int, dark bool) {
	t.Helper()
	var layout struct {
		Faults      []string
		Page        float64 // luminance
		Wide, Inner int
	}
	tab.eval(layoutScript, &layout)
	if len(layout.Faults) > 0 {
		t.Errorf("faults of the layout:\n%s", strings.Join(layout.Faults, "\n"))
	}
	if layout.Inner != width || layout.Wide > width {
		t.Errorf("the window is %d px wide and the page %d, want %d", layout.Inner, layout.Wide, width)
	}
	if dark != (layout.Page < .2) {
		t.Errorf("the page's luminance is %.2f, dark %t", layout.Page, dark)
	}
}

func TestPrint(t *testing.T) {
	b := startBrowser(t)
	tab := b.open()
	tab.screen(1280, 900, "dark") // who prints from a dark screen gets black on white
	tab.load(pageFile(t, comparisons(t)["full"]))
	var pdf struct{ Data []byte }
	tab.do("Page.printToPDF", map[string]any{"printBackground": false, "preferCSSPageSize": true}, &pdf)
	if dir := os.Getenv("TRACKLESS_SCREENSHOTS"); dir != "" {
		if err := os.WriteFile(filepath.Join(dir, "print.pdf"), pdf.Data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	pages := strings.Count(string(pdf.Data), "/Type /Page\n") + strings.Count(string(pdf.Data), "/Type /Page /")
	if !strings.HasPrefix(string(pdf.Data), "%PDF") || pages > 6 {
		t.Errorf("%d bytes, %d pages", len(pdf.Data), pages)
	}
	tab.do("Emulation.setEmulatedMedia", map[string]any{"media": "print", "features": []map[string]string{{"name": "prefers-color-scheme", "value": "dark"}}}, nil)
	tab.screenshot("print")
	checkLayout(t, tab, 1280, false)
	var hidden bool
	tab.eval(`[...document.querySelectorAll("details")].every(e => getComputedStyle(e).display === "none")`, &hidden)
	if !hidden {
		t.Error("what is folded is printed")
	}
	if list := tab.complaints(); len(list) > 0 {
		t.Errorf("the browser complains:\n%s", strings.Join(list, "\n"))
	}
}
