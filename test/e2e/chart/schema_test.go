//go:build e2e

package chart

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// TestValid checks everything that is rendered against Kubernetes' own
// description of its API. What is defined elsewhere it does not know.
func TestValid(t *testing.T) {
	schemas := apiSchemas(t)
	manifests := map[string]string{}
	for _, overlay := range []string{"cluster-ip", "link-local", "cilium"} {
		manifests["kustomize "+overlay] = kustomize(t, overlay)
	}
	for _, r := range releases {
		out, complaints, err := template(t, r.args...)
		if err != nil {
			t.Fatalf("%v\n%s", err, complaints)
		}
		manifests["helm "+r.name] = out
	}
	validate := func(t *testing.T, manifest string) (string, error) {
		out, complaints, err := run(t, manifest, "kubeconform", "-strict", "-summary",
			"-skip", "PodMonitor,PrometheusRule,CiliumLocalRedirectPolicy",
			"-schema-location", filepath.Join(schemas, "{{.ResourceKind}}{{.KindSuffix}}.json"))
		return out + complaints, err
	}
	for name, manifest := range documented(t) {
		manifests[name] = manifest
	}
	for name, manifest := range manifests {
		t.Run(name, func(t *testing.T) {
			if out, err := validate(t, manifest); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
	t.Run("not everything is valid", func(t *testing.T) {
		bad := strings.Replace(manifests["helm default"], "hostNetwork:", "hostNetwrk:", 1)
		if out, err := validate(t, bad); err == nil || !strings.Contains(out, "hostNetwrk") {
			t.Errorf("a misspelt field is found valid: %v\n%s", err, out)
		}
	})
}

var yamlBlock = regexp.MustCompile("(?ms)^~~~ yaml\n(.*?)^~~~$")

// documented are the complete objects that the pages show.
func documented(t *testing.T) map[string]string {
	t.Helper()
	pages, err := filepath.Glob("../../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	objects := map[string]string{}
	for _, page := range pages {
		b, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for i, m := range yamlBlock.FindAllSubmatch(b, -1) {
			if strings.HasPrefix(string(m[1]), "apiVersion:") {
				objects[fmt.Sprintf("%s %d", filepath.Base(page), i)] = string(m[1])
			}
		}
	}
	if len(objects) == 0 {
		t.Error("the pages show no object")
	}
	return objects
}

// apiSchemas writes a JSON schema for each kind, as kubeconform names them, made
// from the swagger.json that Kubernetes' module has.
func apiSchemas(t *testing.T) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "mod", "download", "-json", "k8s.io/kubernetes")
	cmd.Dir = "../cluster/hyper" // whose go.mod says which version
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go mod download k8s.io/kubernetes: %v\n%s", err, out)
	}
	var module struct{ Dir string }
	if err := json.Unmarshal(out, &module); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(module.Dir, "api/openapi-spec/swagger.json"))
	if err != nil {
		t.Fatal(err)
	}
	var swagger struct {
		Definitions map[string]map[string]any
	}
	if err := json.Unmarshal(b, &swagger); err != nil {
		t.Fatal(err)
	}

	dir := t.TempDir()
	for name, d := range swagger.Definitions {
		adapt(d)
		kinds, _ := d["x-kubernetes-group-version-kind"].([]any)
		for _, k := range kinds {
			k := k.(map[string]any)
			// As kubeconform expands {{.ResourceKind}}{{.KindSuffix}}.
			parts := []string{k["kind"].(string)}
			if group, _, _ := strings.Cut(k["group"].(string), "."); group != "" {
				parts = append(parts, group)
			}
			parts = append(parts, k["version"].(string))
			write(t, filepath.Join(dir, strings.ToLower(strings.Join(parts, "-"))+".json"),
				map[string]any{"$ref": "definitions.json#/definitions/" + name})
		}
	}
	write(t, filepath.Join(dir, "definitions.json"), map[string]any{"definitions": swagger.Definitions})
	return dir
}

// adapt makes of an OpenAPI 2 definition a strict JSON schema: no field that
// it does not name, and numbers where a number may be written.
func adapt(d map[string]any) {
	if properties, ok := d["properties"].(map[string]any); ok {
		if _, open := d["additionalProperties"]; !open && d["x-kubernetes-preserve-unknown-fields"] == nil {
			d["additionalProperties"] = false
		}
		for _, p := range properties {
			if p, ok := p.(map[string]any); ok {
				adapt(p)
			}
		}
	}
	if d["format"] == "int-or-string" || d["type"] == "string" && strings.Contains(text(d["description"]), "Quantity is") {
		delete(d, "format")
		d["type"] = []string{"string", "integer", "number"}
	}
}

func text(v any) string { s, _ := v.(string); return s }

func write(t *testing.T, path string, v any) {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

// installed is what kustomize and the chart must agree on.
type installed struct {
	Corefile []string // its directives, less comments and the defaults of notrack
	Pod      map[string]any
	Update   map[string]any
	Upstream map[string]any
}

func pod(t *testing.T, manifest string) installed {
	t.Helper()
	var in installed
	for d := yaml.NewDecoder(strings.NewReader(manifest)); ; {
		var object struct {
			Kind     string
			Metadata struct{ Name string }
			Data     map[string]string
			Spec     map[string]any
		}
		if d.Decode(&object) != nil {
			return in
		}
		switch object.Kind + "/" + object.Metadata.Name {
		case "ConfigMap/trackless":
			in.Corefile = directives(object.Data["Corefile"])
		case "Service/kube-dns-upstream":
			in.Upstream = object.Spec
		case "DaemonSet/trackless":
			in.Update, _ = object.Spec["updateStrategy"].(map[string]any)
			template := object.Spec["template"].(map[string]any)
			in.Pod = template["spec"].(map[string]any)
			container := in.Pod["containers"].([]any)[0].(map[string]any)
			delete(container, "imagePullPolicy")
			// With kustomize whoever applies it says where the image is.
			container["image"] = strings.TrimPrefix(container["image"].(string), "ghcr.io/")
		}
	}
}

// object returns the first of a kind, and fails the test if there is none.
func object(t *testing.T, manifest, kind string) map[string]any {
	t.Helper()
	for d := yaml.NewDecoder(strings.NewReader(manifest)); ; {
		var o map[string]any
		if err := d.Decode(&o); err != nil {
			t.Fatalf("no %s: %v", kind, err)
		}
		if o["kind"] == kind {
			return o
		}
	}
}

func directives(corefile string) []string {
	var lines []string
	for line := range strings.Lines(corefile) {
		line = strings.TrimSpace(line)
		switch line {
		case "", "backend auto", "lease 1s", "sync 10s":
			continue
		}
		if !strings.HasPrefix(line, "#") {
			lines = append(lines, line)
		}
	}
	// An empty block is the directive alone.
	joined := strings.ReplaceAll(strings.Join(lines, "\n"), "notrack {\n}", "notrack")
	return strings.Split(joined, "\n")
}
