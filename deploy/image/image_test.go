package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// maxImage is what the image may take on a node's disk, in bytes.
const maxImage = 35e6

// compile builds a package of this repository: static, or with pie one that
// asks for a dynamic loader.
func compile(t *testing.T, dir, arch string, pie bool) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "program")
	args := []string{"build", "-trimpath", "-ldflags", "-s -w", "-o", out}
	if pie {
		args = append(args, "-buildmode", "pie")
	}
	cmd := exec.Command("go", append(args, ".")...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch, "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build in %s for %s: %v\n%s", dir, arch, err, out)
	}
	return out
}

// contents reads a tar: file names to what is in them.
func contents(t *testing.T, r io.Reader) (map[string][]byte, map[string]*tar.Header) {
	t.Helper()
	files, headers := map[string][]byte{}, map[string]*tar.Header{}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return files, headers
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		if _, twice := headers[h.Name]; twice {
			t.Errorf("%s is in the tar twice", h.Name)
		}
		files[h.Name], headers[h.Name] = b, h
	}
}

func open(t *testing.T, path string) map[string][]byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	files, _ := contents(t, bytes.NewReader(b))
	return files
}

// decode reads a JSON file of an image layout.
func decode[T any](t *testing.T, files map[string][]byte, name string) T {
	t.Helper()
	var v T
	b, ok := files[name]
	if !ok {
		t.Fatalf("no %s in the archive; it has %v", name, slices.Sorted(maps.Keys(files)))
	}
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return v
}

// write runs the command and returns the directory with the tars.
func write(t *testing.T, args ...string) string {
	t.Helper()
	dir := t.TempDir()
	if err := run(append([]string{"-o", dir}, args...), io.Discard); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestRealImage looks into the image of the product as it is shipped.
func TestRealImage(t *testing.T) {
	arch := runtime.GOARCH
	binary := compile(t, "../../cmd/trackless", arch, false)
	dir := write(t, "-ref", "trackless-dns/trackless", "-version", "1.2.3+build", "-revision", "abc", "-created", "2026-02-03T04:05:06Z", arch+"="+binary)
	files := open(t, filepath.Join(dir, "trackless-"+arch+".tar"))

	index := decode[v1.IndexManifest](t, files, "index.json")
	if len(index.Manifests) != 1 {
		t.Fatalf("index.json has %d descriptors, want 1", len(index.Manifests))
	}
	// containerd's names are whole: they begin with a registry, Docker Hub here.
	if got, want := index.Manifests[0].Annotations["io.containerd.image.name"], "/trackless-dns/trackless:1.2.3_build"; !strings.HasSuffix(got, want) {
		t.Errorf("containerd would name it %s, want REGISTRY%s", got, want)
	}
	manifest := decode[v1.Manifest](t, files, blobPath(index.Manifests[0].Digest))
	config := decode[v1.ConfigFile](t, files, blobPath(manifest.Config.Digest))

	docker := decode[[]dockerImage](t, files, "manifest.json")
	if got, want := docker[0].RepoTags, []string{"trackless-dns/trackless:1.2.3_build"}; !slices.Equal(got, want) {
		t.Errorf("Docker would name it %v, want %v", got, want)
	}
	if docker[0].Config != blobPath(manifest.Config.Digest) || !slices.Equal(docker[0].Layers, []string{blobPath(manifest.Layers[0].Digest)}) {
		t.Errorf("manifest.json %+v names other blobs than the OCI manifest", docker[0])
	}

	if config.OS != "linux" || config.Architecture != arch {
		t.Errorf("platform %s/%s, want linux/%s", config.OS, config.Architecture, arch)
	}
	if config.Config.User != "0:0" || !slices.Equal(config.Config.Entrypoint, []string{"/node-cache"}) || len(config.Config.Cmd) != 0 {
		t.Errorf("starts as user %q with %v %v, want 0:0 with [/node-cache]", config.Config.User, config.Config.Entrypoint, config.Config.Cmd)
	}
	for label, want := range map[string]string{"version": "1.2.3+build", "revision": "abc", "created": "2026-02-03T04:05:06Z", "licenses": "Apache-2.0", "title": "trackless"} {
		label = "org.opencontainers.image." + label
		if got := config.Config.Labels[label]; got != want {
			t.Errorf("label %s is %q, want %q", label, got, want)
		}
		if got := manifest.Annotations[label]; got != want {
			t.Errorf("annotation %s is %q, want %q", label, got, want)
		}
	}

	if len(manifest.Layers) != 1 {
		t.Fatalf("%d layers, want 1", len(manifest.Layers))
	}
	unzipped, err := gzip.NewReader(bytes.NewReader(files[blobPath(manifest.Layers[0].Digest)]))
	if err != nil {
		t.Fatal(err)
	}
	layer, headers := contents(t, unzipped)
	want, err := os.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	size := 0
	for name, h := range headers {
		size += len(layer[name])
		if h.Uid != 0 || h.Gid != 0 {
			t.Errorf("%s belongs to %d:%d, want 0:0", name, h.Uid, h.Gid)
		}
		if h.Typeflag == tar.TypeReg && name != "trackless" {
			t.Errorf("file %s: the image holds one binary and nothing else", name)
		}
	}
	if !bytes.Equal(layer["trackless"], want) {
		t.Error("/trackless is not the binary that was given")
	}
	if h := headers["trackless"]; h == nil || h.Mode != 0o755 {
		t.Errorf("/trackless: %+v, want mode 0755", h)
	}
	if h := headers["node-cache"]; h == nil || h.Typeflag != tar.TypeSymlink || h.Linkname != "trackless" {
		t.Errorf("/node-cache: %+v, want a link to trackless", h)
	}
	if size > maxImage {
		t.Errorf("the image takes %.1f MB, more than %.0f", float64(size)/1e6, maxImage/1e6)
	}
	t.Logf("image: %.1f MB on disk, %.1f MB to pull", float64(size)/1e6, float64(len(files[blobPath(manifest.Layers[0].Digest)]))/1e6)
}

func TestSeveralArchitectures(t *testing.T) {
	var args []string
	for _, arch := range []string{"amd64", "arm", "s390x"} {
		args = append(args, arch+"="+compile(t, "testdata/empty", arch, false))
	}
	args = append([]string{"-version", "v1", "-ref", "example.invalid/trackless"}, args...)
	dir := write(t, args...)
	files := open(t, filepath.Join(dir, "trackless.tar"))

	if _, ok := files["manifest.json"]; ok {
		t.Error("the archive of all architectures has a manifest.json, in which Docker would take one for the other")
	}
	top := decode[v1.IndexManifest](t, files, "index.json")
	if got, want := top.Manifests[0].Annotations["io.containerd.image.name"], "example.invalid/trackless:v1"; got != want {
		t.Errorf("name %s, want %s", got, want)
	}
	if len(top.Manifests) != 2 || top.Manifests[1].Digest != top.Manifests[0].Digest {
		t.Fatalf("index.json has %+v, want one image under two names", top.Manifests)
	}
	if got, want := top.Manifests[1].Annotations["io.containerd.image.name"], "example.invalid/trackless@"+top.Manifests[0].Digest.String(); got != want {
		t.Errorf("name %s, want %s", got, want)
	}
	all := decode[v1.IndexManifest](t, files, blobPath(top.Manifests[0].Digest))
	var got []string
	for _, m := range all.Manifests {
		manifest := decode[v1.Manifest](t, files, blobPath(m.Digest))
		config := decode[v1.ConfigFile](t, files, blobPath(manifest.Config.Digest))
		if config.Architecture != m.Platform.Architecture {
			t.Errorf("the index calls an image %s that is for %s", m.Platform.Architecture, config.Architecture)
		}
		got = append(got, m.Platform.String())
	}
	if want := []string{"linux/amd64", "linux/arm/v7", "linux/s390x"}; !slices.Equal(got, want) {
		t.Errorf("platforms %v, want %v", got, want)
	}

	again := write(t, args...)
	for _, name := range []string{"trackless.tar", "trackless-amd64.tar", "trackless-arm.tar"} {
		a, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(again, name))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(a, b) {
			t.Errorf("%s: the same input gave other bytes", name)
		}
	}
}

func TestRefusals(t *testing.T) {
	amd64 := compile(t, "testdata/empty", "amd64", false)
	dynamic := compile(t, "testdata/empty", "amd64", true)
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	const ref = "-ref=example.invalid/trackless"
	for _, tc := range []struct {
		name string
		args []string
		want string
	}{
		{"no version", []string{"amd64=" + amd64}, "-version is missing"},
		{"no name", []string{"-version", "v1", "amd64=" + amd64}, "-ref is missing"},
		{"no binary", []string{"-version", "v1", ref}, "no binary"},
		{"not a pair", []string{"-version", "v1", ref, amd64}, "is not ARCH=FILE"},
		{"unknown architecture", []string{"-version", "v1", ref, "sparc64=" + amd64}, "made for amd64, arm, arm64, ppc64le, riscv64, s390x"},
		{"other architecture", []string{"-version", "v1", ref, "arm64=" + amd64}, "is built for EM_X86_64"},
		{"dynamic", []string{"-version", "v1", ref, "amd64=" + dynamic}, "build it with CGO_ENABLED=0"},
		{"no program", []string{"-version", "v1", ref, "amd64=" + script}, "is no ELF binary"},
		{"missing file", []string{"-version", "v1", ref, "amd64=/nowhere"}, "no such file"},
		{"bad reference", []string{"-version", "v1", "-ref", "UPPER", "amd64=" + amd64}, "must be lowercase"},
		{"bad time", []string{"-version", "v1", ref, "-created", "yesterday", "amd64=" + amd64}, "-created"},
		{"bad version", []string{"-version", "a b", ref, "amd64=" + amd64}, "cannot be a tag"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := run(append([]string{"-o", t.TempDir()}, tc.args...), io.Discard)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
		})
	}
}
