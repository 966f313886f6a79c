package houserules

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/build"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/trackless-dns/trackless/internal/module"
)

// Limits in lines, comments included, of what is no test.
const (
	maxPackage  = 2500
	maxFile     = 500
	maxFunction = 80
)

// exceptions break a limit today. Each line is a breach as the test writes it,
// without its number. One that is no longer needed fails the test.
var exceptions []string

// forTests are packages outside of test/ that only tests use. They may import
// testing; no program may contain them.
var forTests = []string{
	"internal/houserules",
	"internal/module",
	"internal/nodestate",
	"internal/testcert",
	"internal/testcgroup",
	"internal/testgolden",
	"internal/testlog",
	"internal/testns",
	"internal/testport",
	"internal/testprogram",
	"internal/testwait",
	"iptables/internal/tracetest",
	"iptables/reconcile/reconciletest",
	"lab/clients",
	"lab/labtest",
	"node/nodetest",
}

// privilegedPackages are packages whose every function needs root, as those of
// testns do but for the unprivileged ones.
var (
	privilegedPackages = []string{"labtest", "nodestate", "testcgroup"}
	unprivileged       = []string{"testns.Main", "testns.StrayThreads", "testns.RequireVar"}
)

const (
	modulePath = "github.com/trackless-dns/trackless/"
	program    = "cmd/trackless"
)

// A tree is the Go source of the module, by folder.
type tree map[string]*room

// A room is one folder. Its imports are those of what is no test and is built
// without tags.
type room struct {
	lines   int
	isMain  bool
	imports []string // of this module as folders, others as they are
}

// A breach is a limit that something does not keep.
type breach struct{ what, number string }

func TestTheHouseKeepsItsRules(t *testing.T) {
	root, err := module.Root()
	if err != nil {
		t.Fatal(err)
	}
	h, breaches, err := read(root)
	if err != nil {
		t.Fatal(err)
	}
	breaches = append(breaches, h.uses()...)
	var found []string
	for _, b := range breaches {
		found = append(found, b.what)
		if !slices.Contains(exceptions, b.what) {
			t.Errorf("%s: %s", b.what, b.number)
		}
	}
	for _, exception := range exceptions {
		if !slices.Contains(found, exception) {
			t.Errorf("the exception %q is no longer needed: delete it", exception)
		}
	}
}

// read reads all Go files below root, those of other modules too, and returns what
// is too long.
func read(root string) (tree, []breach, error) {
	h := tree{}
	var breaches []breach
	err := filepath.WalkDir(root, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, name)
		if entry.IsDir() {
			if rel != "." && (strings.HasPrefix(entry.Name(), ".") || entry.Name() == "testdata" || rel == "bin") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		files := token.NewFileSet()
		file, err := parser.ParseFile(files, name, text, parser.SkipObjectResolution|parser.ParseComments)
		if err != nil {
			return err
		}
		if ast.IsGenerated(file) {
			return nil
		}
		built, err := build.Default.MatchFile(filepath.Dir(name), entry.Name())
		if err != nil {
			return err
		}
		if strings.HasSuffix(name, "_test.go") {
			if used := privilegedUse(file); built && used != "" {
				breaches = append(breaches, breach{"untagged " + rel, used + " needs root: put the test behind the tag privileged"})
			}
			return nil
		}
		lines := bytes.Count(text, []byte("\n"))
		h.add(path.Dir(rel), file, lines, built)
		breaches = append(breaches, tooLong(files, file, rel, lines)...)
		return nil
	})
	for _, folder := range slices.Sorted(maps.Keys(h)) {
		if n := h[folder].lines; n > maxPackage {
			breaches = append(breaches, breach{"package " + folder, fmt.Sprintf("%d lines, at most %d", n, maxPackage)})
		}
	}
	return h, breaches, err
}

// privilegedUse names something that a test file uses and that needs root, or is
// empty.
func privilegedUse(file *ast.File) (used string) {
	ast.Inspect(file, func(n ast.Node) bool {
		selector, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		folder, ok := selector.X.(*ast.Ident)
		if !ok {
			return true
		}
		name := folder.Name + "." + selector.Sel.Name
		switch {
		case slices.Contains(privilegedPackages, folder.Name), folder.Name == "testns" && !slices.Contains(unprivileged, name):
			used = name
		}
		return true
	})
	return used
}

// tooLong is what is too long in one file, the file itself included.
func tooLong(files *token.FileSet, file *ast.File, rel string, lines int) (breaches []breach) {
	if lines > maxFile {
		breaches = append(breaches, breach{"file " + rel, fmt.Sprintf("%d lines, at most %d", lines, maxFile)})
	}
	for _, declaration := range file.Decls {
		function, ok := declaration.(*ast.FuncDecl)
		if !ok {
			continue
		}
		n := files.Position(function.End()).Line - files.Position(function.Pos()).Line + 1
		if n > maxFunction {
			breaches = append(breaches, breach{"function " + rel + " " + function.Name.Name, fmt.Sprintf("%d lines, at most %d", n, maxFunction)})
		}
	}
	return breaches
}

// add adds a file to its folder.
func (h tree) add(folder string, file *ast.File, lines int, built bool) {
	r := h[folder]
	if r == nil {
		r = &room{}
		h[folder] = r
	}
	r.lines += lines
	if !built {
		return
	}
	r.isMain = r.isMain || file.Name.Name == "main"
	for _, spec := range file.Imports {
		imported, _ := strconv.Unquote(spec.Path.Value)
		r.imports = append(r.imports, strings.TrimPrefix(imported, modulePath))
	}
}

// closure is what the folders contain when they are built.
func (h tree) closure(folders ...string) map[string]bool {
	contained := map[string]bool{}
	for len(folders) > 0 {
		folder := folders[0]
		folders = folders[1:]
		r := h[folder]
		if r == nil || contained[folder] {
			continue
		}
		contained[folder] = true
		folders = append(folders, r.imports...)
	}
	return contained
}

// uses is what stands in the product and only tests need, and what stands in no
// program although nobody says that it is for tests.
func (h tree) uses() (breaches []breach) {
	var programs []string
	for _, folder := range slices.Sorted(maps.Keys(h)) {
		if h[folder].isMain && !inTest(folder) {
			programs = append(programs, folder)
		}
	}
	product := h.closure(programs...)
	for _, folder := range slices.Sorted(maps.Keys(h)) {
		isForTests := slices.Contains(forTests, folder)
		switch {
		case product[folder] && (isForTests || inTest(folder)):
			breaches = append(breaches, breach{"import " + folder, "a program contains it, and it is for tests"})
		case product[folder] && slices.Contains(h[folder].imports, "testing"):
			breaches = append(breaches, breach{"testing " + folder, "it imports testing, and a program contains it"})
		case !product[folder] && !isForTests && !inTest(folder):
			breaches = append(breaches, breach{"unused " + folder, "no program contains it: list it in forTests if only tests use it"})
		}
	}
	for _, folder := range forTests {
		if h[folder] == nil {
			breaches = append(breaches, breach{"missing " + folder, "it is in forTests, and there is no such package"})
		}
	}
	if !product[program] {
		breaches = append(breaches, breach{"missing " + program, "the program was not found"})
	}
	return breaches
}

func inTest(folder string) bool { return folder == "test" || strings.HasPrefix(folder, "test/") }

// TestBreachesAreFound has each rule broken once.
func TestBreachesAreFound(t *testing.T) {
	root := t.TempDir()
	for name, text := range map[string]string{
		"cmd/trackless/main.go": "package main\n\nimport (\n\t_ \"github.com/trackless-dns/trackless/lab/labtest\"\n\t_ \"testing\"\n)\n",
		"lab/labtest/a.go":      "package labtest\n",
		"lab/labtest/a_test.go": "package labtest\n" + strings.Repeat("\n", maxPackage),
		"quick/a_test.go":       "package quick\n\nvar _ = testns.Enter\n\nvar _ = testns.Main\n",
		"quick/b_test.go":       "//go:build privileged\n\npackage quick\n\nvar _ = testns.Enter\n",
		"quick/c_test.go":       "package quick\n\nvar _ = testns.Main\n",
		"long/file.go":          "package long\n" + strings.Repeat("\n", maxFile),
		"long/generated.go":     "// Code generated by a program. DO NOT EDIT.\n\npackage long\n" + strings.Repeat("\n", maxPackage),
		"long/testdata/a.go":    "package a\n" + strings.Repeat("\n", maxPackage),
		"test/far/a.go":         "package far\n\nfunc f() {" + strings.Repeat("\n", maxFunction) + "}\n",
	} {
		if err := os.MkdirAll(filepath.Join(root, path.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for i := range maxPackage / maxFile {
		if err := os.WriteFile(filepath.Join(root, "long", fmt.Sprintf("more%d.go", i)), []byte("package long\n"+strings.Repeat("\n", maxFile-1)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	h, breaches, err := read(root)
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, b := range append(breaches, h.uses()...) {
		if !strings.HasPrefix(b.what, "missing ") {
			found = append(found, b.what)
		}
	}
	want := []string{
		"file long/file.go", "function test/far/a.go f", "import lab/labtest", "package long", "testing cmd/trackless", "untagged quick/a_test.go", "unused long",
	}
	if slices.Sort(found); !slices.Equal(found, want) {
		t.Errorf("found %q, want %q", found, want)
	}
}
