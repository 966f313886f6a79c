// Command version holds the files that repeat the version and the registry
// against deploy/release.env, and sets a new version in all of them.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

const source = "deploy/release.env"

// place is where a file repeats one of the values of release.env: in the first
// group of the expression, each time that it matches.
type place struct {
	file string
	re   *regexp.Regexp
	want func(release) string
}

var places = []place{
	{"deploy/helm/trackless/Chart.yaml", regexp.MustCompile(`(?m)^version: (.*)$`), release.version},
	{"deploy/helm/trackless/Chart.yaml", regexp.MustCompile(`(?m)^appVersion: "?([^"\n]*)"?$`), release.version},
	{"deploy/helm/trackless/Chart.yaml", regexp.MustCompile(`(?m)^      image: .*:([^:\n]*)$`), release.version},
	{"deploy/helm/trackless/values.yaml", regexp.MustCompile(`(?m)^  repository: (.*)$`), release.image},
	{"deploy/kubectl-trackless/main.go", regexp.MustCompile(`(?m)^var version = "(.*)"$`), release.version},
	{"deploy/kubectl-trackless/main.go", regexp.MustCompile(`(?m)^const imageName = "(.*)"$`), release.image},
	{"deploy/kustomize/base/kustomization.yaml", regexp.MustCompile(`(?m)^  - name: (.*/trackless)$`), release.image},
	{"deploy/kustomize/base/kustomization.yaml", regexp.MustCompile(`(?m)^    newTag: (.*)$`), release.version},
	{"deploy/kustomize/base/daemonset.yaml", regexp.MustCompile(`(?m)^ +image: (.*/trackless)$`), release.image},
}

// inPage is where a page names the version that a reader is to take: an image, the
// chart, a file of a release, a tag of the sources.
var inPage = regexp.MustCompile(`(?:\btrackless[:-]|--version |\bref=v|--branch v)(\d+\.\d+\.\d+(?:-(?:alpha|beta|rc)(?:\.?\d+)?)?)\b`)

// allPlaces are places, and the pages that name the version.
func allPlaces(root string) ([]place, error) {
	all := slices.Clone(places)
	err := filepath.WalkDir(filepath.Join(root, "docs"), func(path string, _ fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".md" {
			return err
		}
		page, err := filepath.Rel(root, path)
		if err == nil {
			all, err = addPage(all, root, page)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return addPage(all, root, "README.md")
}

func addPage(all []place, root, page string) ([]place, error) {
	b, err := os.ReadFile(filepath.Join(root, page))
	if err == nil && inPage.Match(b) {
		all = append(all, place{page, inPage, release.version})
	}
	return all, err
}

// release is what release.env says.
type release struct{ Version, Registry string }

func (r release) version() string { return r.Version }
func (r release) image() string   { return r.Registry + "/trackless" }

// semver is what a release may be called; Helm takes nothing else.
var semver = regexp.MustCompile(`^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?$`)

var assignment = regexp.MustCompile(`(?m)^(RELEASE|REGISTRY)=(.*)$`)

func read(root string) (release, error) {
	b, err := os.ReadFile(filepath.Join(root, source))
	if err != nil {
		return release{}, err
	}
	values := map[string]string{}
	for _, m := range assignment.FindAllSubmatch(b, -1) {
		values[string(m[1])] = string(m[2])
	}
	r := release{Version: values["RELEASE"], Registry: values["REGISTRY"]}
	if !semver.MatchString(r.Version) {
		return r, fmt.Errorf("%s: RELEASE is a version like 0.1.0, not %q", source, r.Version)
	}
	if r.Registry == "" || strings.HasSuffix(r.Registry, "/") {
		return r, fmt.Errorf("%s: REGISTRY is a registry and a folder in it, like ghcr.io/trackless-dns, not %q", source, r.Registry)
	}
	return r, nil
}

// disagreements are the places that say anything but what release.env says.
func disagreements(root string) ([]string, error) {
	r, err := read(root)
	if err != nil {
		return nil, err
	}
	all, err := allPlaces(root)
	if err != nil {
		return nil, err
	}
	var bad []string
	for _, p := range all {
		b, err := os.ReadFile(filepath.Join(root, p.file))
		if err != nil {
			return nil, err
		}
		found := p.re.FindAllSubmatch(b, -1)
		if len(found) == 0 {
			bad = append(bad, fmt.Sprintf("%s: nothing matches %s", p.file, p.re))
		}
		for _, m := range found {
			if got, want := string(m[1]), p.want(r); got != want {
				bad = append(bad, fmt.Sprintf("%s: %q, and %s says %q; `make set-version RELEASE=%s` writes it", p.file, got, source, want, r.Version))
			}
		}
	}
	return bad, nil
}

// set writes a version into release.env and, with its registry, into all places.
func set(root, version string) error {
	if !semver.MatchString(version) {
		return fmt.Errorf("%q is no version like 0.1.0", version)
	}
	path := filepath.Join(root, source)
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	b = regexp.MustCompile(`(?m)^RELEASE=.*$`).ReplaceAllLiteral(b, []byte("RELEASE="+version))
	if err := os.WriteFile(path, b, 0o644); err != nil {
		return err
	}
	r, err := read(root)
	if err != nil {
		return err
	}
	all, err := allPlaces(root)
	if err != nil {
		return err
	}
	for _, p := range all {
		if err := p.write(root, r); err != nil {
			return err
		}
	}
	return nil
}

func (p place) write(root string, r release) error {
	path := filepath.Join(root, p.file)
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	last := 0
	for _, m := range p.re.FindAllSubmatchIndex(b, -1) {
		out.Write(b[last:m[2]])
		out.WriteString(p.want(r))
		last = m[3]
	}
	if last == 0 {
		return fmt.Errorf("%s: nothing matches %s", p.file, p.re)
	}
	out.Write(b[last:])
	return os.WriteFile(path, out.Bytes(), 0o644)
}

func main() {
	err := errors.New("usage: go run ./deploy/version X.Y.Z, at the top of the module")
	if len(os.Args) == 2 {
		err = set(".", os.Args[1])
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "version: %v\n", err)
		os.Exit(1)
	}
}
