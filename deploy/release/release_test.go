package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	spdxjson "github.com/spdx/tools-golang/json"
	spdx "github.com/spdx/tools-golang/spdx/v2/v2_3"
)

const (
	root   = "../.."
	digest = "sha256:" + "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
)

// release is one of these sources, in a folder of its own.
func newRelease(t *testing.T, programs ...Program) Release {
	t.Helper()
	env, err := os.ReadFile(filepath.Join(root, "deploy/release.env"))
	if err != nil {
		t.Fatal(err)
	}
	value := func(name string) string {
		m := regexp.MustCompile(`(?m)^` + name + `=(.*)$`).FindSubmatch(env)
		if m == nil {
			t.Fatalf("deploy/release.env has no %s", name)
		}
		return string(m[1])
	}
	return Release{
		Version: value("RELEASE"), Registry: value("REGISTRY"), Commit: strings.Repeat("ab", 20),
		Created: time.Date(2026, 2, 3, 4, 5, 6, 0, time.UTC), Source: root, Out: t.TempDir(), Programs: programs,
	}
}

// TestRelease makes a release of the real sources twice, in folders of other
// names, and looks into it.
func TestRelease(t *testing.T) {
	arch := "amd64"
	binary := build(t, root, "./cmd/trackless", arch)
	var made []Release
	for range 2 {
		r := newRelease(t, Program{arch, binary})
		args := []string{"-version", r.Version, "-registry", r.Registry, "-commit", r.Commit, "-created", r.Created.Format(time.RFC3339),
			"-source", r.Source, "-images", layouts(t, arch), "-o", r.Out, arch + "=" + binary}
		if err := run(args, io.Discard); err != nil {
			t.Fatal(err)
		}
		made = append(made, r)
	}
	first, second := made[0], made[1]
	names, err := first.names()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		a, b := read(t, first, name), read(t, second, name)
		if !bytes.Equal(a, b) {
			t.Errorf("%s: the same input gave other bytes", name)
		}
	}
	want := []string{
		"CHANGES.md", "SHA256SUMS", "THIRD-PARTY-LICENSES.txt", first.name("-image-amd64.tar"), first.name("-image.tar"),
		first.name("-linux-amd64.tar.gz"), first.name(".intoto.json"), first.name(".spdx.json"), first.name(".tgz"),
		"trackless-cilium.yaml", "trackless-cluster-ip.yaml", "trackless-link-local.yaml",
	}
	slices.Sort(want)
	if !slices.Equal(names, want) {
		t.Errorf("files\n%q, want\n%q", names, want)
	}

	t.Run("manifests", func(t *testing.T) {
		for _, overlay := range overlays {
			text := string(read(t, first, "trackless-"+overlay+".yaml"))
			if want := "image: " + first.image() + ":" + first.Version + "@" + digest + "\n"; !strings.Contains(text, want) {
				t.Errorf("%s: no %q", overlay, want)
			}
			if !strings.Contains(text, "kind: DaemonSet") {
				t.Errorf("%s: no DaemonSet", overlay)
			}
		}
	})
	t.Run("checksums", func(t *testing.T) {
		sums := string(read(t, first, "SHA256SUMS"))
		for _, name := range names {
			if name == "SHA256SUMS" {
				continue
			}
			sum := sha256.Sum256(read(t, first, name))
			if !strings.Contains(sums, hex.EncodeToString(sum[:])+"  "+name+"\n") {
				t.Errorf("%s is not among them", name)
			}
		}
	})
	t.Run("programs", func(t *testing.T) {
		files := untar(t, read(t, first, first.name("-linux-amd64.tar.gz")), first.Created)
		dir := first.name("-linux-amd64") + "/"
		program, err := os.ReadFile(binary)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(files[dir+"trackless"], program) {
			t.Error("the archive has another program")
		}
		for _, name := range []string{"LICENSE", "THIRD-PARTY-LICENSES.txt", "Corefile", "trackless.service"} {
			if len(files[dir+name]) == 0 {
				t.Errorf("%s is missing", name)
			}
		}
	})
	t.Run("chart", func(t *testing.T) {
		files := untar(t, read(t, first, first.name(".tgz")), first.Created)
		for _, name := range []string{"Chart.yaml", "values.yaml", "values.schema.json", "templates/daemonset.yaml", "files/rules.yaml"} {
			if want, err := os.ReadFile(filepath.Join(root, "deploy/helm/trackless", name)); err != nil || !bytes.Equal(files["trackless/"+name], want) {
				t.Errorf("%s is not that of the sources (%v)", name, err)
			}
		}
	})
	t.Run("SBOM", func(t *testing.T) { checkSBOM(t, first) })
	t.Run("provenance", func(t *testing.T) { checkProvenance(t, first) })
	t.Run("licenses", func(t *testing.T) {
		text := string(read(t, first, "THIRD-PARTY-LICENSES.txt"))
		for _, want := range []string{"github.com/coredns/coredns v", "MIT", "BSD-3-Clause", "MPL-2.0", "stdlib go1.", "Apache License"} {
			if !strings.Contains(text, want) {
				t.Errorf("no %q", want)
			}
		}
	})
}

func checkSBOM(t *testing.T, r Release) {
	doc := &spdx.Document{}
	if err := spdxjson.ReadInto(bytes.NewReader(read(t, r, r.name(".spdx.json"))), doc); err != nil {
		t.Fatal(err)
	}
	if doc.CreationInfo.Created != "2026-02-03T04:05:06Z" || !strings.HasSuffix(doc.DocumentNamespace, r.Commit) {
		t.Errorf("created %s, namespace %s: not those of the commit", doc.CreationInfo.Created, doc.DocumentNamespace)
	}
	purls := map[string]bool{}
	ids := map[string]bool{}
	for _, p := range doc.Packages {
		if ids[string(p.PackageSPDXIdentifier)] {
			t.Errorf("two packages are %s", p.PackageSPDXIdentifier)
		}
		ids[string(p.PackageSPDXIdentifier)] = true
		if p.PackageLicenseConcluded == "" {
			t.Errorf("%s has no license", p.PackageName)
		}
		for _, ref := range p.PackageExternalReferences {
			purls[ref.Locator] = true
		}
	}
	out, err := exec.Command("go", "version", "-m", r.Programs[0].Path).Output()
	if err != nil {
		t.Fatal(err)
	}
	modules := 0
	for _, m := range regexp.MustCompile(`(?m)^\tdep\t(\S+)\t(\S+)`).FindAllStringSubmatch(string(out), -1) {
		modules++
		if want := "pkg:golang/" + m[1] + "@" + strings.ReplaceAll(m[2], "+", "%2B"); !purls[want] {
			t.Errorf("%s is in the program and not in the SBOM", want)
		}
	}
	// The product and the standard library besides.
	if modules == 0 || len(doc.Packages) != modules+2 || len(doc.Relationships) != modules+2 {
		t.Errorf("%d packages and %d relationships of %d modules", len(doc.Packages), len(doc.Relationships), modules)
	}
}

func checkProvenance(t *testing.T, r Release) {
	var s struct {
		Type          string `json:"_type"`
		PredicateType string `json:"predicateType"`
		Subject       []struct {
			Name   string
			Digest map[string]string
		}
		Predicate struct {
			BuildDefinition struct {
				ResolvedDependencies []struct{ Digest map[string]string }
			}
		}
	}
	if err := json.Unmarshal(read(t, r, r.name(".intoto.json")), &s); err != nil {
		t.Fatal(err)
	}
	if s.Type != "https://in-toto.io/Statement/v1" || s.PredicateType != predicateType {
		t.Errorf("a %s with %s", s.Type, s.PredicateType)
	}
	if got := s.Predicate.BuildDefinition.ResolvedDependencies[0].Digest["gitCommit"]; got != r.Commit {
		t.Errorf("built from %s, want %s", got, r.Commit)
	}
	if s.Subject[0].Name != r.image() || "sha256:"+s.Subject[0].Digest["sha256"] != digest {
		t.Errorf("the first subject is %+v, want the image", s.Subject[0])
	}
	for _, subject := range s.Subject[1:] {
		if got, err := r.digestOf(subject.Name); err != nil || got != subject.Digest["sha256"] {
			t.Errorf("%s has %s, and the statement says %s (%v)", subject.Name, got, subject.Digest["sha256"], err)
		}
	}
}

func TestLicenses(t *testing.T) {
	t.Parallel()
	apache, err := os.ReadFile(filepath.Join(root, "LICENSE"))
	if err != nil {
		t.Fatal(err)
	}
	gpl := "This program is free software: you can redistribute it and/or modify it under the terms of the GNU General Public License as published by the Free Software Foundation, either version 3 of the License, or (at your option) any later version."
	for _, test := range []struct {
		name  string
		files map[string]string
		want  string // the license
		err   string
	}{
		{"a known one", map[string]string{"LICENSE": string(apache)}, "Apache-2.0", ""},
		{"with a notice", map[string]string{"LICENSE.md": string(apache), "NOTICE": "Thanks."}, "Apache-2.0", ""},
		{"none", map[string]string{"README": "free"}, "", "no license file"},
		{"a notice alone", map[string]string{"NOTICE": "Thanks."}, "", "no license file"},
		{"an unknown one", map[string]string{"LICENSE": "Do as I say, never as I do, and pay me on Fridays."}, "", "no known license"},
		{"a forbidden one", map[string]string{"COPYING": gpl}, "", "is not among"},
		{"a forbidden one beside", map[string]string{"LICENSE": string(apache), "pkg/COPYING": gpl}, "", "is not among"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			d := Dependency{Path: "example.invalid/m", Version: "v1.0.0", Dir: t.TempDir()}
			for _, dir := range []string{"pkg", "unused"} {
				if err := os.Mkdir(filepath.Join(d.Dir, dir), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			// What is not linked does not count.
			test.files["unused/COPYING"] = gpl
			for name, text := range test.files {
				if err := os.WriteFile(filepath.Join(d.Dir, name), []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			err := d.readLicenses([]string{filepath.Join(d.Dir, "pkg")})
			if test.err == "" && (err != nil || d.License != test.want) {
				t.Errorf("%q, %v; want %q", d.License, err, test.want)
			}
			if test.err != "" && (err == nil || !strings.Contains(err.Error(), test.err)) {
				t.Errorf("error %v, want one with %q", err, test.err)
			}
		})
	}
}

func TestPin(t *testing.T) {
	t.Parallel()
	r := Release{Version: "1.2.3", Registry: "example.invalid/dns"}
	for _, test := range []struct{ name, yaml, want, err string }{
		{"pinned", "spec:\n  image: example.invalid/dns/trackless:1.2.3\n", "spec:\n  image: example.invalid/dns/trackless:1.2.3@" + digest + "\n", ""},
		{"first in a list", "- c:\n  - image: example.invalid/dns/trackless:1.2.3\n", "- c:\n  - image: example.invalid/dns/trackless:1.2.3@" + digest + "\n", ""},
		{"another version", "  image: example.invalid/dns/trackless:1.2.2\n", "", "make set-version"},
		{"another image", "  image: example.invalid/dns/trackless:1.2.3\n  image: busybox\n", "", "busybox"},
		{"no image", "kind: Service\n", "", "no image"},
	} {
		got, err := r.pin([]byte(test.yaml), digest)
		if test.err == "" && (err != nil || string(got) != test.want) {
			t.Errorf("%s: %q, %v", test.name, got, err)
		}
		if test.err != "" && (err == nil || !strings.Contains(err.Error(), test.err)) {
			t.Errorf("%s: error %v, want one with %q", test.name, err, test.err)
		}
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	program := build(t, "testdata/empty", ".", "amd64")
	local := filepath.Join(t.TempDir(), "program")
	cmd := exec.Command("go", "build", "-o", local, ".")
	cmd.Dir = "testdata/empty"
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, test := range []struct {
		name    string
		program Program
		want    string
	}{
		{"paths in it", Program{"amd64", local}, "-trimpath="},
		{"another architecture", Program{"arm64", program}, "GOARCH=amd64, not arm64"},
		{"no Go program", Program{"amd64", "/bin/true"}, "what it was built from"},
		{"no program", Program{"amd64", "/nowhere"}, "no such file"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			if _, err := newRelease(t, test.program).dependencies(); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want one with %q", err, test.want)
			}
		})
	}
	if err := run([]string{"-version", "1.0.0"}, io.Discard); err == nil || !strings.Contains(err.Error(), "missing: -commit -created -images -o -registry -source") {
		t.Errorf("flags left out: %v", err)
	}
}

// build compiles a program as `make release` does.
func build(t *testing.T, dir, pkg, arch string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "trackless")
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", out, pkg)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch, "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build %s: %v\n%s", pkg, err, out)
	}
	return out
}

// layouts stands for what deploy/image writes.
func layouts(t *testing.T, arch string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"trackless.tar", "trackless-" + arch + ".tar"} {
		var buf bytes.Buffer
		w := tar.NewWriter(&buf)
		index := `{"manifests":[{"digest":"` + digest + `"}]}`
		if err := w.WriteHeader(&tar.Header{Name: "index.json", Mode: 0o644, Size: int64(len(index))}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, index); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), buf.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func read(t *testing.T, r Release, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(r.Out, name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// untar reads a tar.gz in which nothing tells who packed it, or when.
func untar(t *testing.T, b []byte, at time.Time) map[string][]byte {
	t.Helper()
	zip, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if !zip.ModTime.IsZero() || zip.Name != "" {
		t.Errorf("gzip names a file %q of %s", zip.Name, zip.ModTime)
	}
	files := map[string][]byte{}
	for tr := tar.NewReader(zip); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Gid != 0 || h.Uname != "" || !h.ModTime.Equal(at) {
			t.Errorf("%s is of %d:%d %q and %s, want root's and of the commit", h.Name, h.Uid, h.Gid, h.Uname, h.ModTime)
		}
		contents, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name] = contents
	}
}

// TestPlugin packs the kubectl plugin of a platform, with the licenses of its own
// modules, and names the archive in krew's manifest by its checksum.
func TestPlugin(t *testing.T) {
	t.Parallel()
	r := newRelease(t)
	for _, system := range []string{"linux", "windows"} {
		out := filepath.Join(t.TempDir(), pluginName)
		cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", out, ".")
		cmd.Dir = "testdata/empty"
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS="+system, "GOARCH=amd64", "GOFLAGS=")
		if text, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		p, err := parsePlugin(system + "/amd64=" + out)
		if err != nil {
			t.Fatal(err)
		}
		r.Plugins = append(r.Plugins, p)
	}
	if err := r.plugins(); err != nil {
		t.Fatal(err)
	}
	manifest := string(read(t, r, "trackless-krew.yaml"))
	if !strings.HasPrefix(manifest, "apiVersion: krew.") || !strings.Contains(manifest, "version: v"+r.Version+"\n") || strings.Contains(manifest, "{{") {
		t.Errorf("manifest:\n%s", manifest)
	}
	for system, program := range map[string]string{"linux": "kubectl-trackless", "windows": "kubectl-trackless.exe"} {
		name := "kubectl-trackless-" + r.Version + "-" + system + "-amd64.tar.gz"
		archive := read(t, r, name)
		sum := sha256.Sum256(archive)
		want := "          os: " + system + "\n          arch: amd64\n      uri: https://github.com/trackless-dns/trackless/releases/download/v" + r.Version + "/" + name +
			"\n      sha256: " + hex.EncodeToString(sum[:]) + "\n      bin: " + program + "\n"
		if !strings.Contains(manifest, want) {
			t.Errorf("no\n%s\nin\n%s", want, manifest)
		}
		files := untar(t, archive, r.Created)
		for _, file := range []string{program, "LICENSE", "THIRD-PARTY-LICENSES.txt"} {
			if len(files[file]) == 0 {
				t.Errorf("%s: no %s", name, file)
			}
		}
	}
	for _, arg := range []string{"linux=x", "linux/amd64", "/amd64=x", "linux/amd64="} {
		if _, err := parsePlugin(arg); err == nil || !strings.Contains(err.Error(), "is not OS/ARCH=FILE") {
			t.Errorf("%q: %v", arg, err)
		}
	}
}
