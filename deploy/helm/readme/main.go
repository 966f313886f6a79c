// Command readme writes the tables of values in the chart's README, from the
// comments in values.yaml and the types in values.schema.json. `make chart` runs it
// at the top of the repository; a test here fails when it was forgotten.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
)

func main() {
	root := flag.String("C", ".", "the top `directory` of the repository")
	flag.Parse()
	if err := run(*root); err != nil {
		fmt.Fprintf(os.Stderr, "readme: %v\n", err)
		os.Exit(1)
	}
}

// Paths from the top of the repository.
const (
	valuesFile = "deploy/helm/trackless/values.yaml"
	schemaFile = "deploy/helm/trackless/values.schema.json"
	readmeFile = "deploy/helm/trackless/README.md"
)

func run(root string) error {
	page, err := generate(root)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(root, readmeFile), page, 0o644)
}

// generate returns the README with tables that are current.
func generate(root string) ([]byte, error) {
	var files [3][]byte
	for i, name := range []string{valuesFile, schemaFile, readmeFile} {
		var err error
		if files[i], err = os.ReadFile(filepath.Join(root, name)); err != nil {
			return nil, err
		}
	}
	sections, err := parseValues(files[0], files[1])
	if err != nil {
		return nil, err
	}
	return insert(files[2], tables(sections))
}

// Between these lines the README is generated.
const (
	begin = "<!-- Made of values.yaml and values.schema.json by `make chart`. -->\n"
	end   = "<!-- End of what is made. -->\n"
)

func insert(page, made []byte) ([]byte, error) {
	head, rest, ok := bytes.Cut(page, []byte(begin))
	_, tail, ok2 := bytes.Cut(rest, []byte(end))
	if !ok || !ok2 {
		return nil, fmt.Errorf("%s has no line %q with %q after it: the tables go between them", readmeFile, begin, end)
	}
	return bytes.Join([][]byte{head, []byte(begin), made, []byte(end), tail}, nil), nil
}
