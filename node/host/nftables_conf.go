package host

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/trackless-dns/trackless/node/advice"
)

// nftablesFiles are the rulesets that distributions load at boot, and when their
// service is reloaded.
var nftablesFiles = []string{"/etc/nftables.conf", "/etc/sysconfig/nftables.conf", "/etc/nftables.nft"}

// includeDepth is how deep nft follows files that include others
// (MAX_INCLUDE_DEPTH in its include/parser.h).
const includeDepth = 16

// SavedTables finds statements about tables of family inet whose name begins
// with prefix in the rulesets that are loaded at boot, and in the files that
// these include. Files that are not there, or not for us to read, are left out.
func SavedTables(root, prefix string) []advice.SavedTable {
	s := savedSearch{
		root:  root,
		seen:  map[string]bool{},
		table: regexp.MustCompile(`\binet\s+"?(` + regexp.QuoteMeta(prefix) + `[^\s"{};]+)`),
	}
	for _, path := range nftablesFiles {
		s.file(path, includeDepth)
	}
	return s.found
}

type savedSearch struct {
	root  string
	seen  map[string]bool
	table *regexp.Regexp
	found []advice.SavedTable
}

var include = regexp.MustCompile(`^include\s+["']([^"']+)["']`)

// file reads a file, and the files that it includes; of several statements
// about a table the first is named.
func (s *savedSearch) file(path string, depth int) {
	if depth == 0 || s.seen[path] {
		return
	}
	s.seen[path] = true
	b, err := os.ReadFile(filepath.Join(s.root, path))
	if err != nil {
		return
	}
	number := 0
	for line := range bytes.Lines(b) {
		number++
		text, _, _ := strings.Cut(strings.TrimSpace(string(line)), "#")
		if m := include.FindStringSubmatch(text); m != nil {
			for _, included := range s.included(m[1]) {
				s.file(included, depth-1)
			}
			continue
		}
		m := s.table.FindStringSubmatch(text)
		if m != nil && !slices.ContainsFunc(s.found, func(t advice.SavedTable) bool { return t.Path == path && t.Table == m[1] }) {
			s.found = append(s.found, advice.SavedTable{Path: path, Line: number, Table: m[1]})
		}
	}
}

// included resolves the argument of include: below /etc unless it begins with a
// slash, with wildcards.
func (s *savedSearch) included(pattern string) []string {
	if !strings.HasPrefix(pattern, "/") {
		pattern = filepath.Join("/etc", pattern)
	}
	paths, _ := filepath.Glob(filepath.Join(s.root, pattern))
	for i := range paths {
		if rel, err := filepath.Rel(s.root, paths[i]); err == nil {
			paths[i] = "/" + rel
		}
	}
	return paths
}
