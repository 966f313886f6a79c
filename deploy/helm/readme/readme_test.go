package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
)

const top = "../../.."

func TestReadmeIsCurrent(t *testing.T) {
	t.Parallel()
	want, err := generate(top)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(top, readmeFile))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s is not what values.yaml and values.schema.json say; `make chart` writes it (-want +got):\n%s", readmeFile, diff)
	}
}

const goodSchema = `{
  "definitions": {"text": {"type": "string"}},
  "additionalProperties": false,
  "properties": {
    "global": {"type": "object"},
    "mode": {"enum": ["a", ""]},
    "side": {"type": "object", "additionalProperties": false, "properties": {"port": {"anyOf": [{"type": "integer"}, {"$ref": "#/definitions/text"}]}}},
    "names": {"type": "array", "items": {"$ref": "#/definitions/text"}},
    "pod": {"type": "object", "additionalProperties": false, "properties": {"x": {"type": "integer"}}}
  }
}`

const goodValues = `## First

# One | two
# three.
mode: a
# What it is.
side:
  # Its port.
  port: 1

## Second

# Names.
names: [x, "y"]
# As of a pod.
pod:
  x: 2
`

func TestTables(t *testing.T) {
	t.Parallel()
	sections, err := parseValues([]byte(goodValues), []byte(goodSchema))
	if err != nil {
		t.Fatal(err)
	}
	want := `
### First

| value | type | default | |
|---|---|---|---|
| ~mode~ | ~a~, empty | ~"a"~ | One \| two three. |
| ~side.port~ | integer or string | ~1~ | Its port. |

### Second

| value | type | default | |
|---|---|---|---|
| ~names~ | list of strings | ~["x","y"]~ | Names. |
| ~pod~ | object | ~{"x":2}~ | As of a pod. |

`
	if diff := cmp.Diff(strings.ReplaceAll(want, "~", "`"), string(tables(sections))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// An object whose values have no comments is one of Kubernetes, and a single row.
func TestIncomplete(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, old, with string // in the values
		want            string
	}{
		{"no type for an inner value", "  port: 1\n", "  port: 1\n  # Its host.\n  host: x\n", "has no type for side.host"},
		{"no type", "# Names.\n", "# More.\nmore: 1\n# Names.\n", "has no type for more"},
		{"no comment", "# Names.\n", "", "names has no comment"},
		{"no value", "# Names.\nnames: [x, \"y\"]\n", "", "has no names"},
		{"before a title", "## First\n", "", "mode stands before the first title"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			values := strings.Replace(goodValues, tc.old, tc.with, 1)
			if _, err := parseValues([]byte(values), []byte(goodSchema)); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q in it", err, tc.want)
			}
		})
	}
}

func TestMarkers(t *testing.T) {
	t.Parallel()
	for _, page := range []string{"", begin, end + begin} {
		if _, err := insert([]byte(page), nil); err == nil {
			t.Errorf("%q has no place for the tables, and that is no error", page)
		}
	}
}

// TestImages holds what is said to Artifact Hub to what the chart installs.
func TestImages(t *testing.T) {
	t.Parallel()
	var chart struct {
		AppVersion  string            `yaml:"appVersion"`
		Annotations map[string]string `yaml:"annotations"`
	}
	var values struct {
		Image struct{ Repository string }
	}
	for file, into := range map[string]any{"deploy/helm/trackless/Chart.yaml": &chart, valuesFile: &values} {
		b, err := os.ReadFile(filepath.Join(top, file))
		if err != nil {
			t.Fatal(err)
		}
		if err := yaml.Unmarshal(b, into); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
	}
	var images []struct{ Name, Image string }
	if err := yaml.Unmarshal([]byte(chart.Annotations["artifacthub.io/images"]), &images); err != nil {
		t.Fatal(err)
	}
	want := values.Image.Repository + ":" + chart.AppVersion
	if len(images) != 1 || images[0].Image != want {
		t.Errorf("artifacthub.io/images in Chart.yaml is %+v, want %s", images, want)
	}
	for _, name := range []string{"artifacthub.io/links", "artifacthub.io/changes"} {
		var list []map[string]any
		if err := yaml.Unmarshal([]byte(chart.Annotations[name]), &list); err != nil || len(list) == 0 {
			t.Errorf("%s in Chart.yaml is no list: %v", name, err)
		}
	}
}

// TestSchemaIsStrict: an object of the chart takes no value that it does not name.
func TestSchemaIsStrict(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile(filepath.Join(top, schemaFile))
	if err != nil {
		t.Fatal(err)
	}
	root := new(schema)
	if err := json.Unmarshal(b, root); err != nil {
		t.Fatal(err)
	}
	var look func(s *schema, path string)
	look = func(s *schema, path string) {
		if len(s.Properties) > 0 && s.AdditionalProperties != false && !strings.HasPrefix(path, ".extraVolume") {
			t.Errorf("%s takes properties that it does not name", path)
		}
		for name, property := range s.Properties {
			look(property, path+"."+name)
		}
		if s.Items != nil {
			look(s.Items, path+"[]")
		}
	}
	look(root, "")
	for name, definition := range root.Definitions {
		look(definition, "definition "+name)
	}
}
