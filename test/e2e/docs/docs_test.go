package docs

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const root = "../../.."

// languages are those that blocks may have. Commands are in none but sh.
var languages = []string{"sh", "corefile", "diff", "json", "txt", "yaml"}

var (
	// A line of a block by indentation that begins with a program.
	indented = regexp.MustCompile(`^    (?:sudo )?(kubectl|helm|ctr|trackless|docker) `)
	// A command within a sentence, as opposed to the mention of one.
	inline = regexp.MustCompile("`(?:kubectl|helm)(?: [^` ]+){4,}`")
	// What a reader would have to replace.
	placeholder = regexp.MustCompile(`\b(REGISTRY|VERSION|IMAGE|POD|NODE|NAME|YOUR\w*)\b|<[a-z-]+>`)
	imageName   = regexp.MustCompile(`[a-z0-9./-]*trackless-dns/trackless:[^\s"'` + "`" + `]+`)
	reference   = regexp.MustCompile(`\?ref=([^\s"'\]]+)`)
)

// TestPages holds every page to commands that package e2e can run as they
// stand.
func TestPages(t *testing.T) {
	pages, err := Pages(root)
	if err != nil {
		t.Fatal(err)
	}
	image, err := Image(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range pages {
		blocks, err := Read(root, page)
		if err != nil {
			t.Error(err)
			continue
		}
		for _, b := range blocks {
			if !slices.Contains(languages, b.Language) {
				t.Errorf("%s: language %q; want one of %v", b, b.Language, languages)
			}
			if b.State != "" && States[b.State] == "" {
				t.Errorf("%s: run on %q, which is not in States", b, b.State)
			}
			if p := placeholder.FindString(b.Text); p != "" && b.Shell() && b.NotRun == "" {
				t.Errorf("%s: a reader has to replace %s; let a command find it", b, p)
			}
		}
		text, err := os.ReadFile(filepath.Join(root, page))
		if err != nil {
			t.Fatal(err)
		}
		for i, line := range strings.Split(outside(string(text)), "\n") {
			if indented.MatchString(line) {
				t.Errorf("%s:%d: commands are in a block ~~~ sh: %s", page, i+1, strings.TrimSpace(line))
			}
			if m := inline.FindString(line); m != "" {
				t.Errorf("%s:%d: a command to be typed is in a block ~~~ sh: %s", page, i+1, m)
			}
		}
		for _, name := range imageName.FindAllString(string(text), -1) {
			if name != image {
				t.Errorf("%s names the image %s; the released one is %s", page, name, image)
			}
		}
		for _, m := range reference.FindAllStringSubmatch(string(text), -1) {
			if _, version, _ := strings.Cut(image, ":"); m[1] != "v"+version {
				t.Errorf("%s takes files of %s; the released version is v%s", page, m[1], version)
			}
		}
	}
}

// outside empties the lines in fenced blocks.
func outside(text string) string {
	var out []string
	in := false
	for line := range strings.SplitSeq(text, "\n") {
		if fence.MatchString(line) {
			in = !in
			line = ""
		}
		if in {
			line = ""
		}
		out = append(out, line)
	}
	return strings.Join(out, "\n")
}

// TestSessions says that each block of commands is run or says why not.
func TestSessions(t *testing.T) {
	sessions, err := Sessions(root)
	if err != nil {
		t.Fatal(err)
	}
	run := map[string]bool{}
	used := map[string]bool{}
	for _, s := range sessions {
		for _, r := range s.Runs {
			used[r.State] = true
			for _, b := range r.Blocks {
				run[b.String()] = true
			}
		}
	}
	pages, err := Pages(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range pages {
		blocks, err := Read(root, page)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range blocks {
			if b.Shell() && b.NotRun == "" && !run[b.String()] {
				t.Errorf("%s: in no session, and no comment says why it is not run", b)
			}
		}
	}
	for state := range States {
		if !used[state] {
			t.Errorf("no block begins on %q", state)
		}
	}
}

func TestParse(t *testing.T) {
	for _, tc := range []struct {
		name, text string
		want       []Block
		err        string
	}{
		{"with a state, in a list", "# A\n1. Do\n\n   <!-- run on: chart -->\n   ~~~ sh\n   helm list\n     x\n   ~~~\n",
			[]Block{{Page: "p", Line: 5, Section: "A", Language: "sh", State: "chart", Text: "helm list\n  x\n"}}, ""},
		{"goes on", "~~~ sh\na\n~~~\n\n## B\n\n```sh\nb # not a heading\n# nor this\n```\n",
			[]Block{{Page: "p", Line: 1, Language: "sh", Text: "a\n"}, {Page: "p", Line: 7, Section: "B", Language: "sh", Text: "b # not a heading\n# nor this\n"}}, ""},
		{"not run", "<!-- not run: no systemd -->\n\n~~~ sh\nx\n~~~",
			[]Block{{Page: "p", Line: 3, Language: "sh", NotRun: "no systemd", Text: "x\n"}}, ""},
		{"endless", "<!-- run until interrupted -->\n~~~ sh\nx\n~~~",
			[]Block{{Page: "p", Line: 2, Language: "sh", Endless: true, Text: "x\n"}}, ""},
		{"may fail", "<!-- run, may fail: no is an answer -->\n~~~ sh\nx\n~~~",
			[]Block{{Page: "p", Line: 2, Language: "sh", MayFail: "no is an answer", Text: "x\n"}}, ""},
		{"no reason", "<!-- not run: -->\n~~~ sh\nx\n~~~", nil, "p:1: "},
		{"no block", "<!-- not run: x -->\nText\n~~~ sh\nx\n~~~", nil, "no block follows"},
		{"open", "~~~ sh\nx\n", nil, "not closed"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := parse("p", tc.text)
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Fatalf("got %v, want an error with %q", err, tc.err)
				}
				return
			}
			if err != nil || !reflect.DeepEqual(got, tc.want) {
				t.Errorf("got %+v, %v\nwant %+v", got, err, tc.want)
			}
		})
	}
}
