package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// A section is a table.
type section struct {
	title string
	rows  []row
}

// A row is a value that can be set.
type row struct {
	path     string
	kind     string // its type, or the words that it can be
	standard string // its default, as JSON
	about    string
}

// schema is the part of a JSON schema that is used here.
type schema struct {
	Ref                  string             `json:"$ref"`
	Type                 any                `json:"type"`
	Enum                 []any              `json:"enum"`
	AnyOf                []*schema          `json:"anyOf"`
	Properties           map[string]*schema `json:"properties"`
	AdditionalProperties any                `json:"additionalProperties"`
	Items                *schema            `json:"items"`
	Definitions          map[string]*schema `json:"definitions"`
}

// parseValues reads every value of the chart with its comment, default and type.
// A value without a comment, or without a type, is an error, and so is a type
// without a value.
func parseValues(values, types []byte) ([]section, error) {
	root := new(schema)
	if err := json.Unmarshal(types, root); err != nil {
		return nil, fmt.Errorf("%s: %w", schemaFile, err)
	}
	var document yaml.Node
	if err := yaml.Unmarshal(values, &document); err != nil {
		return nil, fmt.Errorf("%s: %w", valuesFile, err)
	}
	p := parser{lines: strings.Split(string(values), "\n"), root: root}
	p.object(document.Content[0], root, "")
	return p.sections, errors.Join(p.errs...)
}

type parser struct {
	lines    []string
	root     *schema
	sections []section
	errs     []error
}

func (p *parser) fail(format string, args ...any) {
	p.errs = append(p.errs, fmt.Errorf(format, args...))
}

// object adds the values of a mapping.
func (p *parser) object(node *yaml.Node, s *schema, path string) {
	if s.AdditionalProperties != false {
		p.fail("%s: %q takes properties that it does not name: additionalProperties is not false", schemaFile, path)
	}
	seen := map[string]bool{"global": path == ""} // Helm's own
	for i := 0; i < len(node.Content); i += 2 {
		key, value := node.Content[i], node.Content[i+1]
		name := strings.TrimPrefix(path+"."+key.Value, ".")
		seen[key.Value] = true
		property := s.Properties[key.Value].resolve(p.root)
		if property == nil {
			p.fail("%s has no type for %s", schemaFile, name)
			continue
		}
		if path == "" {
			p.begin(key.Line)
		}
		about := p.comment(key.Line)
		if about == "" {
			p.fail("%s:%d: %s has no comment", valuesFile, key.Line, name)
		}
		if value.Kind == yaml.MappingNode && property.AdditionalProperties == false && value.Style&yaml.FlowStyle == 0 && p.commented(value) {
			p.object(value, property, name)
			continue
		}
		standard, err := asJSON(value)
		if err != nil {
			p.fail("%s:%d: %s: %w", valuesFile, key.Line, name, err)
		}
		if len(p.sections) == 0 {
			p.fail("%s:%d: %s stands before the first title", valuesFile, key.Line, name)
			return
		}
		last := &p.sections[len(p.sections)-1]
		last.rows = append(last.rows, row{path: name, kind: property.kind(p.root), standard: standard, about: about})
	}
	for name := range s.Properties {
		if !seen[name] {
			p.fail("%s has no %s, and %s does", valuesFile, strings.TrimPrefix(path+"."+name, "."), schemaFile)
		}
	}
}

// commented tells an object of the chart from one of Kubernetes: its values have
// comments of their own.
func (p *parser) commented(node *yaml.Node) bool {
	return len(node.Content) > 0 && p.comment(node.Content[0].Line) != ""
}

// begin opens the section whose title stands above a line.
func (p *parser) begin(line int) {
	for i := line - 2; i >= 0 && (strings.HasPrefix(p.lines[i], "#") || p.lines[i] == ""); i-- {
		if title, ok := strings.CutPrefix(p.lines[i], "## "); ok {
			p.sections = append(p.sections, section{title: title})
			return
		}
	}
}

// comment returns the comment that ends on the line above, as one paragraph.
func (p *parser) comment(line int) string {
	var words []string
	for i := line - 2; i >= 0; i-- {
		text, ok := strings.CutPrefix(strings.TrimSpace(p.lines[i]), "# ")
		if !ok {
			break
		}
		words = append(words, text)
	}
	slices.Reverse(words)
	return strings.Join(words, " ")
}

func asJSON(node *yaml.Node) (string, error) {
	var value any
	if err := node.Decode(&value); err != nil {
		return "", err
	}
	b, err := json.Marshal(value)
	return string(b), err
}

// resolve follows a reference.
func (s *schema) resolve(root *schema) *schema {
	if s == nil || s.Ref == "" {
		return s
	}
	return root.Definitions[strings.TrimPrefix(s.Ref, "#/definitions/")].resolve(root)
}

// kind says in a word or two what a value can be.
func (s *schema) kind(root *schema) string {
	s = s.resolve(root)
	switch {
	case s == nil:
		return ""
	case s.Enum != nil:
		words := make([]string, len(s.Enum))
		for i, word := range s.Enum {
			words[i] = fmt.Sprintf("`%v`", word)
			if word == "" {
				words[i] = "empty"
			}
		}
		return strings.Join(words, ", ")
	case s.Type == "array":
		return "list of " + plural(s.Items.kind(root))
	case s.Type == nil && s.AnyOf != nil:
		var kinds []string
		for _, one := range s.AnyOf {
			if kind := one.kind(root); !slices.Contains(kinds, kind) {
				kinds = append(kinds, kind)
			}
		}
		return strings.Join(kinds, " or ")
	}
	kind, _ := s.Type.(string)
	return kind
}

func plural(kind string) string { return kind + "s" }
