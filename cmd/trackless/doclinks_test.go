package main

import (
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode"
)

// docPage is a markdown file of the tree: its text without code, which is where
// headings and links are, and the anchors that GitHub gives its headings.
type docPage struct {
	text    string
	anchors map[string]bool
}

// readPages reads all markdown files of the tree but the test data, by their
// paths below its root.
func readPages(t *testing.T) map[string]docPage {
	t.Helper()
	root := os.DirFS("../..")
	pages := map[string]docPage{}
	err := fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && name != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "bin"):
			return fs.SkipDir
		case d.IsDir() || path.Ext(name) != ".md":
			return nil
		}
		b, err := fs.ReadFile(root, name)
		pages[name] = parsePage(string(b))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return pages
}

var (
	codeSpan = regexp.MustCompile("`[^`\n]*`")
	docLink  = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading  = regexp.MustCompile(`(?m)^#{1,6} (.+)$`)
)

func parsePage(text string) docPage {
	p := docPage{text: withoutCodeBlocks(text), anchors: map[string]bool{}}
	for _, m := range heading.FindAllStringSubmatch(p.text, -1) {
		p.anchors[anchor(m[1])] = true
	}
	p.text = codeSpan.ReplaceAllString(p.text, "")
	return p
}

// withoutCodeBlocks takes out what stands between fences.
func withoutCodeBlocks(text string) string {
	var out strings.Builder
	fence := ""
	for line := range strings.Lines(text) {
		trimmed := strings.TrimSpace(line)
		switch {
		case fence == "" && (strings.HasPrefix(trimmed, "~~~") || strings.HasPrefix(trimmed, "```")):
			fence = trimmed[:3]
		case fence != "" && strings.HasPrefix(trimmed, fence):
			fence = ""
		case fence == "":
			out.WriteString(line)
		}
	}
	return out.String()
}

// anchor is what GitHub makes of a heading: lower case, without punctuation,
// with a hyphen for each space.
func anchor(heading string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == ' ':
			return '-'
		case r == '-' || r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r):
			return unicode.ToLower(r)
		}
		return -1
	}, strings.TrimSpace(docLink.ReplaceAllString(heading, "]")))
}

// blob is where the tree is read on the web. Pages that are read elsewhere, as
// the chart's, link there.
const blob = "https://github.com/trackless-dns/trackless/blob/main/"

// brokenLinks lists the links of a page to files or anchors that are not there.
func brokenLinks(pages map[string]docPage, name string, exists func(string) bool) []string {
	var broken []string
	for _, m := range docLink.FindAllStringSubmatch(pages[name].text, -1) {
		target, fragment, _ := strings.Cut(m[1], "#")
		file, ours := strings.CutPrefix(target, blob)
		switch {
		case ours:
		case strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:"):
			continue
		case target == "":
			file = name
		default:
			file = path.Join(path.Dir(name), target)
		}
		linked, isPage := pages[file]
		switch {
		case !isPage && !exists(file):
			broken = append(broken, m[1]+": no such file")
		case fragment != "" && !linked.anchors[fragment]:
			broken = append(broken, m[1]+": no such heading")
		}
	}
	return broken
}

// A link in a page leads to a file of the tree, and to a heading that is there.
func TestDocLinks(t *testing.T) {
	pages := readPages(t)
	for name := range pages {
		for _, b := range brokenLinks(pages, name, func(file string) bool {
			_, err := os.Stat(filepath.Join("../..", file))
			return err == nil
		}) {
			t.Errorf("%s: %s", name, b)
		}
	}
}

func TestBrokenLinks(t *testing.T) {
	const other = "# A page\n\n## Names and `answers`, 2\n\n~~~ sh\n# no heading\n~~~\n"
	for _, tt := range []struct{ name, link, broken string }{
		{"file", "(other.md)", ""},
		{"file in a folder above", "(../docs/other.md)", ""},
		{"heading", "(other.md#names-and-answers-2)", ""},
		{"heading of the same page", "(#here)", ""},
		{"elsewhere", "(https://example.com/x#y)", ""},
		{"on the web", "(" + blob + "docs/other.md#names-and-answers-2)", ""},
		{"no file on the web", "(" + blob + "gone.md)", blob + "gone.md: no such file"},
		{"no file", "(gone.md)", "gone.md: no such file"},
		{"no heading", "(other.md#gone)", "other.md#gone: no such heading"},
		{"no heading in the same page", "(#gone)", "#gone: no such heading"},
		{"comment of a shell", "(other.md#no-heading)", "other.md#no-heading: no such heading"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			pages := map[string]docPage{
				"docs/other.md": parsePage(other),
				"docs/this.md":  parsePage("# Here\n\nSee [x]" + tt.link + ", and `[y](never.md)`.\n"),
			}
			got := strings.Join(brokenLinks(pages, "docs/this.md", func(string) bool { return false }), "\n")
			if got != tt.broken {
				t.Errorf("broken: %q, want %q", got, tt.broken)
			}
		})
	}
}

// Every page for operators is found from the index, runbooks from their own.
func TestDocIndex(t *testing.T) {
	const index = "docs/README.md"
	pages := readPages(t)
	linked := map[string]bool{index: true}
	for _, m := range docLink.FindAllStringSubmatch(pages[index].text, -1) {
		target, _, _ := strings.Cut(m[1], "#")
		linked[path.Join("docs", target)] = true
	}
	found := 0
	for name := range pages {
		if !strings.HasPrefix(name, "docs/") || strings.HasPrefix(name, "docs/runbooks/") {
			continue
		}
		found++
		if !linked[name] {
			t.Errorf("%s has no link to %s", index, name)
		}
	}
	if found < 20 {
		t.Errorf("only %d pages", found)
	}
	if !linked["docs/runbooks/README.md"] {
		t.Errorf("%s has no link to the runbooks", index)
	}
}
