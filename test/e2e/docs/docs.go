// Package docs takes the project's pages apart into the commands that a reader
// types. Package e2e runs them on a cluster, in the order of the page.
//
// A comment in front of a block of shell commands says what there is when the
// block begins; without one the block goes on where the one above it ended:
//
//	<!-- run on: STATE -->        one of States
//	<!-- run until interrupted --> it ends with Ctrl-C
//	<!-- run, may fail: REASON --> exit status 1 is an answer too
//	<!-- not run: REASON -->
package docs

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// States are what blocks begin on, and what each means.
var States = map[string]string{
	"cluster":                             "Kubernetes with kube-dns, and nothing of Trackless",
	"cluster with Prometheus operator":    "its kinds are known, and there is a namespace monitoring",
	"kustomize":                           "installed as docs/install.md does with kustomize",
	"kustomize, changed":                  "the same, rolled out a second time",
	"chart":                               "installed as docs/install.md does with the chart",
	"chart, changed":                      "the same, with another value since",
	"chart, uninstalled from link-local":  "uninstalled after mode both: the failover table stays",
	"NodeLocal DNSCache":                  "Kubernetes' nodelocaldns.yaml",
	"NodeLocal DNSCache, our image":       "the same, with the image changed as docs/migrate.md does",
	"NodeLocal DNSCache, second instance": "kubespray's nodelocaldns-second with its hook, and our image",
	"release folder":                      "the folder of `make release` is the current one, and nodes have its image, as from the registry",
	"host":                                "a host without Kubernetes",
	"host with Trackless":                 "the same, as docs/install.md sets it up",
}

// Block is a fenced block of a page.
type Block struct {
	Page     string // seen from the top of the tree, such as docs/install.md
	Line     int    // of its first fence
	Section  string // the heading above it
	Language string
	Text     string // without the indentation of a list

	State   string // in which it begins, or "" where the block above it ended
	NotRun  string // why it cannot be run
	MayFail string // why exit status 1 is as good as 0
	Endless bool   // ends by Ctrl-C only
}

func (b Block) String() string { return fmt.Sprintf("%s:%d", b.Page, b.Line) }

// Shell says whether a reader types it.
func (b Block) Shell() bool { return b.Language == "sh" }

// Session is what a reader does in one shell: a page, or the pages of a folder
// whose README.md begins it.
type Session struct {
	Name string
	Runs []Run
}

// Run begins in a state, and its blocks go on from there.
type Run struct {
	State  string
	Blocks []Block
}

// Pages are the pages with commands, seen from the top of the tree.
func Pages(root string) ([]string, error) {
	pages := []string{"README.md"}
	err := filepath.WalkDir(filepath.Join(root, "docs"), func(name string, _ fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(name) != ".md" {
			return err
		}
		page, err := filepath.Rel(root, name)
		pages = append(pages, filepath.ToSlash(page))
		return err
	})
	return pages, err
}

// Sessions are the sessions of all pages.
func Sessions(root string) ([]Session, error) {
	pages, err := Pages(root)
	if err != nil {
		return nil, err
	}
	// A folder's README.md comes before its other pages.
	slices.SortStableFunc(pages, func(a, b string) int {
		if d := strings.Compare(path.Dir(a), path.Dir(b)); d != 0 {
			return d
		}
		return first(path.Base(b) == "README.md") - first(path.Base(a) == "README.md")
	})
	var sessions []Session
	for _, page := range pages {
		blocks, err := Read(root, page)
		if err != nil {
			return nil, err
		}
		name := page
		if dir := path.Dir(page); dir != "." && slices.Contains(pages, dir+"/README.md") {
			name = dir
		}
		if len(sessions) == 0 || sessions[len(sessions)-1].Name != name {
			sessions = append(sessions, Session{Name: name})
		}
		s := &sessions[len(sessions)-1]
		for _, b := range blocks {
			switch {
			case !b.Shell() || b.NotRun != "":
				continue
			case b.State != "":
				s.Runs = append(s.Runs, Run{State: b.State})
			case len(s.Runs) == 0:
				return nil, fmt.Errorf("%s: it is the first block of %s, and no comment says on what it is run", b, name)
			}
			r := &s.Runs[len(s.Runs)-1]
			r.Blocks = append(r.Blocks, b)
		}
	}
	return slices.DeleteFunc(sessions, func(s Session) bool { return len(s.Runs) == 0 }), nil
}

func first(is bool) int {
	if is {
		return 1
	}
	return 0
}

// Read takes a page apart.
func Read(root, page string) ([]Block, error) {
	b, err := os.ReadFile(filepath.Join(root, page))
	if err != nil {
		return nil, err
	}
	return parse(page, string(b))
}

var (
	heading = regexp.MustCompile(`^#+ +(.+)$`)
	fence   = regexp.MustCompile("^( *)(~~~+|```+) *([^ ]*)$")
	comment = regexp.MustCompile(`^ *<!-- *(run on|run until interrupted|run, may fail|not run)(?:: *(.*?))? *-->$`)
)

func parse(page, text string) ([]Block, error) {
	var (
		blocks  []Block
		section string
		pending *Block // the comment above
		open    *Block
		indent  string
		closing string
	)
	for i, line := range strings.Split(text, "\n") {
		if open != nil {
			if strings.TrimSpace(line) == closing {
				blocks = append(blocks, *open)
				open = nil
				continue
			}
			open.Text += strings.TrimPrefix(line, indent) + "\n"
			continue
		}
		if m := heading.FindStringSubmatch(line); m != nil {
			section = m[1]
		}
		if m := comment.FindStringSubmatch(line); m != nil {
			pending = &Block{Line: i + 1, Endless: m[1] == "run until interrupted"}
			switch m[1] {
			case "run on":
				pending.State = m[2]
			case "not run":
				pending.NotRun = m[2]
			case "run, may fail":
				pending.MayFail = m[2]
			}
			if (m[2] == "") != pending.Endless {
				return nil, fmt.Errorf("%s:%d: %q: a state or a reason is missing, or one too many", page, i+1, line)
			}
			continue
		}
		if m := fence.FindStringSubmatch(line); m != nil {
			open = &Block{}
			if pending != nil {
				open, pending = pending, nil
			}
			open.Page, open.Line, open.Section, open.Language = page, i+1, section, m[3]
			indent, closing = m[1], m[2]
			continue
		}
		if pending != nil && strings.TrimSpace(line) != "" {
			return nil, fmt.Errorf("%s:%d: no block follows the comment", page, pending.Line)
		}
	}
	if open != nil {
		return nil, fmt.Errorf("%s: the block is not closed", open)
	}
	return blocks, nil
}

// Repository is where the released image is pulled from.
const Repository = "ghcr.io/trackless-dns/trackless"

var appVersion = regexp.MustCompile(`(?m)^appVersion: *"?([^"\s]+)`)

// Image is the released image, which the pages name.
func Image(root string) (string, error) {
	file := filepath.Join(root, "deploy/helm/trackless/Chart.yaml")
	b, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	m := appVersion.FindSubmatch(b)
	if m == nil {
		return "", fmt.Errorf("%s: no appVersion", file)
	}
	return Repository + ":" + string(m[1]), nil
}
