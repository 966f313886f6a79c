// Command typecheck finds what does not compile in a module whose
// dependencies nobody wants to compile. Kubernetes takes two cores ten minutes,
// and go vet and linters ask for compiled dependencies.
//
//	typecheck DIRECTORY...
//
// reads each module's packages and everything that they import from source, as
// a compiler does, but of what they import only the declarations.
package main

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/tools/go/packages"
)

func main() {
	failed := false
	for _, directory := range os.Args[1:] {
		if err := check(directory); err != nil {
			fmt.Fprintf(os.Stderr, "typecheck %s: %v\n", directory, err)
			failed = true
		}
	}
	if failed {
		os.Exit(1)
	}
}

// check returns the errors in the module's own packages, tests included, as
// the compiler words them. Errors in dependencies are not looked for.
func check(directory string) error {
	directory, err := filepath.Abs(directory)
	if err != nil {
		return err
	}
	own, err := packages.Load(&packages.Config{
		Mode: packages.NeedName | packages.NeedFiles | packages.NeedCompiledGoFiles | packages.NeedImports |
			packages.NeedDeps | packages.NeedTypes | packages.NeedTypesInfo | packages.NeedSyntax | packages.NeedTypesSizes,
		Dir:   directory,
		Env:   append(os.Environ(), "CGO_ENABLED=0"), // cgo would run a C compiler on dependencies
		Tests: true,
		ParseFile: func(files *token.FileSet, name string, source []byte) (*ast.File, error) {
			file, err := parser.ParseFile(files, name, source, parser.SkipObjectResolution|parser.AllErrors)
			if file != nil && !strings.HasPrefix(name, directory+string(filepath.Separator)) {
				withoutBodies(file)
			}
			return file, err
		},
	}, "./...")
	if err != nil {
		return err
	}
	if len(own) == 0 {
		return errors.New("no packages")
	}
	var errs []error
	for _, p := range own {
		for _, e := range p.Errors {
			errs = append(errs, e)
		}
	}
	return errors.Join(errs...)
}

// withoutBodies leaves of functions what their callers see.
func withoutBodies(file *ast.File) {
	for _, declaration := range file.Decls {
		if function, ok := declaration.(*ast.FuncDecl); ok {
			function.Body = nil
		}
	}
}
