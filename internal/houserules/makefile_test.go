package houserules

import (
	"bufio"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/trackless-dns/trackless/internal/module"
)

// The lab runs nothing but the program, so its target installs no other
// programs on the reader's machine.
func TestLabInstallsNothing(t *testing.T) {
	needs := prerequisites(t, "lab")
	if !slices.Contains(needs, "build") || slices.Contains(needs, "deps") {
		t.Errorf("make lab needs %v, want build and no deps", needs)
	}
}

// prerequisites are the targets that make builds before a target.
func prerequisites(t *testing.T, target string) (needs []string) {
	t.Helper()
	root, err := module.Root()
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(filepath.Join(root, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for todo, rules := []string{target}, rulesOf(t, file); len(todo) > 0; todo = todo[1:] {
		for _, next := range rules[todo[0]] {
			if !slices.Contains(needs, next) {
				needs, todo = append(needs, next), append(todo, next)
			}
		}
	}
	return needs
}

func rulesOf(t *testing.T, file *os.File) map[string][]string {
	t.Helper()
	rules := map[string][]string{}
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		line, _, _ := strings.Cut(lines.Text(), "##")
		name, needs, ok := strings.Cut(line, ":")
		if ok && !strings.ContainsAny(line, "\t=#") {
			rules[name] = append(rules[name], strings.Fields(needs)...)
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return rules
}
